"""Write settings.md, the page of all settings: python docs/settings.py."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from impossible.settings import READS, RECIPE, explanations
from impossible.study.plan import OF_STUDY, Study

HEAD = """# Settings

Write settings as `name = value` in a config file (`config/*.py`) or as `--name=value` on the
command line. The command line takes precedence. Config files are parsed but never executed. All
commands can share one config file; each command reads only its own settings. To list the settings
of a command, type, for example, `python train.py --help`. On the command line, the items of a list
are separated by commas; only in a config file may an item contain a comma. `study.py` also takes
the settings of the commands that it runs, and gives them to all its runs. *all* stands for all
commands except `study.py`. Settings marked *fixed* cannot be changed when a run is resumed.

This page is written by `python docs/settings.py` from the tables of settings in
`impossible/settings.py` and `impossible/study/plan.py`.

| setting | default | read by | meaning |
|---|---|---|---|
"""


def row(name: str, meaning: str) -> str:
    """The row of the table for one setting, as Markdown."""
    commands = READS | {"study.py": OF_STUDY}
    readers = [command for command in commands if name in commands[command]]
    default = getattr(Study, name)
    default = list(default) if isinstance(default, tuple) else default  # as in a config file
    cells = (
        f"`{name}`",
        f"`{default}`" if default != "" else "",
        "all" if readers == list(READS) else ", ".join(readers),
        meaning + (" *fixed*" if name in RECIPE else ""),
    )
    return f"| {' | '.join(cells)} |\n"


def page() -> str:
    """The text of settings.md."""
    return HEAD + "".join(row(*item) for item in explanations(Study).items())


if __name__ == "__main__":
    Path(__file__).with_suffix(".md").write_text(page(), encoding="utf-8")
