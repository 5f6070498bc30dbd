"""The README and the pages in docs/ tell the truth."""

import dataclasses
import re
import runpy
import shlex
import shutil
import subprocess
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, succeed, write_config

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


def blocks(language: str) -> list[str]:
    """The code blocks of all documents in sh, python or r."""
    return re.findall(rf"```{language}\n(.*?)```", ALL, flags=re.DOTALL)


def commands() -> list[str]:
    """The lines of the code blocks that start one of the project's commands."""
    lines = "\n".join(blocks("sh")).replace("\\\n", " ").splitlines()
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


def write_surprisals(folder: Path, *runs: str | Path) -> None:
    """Evaluate runs on seven items, and put the table where the documents look for it.

    folder: of the documents' paths. A table of one run is there already if its out_dir is `out`.
    """
    rows = ["item,condition,text,region,region_spillover"]
    for noun, verb in product(("key", "dog", "law", "man", "war", "tax", "bank"), ("is", "are")):
        condition = "singular" if verb == "is" else "plural"
        rows.append(f"{noun},{condition},The {noun} of the houses {verb} here.,{verb},here")
    (folder / "mine.csv").write_text("\n".join(rows), encoding="utf-8")
    results = folder / "out" / "evaluation"
    succeed("eval.py", *runs, f"--stimuli={folder / 'mine.csv'}", f"--eval_dir={results}")
    (place,) = results.glob("stimuli_mine-*")
    place.rename(results / "stimuli_mine-1a2b3c4d")


def test_every_python_line_of_the_documents_runs(
    trained: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out_dir = shutil.copytree(trained, tmp_path / "out")
    write_surprisals(tmp_path, f"--out_dir={out_dir}")
    succeed("convert_to_hf.py", f"--out_dir={out_dir}")
    published = tmp_path / "mission-impossible-lms" / "partial-reverse-gpt2"  # a folder, not a repo
    shutil.copytree(out_dir / "hf" / "checkpoint-6", published)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(perturb, "LANGUAGES", dict(perturb.LANGUAGES))
    for lines in blocks("python"):
        if lines.startswith("languages = "):
            Path("study.py").write_text(lines, encoding="utf-8")
            plans.read(["study.py"], "usage")
        else:
            exec(lines, names := dict(vars(perturb)))
            if "d" in names:
                assert len(names["d"]) == 2 * 14, "two checkpoints, one region of each sentence"
    assert re.search(r"^tensor\(1[01]\.\d", capsys.readouterr().out, flags=re.MULTILINE)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_r_lines_of_the_documents_test_languages_against_runs(
    corpus_dir: Path, tmp_path: Path
) -> None:
    if not shutil.which("Rscript") or subprocess.call(["Rscript", "-e", "library(lmerTest)"]):
        pytest.skip("needs R with lmerTest (Debian: apt install r-base-core r-cran-lmertest)")
    configs = []
    for seed, language in product(range(3), ("no_reverse", "partial_reverse")):
        places = {"data_dir": tmp_path / language, "out_dir": tmp_path / f"{language}-seed-{seed}"}
        values = {name: str(path) for name, path in (places | {"corpus": corpus_dir}).items()}
        path = tmp_path / f"{language}_{seed}.py"
        configs.append(write_config(path, language=language, seed=str(seed), **values))
    succeed("prepare.py", *configs[:2])  # all seeds of a language share its data
    for path in configs:
        succeed("train.py", path)
    write_surprisals(tmp_path, *configs)
    (lines,) = blocks("r")
    done = subprocess.run(
        ["Rscript", "-"], input=lines, cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "Type III Analysis of Variance Table with Satterthwaite's method" in done.stdout
    assert "Number of obs: 84, groups:  item, 7; run, 6; seed, 3" in done.stdout
    assert "\nconditionsingular:languagepartial_reverse " in done.stdout, "an effect in bits"


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
    corpus_dir: Path,
    data_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    snippets = re.findall(r"```python\n(def .*?)```", PAGES["languages.md"], flags=re.DOTALL)
    monkeypatch.setattr(perturb, "LANGUAGES", dict(perturb.LANGUAGES))
    exec("\n".join(snippets), dict(vars(perturb)))  # as if they stood at the end of perturb.py
    perturb.main([])
    shown = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert shown[-2:] == [
        "Swapped . cleans his very messy books he lf He",
        "VowelsLast He cleans his very messy books he lf .",
    ]
    perturb.main(["--check", "swapped"])
    checked = capsys.readouterr().out
    assert "inverse    gives the original sentences\ncontrol    NoShuffle" in checked
    config = tmp_path / "swapped.py"
    config.write_text('language = "swapped"\n')
    options = (config, f"--corpus={corpus_dir}", "--segmenter=line")
    succeed("prepare.py", *options, f"--data_dir={tmp_path / 'data'}")
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
