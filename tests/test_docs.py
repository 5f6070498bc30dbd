"""The README and the pages in docs/ tell the truth."""

import dataclasses
import re
import runpy
import shlex
import shutil
from pathlib import Path

import numpy as np
from conftest import ROOT, succeed

import perturb
from impossible.settings import load, read_config
from impossible.study import plan as plans

README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = {
    path.name: path.read_text(encoding="utf-8") for path in sorted((ROOT / "docs").glob("*.md"))
}
ALL = "\n".join([README, *PAGES.values()])


def test_the_page_of_settings_is_that_of_the_code() -> None:
    page = runpy.run_path(str(ROOT / "docs" / "settings.py"))["page"]
    assert PAGES["settings.md"] == page(), "python docs/settings.py writes it"


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


def require_understood(line: str) -> None:
    """Read the arguments of a command, as the command itself does. Raises UserError."""
    words = shlex.split(line)
    (place,) = [i for i, word in enumerate(words) if re.fullmatch(r"\w+\.py", word)]
    name, arguments = words[place].removesuffix(".py"), words[place + 1 :]
    assert (ROOT / f"{name}.py").is_file(), line
    if name == "study":
        plans.read(arguments, "usage")
    elif name != "perturb":
        load(f"{name}.py", [a for a in arguments if a != "--help"])


def test_every_command_of_the_documents_is_understood() -> None:
    assert len(commands()) > 20
    for line in commands():
        require_understood(line)


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
    shown = succeed("perturb.py")
    assert f"```\n{shown}```" in PAGES["languages.md"]
    listed = re.search(r"```\n(NoReverse .*?)```", README, flags=re.DOTALL)[1].splitlines()
    assert listed and set(listed) <= set(shown.splitlines())


def test_the_readme_is_short() -> None:
    assert len(README.split()) <= 1200


def test_every_language_has_a_config_of_its_name() -> None:
    for name in (name for name, row in perturb.LANGUAGES.items() if row.unit == "tokens"):
        path = ROOT / "config" / f"{name}.py"
        assert read_config(path) == {"language": name}
        assert path.read_text(encoding="utf-8").startswith(f'"""{perturb.get(name).title}')


def test_a_language_of_ones_own_is_a_function_and_a_row(
    corpus_dir: Path, data_dir: Path, tmp_path: Path
) -> None:
    languages = PAGES["languages.md"]
    snippets = re.findall(r"```python\n(def .*?)```", languages, flags=re.DOTALL)
    project = shutil.copytree(ROOT / "impossible", tmp_path / "project" / "impossible").parent
    for path in ROOT.glob("*.py"):
        shutil.copy(path, project)
    with open(project / "perturb.py", "a", encoding="utf-8") as file:
        file.write("\n\n".join(["", *snippets]))
    shown = [" ".join(line.split()) for line in succeed(project / "perturb.py").splitlines()]
    assert shown[-2:] == [
        "Swapped . cleans his very messy books he lf He",
        "VowelsLast He cleans his very messy books he lf .",
    ]
    checked = succeed(project / "perturb.py", "--check", "swapped")
    assert "inverse    gives the original sentences\ncontrol    NoShuffle" in checked
    config = tmp_path / "swapped.py"
    config.write_text('language = "swapped"\n')
    options = (config, f"--corpus={corpus_dir}", "--segmenter=line")
    succeed(project / "prepare.py", *options, f"--data_dir={tmp_path / 'data'}")
    plain, swapped = (sentences(folder / "test.bin") for folder in (data_dir, tmp_path / "data"))
    assert len(plain) == len(swapped)
    for ours, theirs in zip(swapped, plain, strict=True):
        assert sorted(ours) == sorted(theirs)


def test_every_field_of_a_language_is_explained() -> None:
    required = {"title", "perturb", "summary"}
    table = PAGES["languages.md"].split("## Add a language")[1]
    names = {name for row in re.findall(r"^\| (`.*?) \|", table, re.M) for name in row.split(", ")}
    fields = {field.name for field in dataclasses.fields(perturb.Language)}
    assert names == {f"`{name}`" for name in fields - required}


def sentences(path: Path) -> list[list[int]]:
    """The tokens of each sentence of a token file, without PartialReverse's marker."""
    tokens = np.fromfile(path, np.dtype("<u2"))
    tokens = tokens[tokens != 50257]
    return [part.tolist() for part in np.split(tokens, np.flatnonzero(tokens == 50256) + 1)][:-1]
