"""The README and the pages in docs/ tell the truth."""

import dataclasses
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, succeed, write_config

import perturb
from impossible.settings import READS, RECIPE, explanations, load, read_config
from impossible.study import plan as plans
from impossible.study.plan import OF_STUDY, Study

README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = {
    path.name: path.read_text(encoding="utf-8") for path in sorted((ROOT / "docs").glob("*.md"))
}
ALL = "\n".join([README, *PAGES.values()])


def settings_table() -> str:
    """The table of settings, as it must be."""
    commands = {**READS, "study.py": OF_STUDY}
    lines = ["| setting | default | read by | meaning |", "|---|---|---|---|"]
    for name, text in explanations(Study).items():
        readers = [command for command in commands if name in commands[command]]
        who = "all" if readers == list(READS) else ", ".join(readers)
        default = getattr(Study, name)
        shown = f"`{_shown(default)}`" if default != "" else ""
        fixed = " *fixed*" if name in RECIPE else ""
        lines.append(f"| `{name}` | {shown} | {who} | {text}{fixed} |")
    return "\n".join(lines)


def _shown(default: object) -> object:
    """A default as in a config file."""
    return list(default) if isinstance(default, tuple) else default


def test_the_table_of_settings_is_that_of_the_code() -> None:
    assert settings_table() in PAGES["settings.md"]


def test_every_link_of_the_documents_leads_somewhere() -> None:
    for name, text in {"README.md": README, **{f"docs/{n}": t for n, t in PAGES.items()}}.items():
        for target in re.findall(r"\]\((?!http)([^)#]+)", text):
            assert ((ROOT / name).parent / target).exists(), f"{name}: {target}"
    for name in re.findall(r"\b(docs/[\w-]+\.md)", ALL):
        assert (ROOT / name).exists(), name


def commands() -> list[str]:
    """The lines of the README's code blocks that start one of the project's commands."""
    blocks = re.findall(r"```sh\n(.*?)```", ALL, flags=re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [line.split("#")[0].strip() for line in lines if re.search(r"\b\w+\.py\b", line)]


@pytest.mark.parametrize("line", commands())
def test_every_command_of_the_readme_is_understood(line: str) -> None:
    words = shlex.split(line)
    (place,) = [i for i, word in enumerate(words) if re.fullmatch(r"\w+\.py", word)]
    name, arguments = words[place].removesuffix(".py"), words[place + 1 :]
    assert (ROOT / f"{name}.py").is_file()
    if name == "study":
        plans.read(arguments, "usage")
    elif name != "perturb":
        load(f"{name}.py", [a for a in arguments if a != "--help"])


def test_every_target_of_make_that_the_readme_names_is_there() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"(?:`|^)make ([a-z-]+)", ALL, flags=re.MULTILINE))
    assert {"demo", "test", "lint"} <= targets
    for target in targets:
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target


def test_every_file_of_the_code_is_on_the_page_that_explains_the_design() -> None:
    explained = README + PAGES["design.md"]
    for path in [*ROOT.glob("*.py"), *(ROOT / "impossible").rglob("*.py")]:
        if path.name != "__init__.py":
            assert path.name in explained, path


def test_the_sentence_in_all_languages_is_what_the_command_shows() -> None:
    assert f"```\n{succeed('perturb.py')}```" in README


def test_every_language_has_a_config_of_its_name() -> None:
    for name in perturb.LANGUAGES:
        path = ROOT / "config" / f"{name}.py"
        assert read_config(path) == {"language": name}
        assert path.read_text(encoding="utf-8").startswith(f'"""{perturb.get(name).title}')


def test_a_language_of_ones_own_is_a_function_and_a_row(
    corpus_dir: Path, data_dir: Path, tmp_path: Path
) -> None:
    (snippet,) = re.findall(
        r"```python\n(def swapped.*?)```", PAGES["languages.md"], flags=re.DOTALL
    )
    project = tmp_path / "project"
    project.mkdir()
    for path in ROOT.glob("*.py"):
        shutil.copy(path, project)
    shutil.copytree(ROOT / "impossible", project / "impossible")
    with open(project / "perturb.py", "a", encoding="utf-8") as file:
        file.write(f"\n\n{snippet}")
    places = {"language": "swapped", "data_dir": str(tmp_path / "data")}
    config = write_config(
        tmp_path / "swapped.py", **places, corpus=str(corpus_dir), out_dir=str(tmp_path / "out")
    )
    shown = succeed(project / "perturb.py").splitlines()[-1]
    assert shown.split() == [
        "Swapped",
        ".",
        "cleans",
        "his",
        "very",
        "messy",
        "books",
        "he",
        "lf",
        "He",
    ]
    for command in ("prepare.py", "train.py", "convert_to_hf.py"):
        succeed(project / command, config)
    plain, swapped = (
        np.fromfile(folder / "test.bin", np.dtype("<u2"))
        for folder in (data_dir, tmp_path / "data")
    )
    plain = plain[plain != 50257]  # without PartialReverse's marker
    assert len(plain) == len(swapped)
    for ours, theirs in zip(split(swapped), split(plain), strict=True):
        assert sorted(ours) == sorted(theirs)
    card = (tmp_path / "out" / "hf" / "checkpoint-6" / "README.md").read_text(encoding="utf-8")
    assert "its first and last token trade places" in card


def test_every_field_of_a_language_is_explained() -> None:
    required = {"title", "perturb", "summary"}
    table = PAGES["languages.md"].split("## Add a language")[1]
    names = {name for row in re.findall(r"^\| (`.*?) \|", table, re.M) for name in row.split(", ")}
    fields = {field.name for field in dataclasses.fields(perturb.Language)}
    assert names == {f"`{name}`" for name in fields - required}


def split(tokens: np.ndarray) -> list[list[int]]:
    """The sentences of a token file."""
    return [part.tolist() for part in np.split(tokens, np.flatnonzero(tokens == 50256) + 1)]
