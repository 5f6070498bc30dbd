"""The README tells the truth."""

import dataclasses
import re
import shlex

import pytest
from conftest import ROOT

import configurator
from configurator import Settings

README = (ROOT / "README.md").read_text(encoding="utf-8")


def settings_table() -> str:
    """The README's table of settings, as it must be."""
    lines = ["| setting | default | read by | meaning |", "|---|---|---|---|"]
    for field in dataclasses.fields(Settings):
        commands = ", ".join(field.metadata["read_by"])
        default = f"`{field.default}`" if field.default != "" else ""
        lines.append(f"| `{field.name}` | {default} | {commands} | {field.metadata['help']} |")
    return "\n".join(lines)


def test_the_table_of_settings_is_that_of_the_code() -> None:
    assert settings_table() in README


def commands() -> list[str]:
    """The lines of the README's code blocks that start one of the project's commands."""
    blocks = re.findall(r"```sh\n(.*?)```", README, flags=re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [line.split("#")[0].strip() for line in lines if re.search(r"\b\w+\.py\b", line)]


@pytest.mark.parametrize("line", commands())
def test_every_command_of_the_readme_is_understood(line: str) -> None:
    words = shlex.split(line)
    (place,) = [i for i, word in enumerate(words) if re.fullmatch(r"\w+\.py", word)]
    name, arguments = words[place].removesuffix(".py"), words[place + 1 :]
    assert (ROOT / f"{name}.py").is_file()
    if name in configurator.COMMANDS:
        configurator.load(name, [a for a in arguments if a != "--help"])


def test_every_target_of_make_that_the_readme_names_is_there() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"(?:`|^)make ([a-z-]+)", README, flags=re.MULTILINE))
    assert {"demo", "test", "lint"} <= targets
    for target in targets:
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target


def test_every_python_file_is_in_the_picture_of_the_layout() -> None:
    for path in ROOT.glob("*.py"):
        assert path.name in README, path.name
