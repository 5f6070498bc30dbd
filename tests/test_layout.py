"""Which module may import which, and how much there is to read; import-linter checks more."""

import ast
import functools
import importlib.metadata
from collections.abc import Iterable
from pathlib import Path

import pytest
from conftest import ROOT

COMMANDS = {"prepare", "train", "convert_to_hf", "eval", "sample", "batch_viewer", "study"}
OURS = {path.stem for path in ROOT.glob("*.py")} | {"impossible", "bench"}


PACKAGE = sorted((ROOT / "impossible").rglob("*.py"))
# The most modules and lines that somebody reads who follows all imports of a command.
TO_READ = {
    "train": (8, 2424),
    "prepare": (17, 4227),
    "convert_to_hf": (23, 5448),
    "eval": (35, 8311),
    "study": (27, 6767),
}
PRODUCT = 12636  # lines, with configs and templates, without tests and bench
# The most lines of parts of the project.
LINES = {
    "impossible/settings.py": 571,
    "prepare.py": 349,
    "perturb.py": 578,
    "impossible/text/*.py": 2597,
    "convert_to_hf.py": 139,
    "impossible/hub/*": 934,
    "eval.py": 90,
    "impossible/evaluation/*": 3342,
    "study.py": 152,
    "impossible/study/*": 1502,
    "bench/*": 711,
}


@functools.cache
def imported(path: Path, within_functions: bool = True) -> set[str]:
    """The modules of ours that a file imports, with or without those within functions.

    Imports for type checkers alone do not count.
    """
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names, nodes = set(), list(ast.walk(tree)) if within_functions else tree.body
    for_types = {child for node in nodes if _is_for_types(node) for child in node.body}
    for node in nodes:
        if node in for_types:
            continue
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    return {name for name in names if name.split(".")[0] in OURS}


def _is_for_types(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


def file_of(name: str) -> Path | None:
    """The file of a module of ours; None for a name within a module."""
    path = ROOT / Path(*name.split("."))
    paths = (path.with_suffix(".py"), path / "__init__.py")
    return next((path for path in paths if path.is_file()), None)


def to_read(path: Path) -> set[Path]:
    """A file and all files of ours that it imports, and that these import, and so on.

    Files of packages that hold no more than a docstring are left out.
    """
    paths, new = set(), [path]
    while new:
        paths.add(new[-1])
        files = {file_of(name) for name in imported(new.pop())} - {None}
        new += [file for file in files - paths if file.name != "__init__.py"]
    return paths


def lines(paths: Iterable[Path]) -> int:
    return sum(path.read_text(encoding="utf-8").count("\n") for path in paths)


def test_no_command_imports_another() -> None:
    for path in ROOT.glob("*.py"):
        assert not {name.split(".")[0] for name in imported(path)} & COMMANDS, path
    for path in PACKAGE:
        assert not {name.split(".")[0] for name in imported(path)} & COMMANDS, path


def test_the_science_stands_on_its_own() -> None:
    assert imported(ROOT / "model.py") == set()
    allowed = ("impossible.settings", "impossible.text.arrays")
    for module in imported(ROOT / "perturb.py", within_functions=False):
        assert module.startswith(allowed), module


def test_no_modules_import_each_other_in_a_circle() -> None:
    paths = {*ROOT.glob("*.py"), *PACKAGE}
    arrows = {path: to_read(path) - {path} for path in paths}
    assert [(a.name, b.name) for a in paths for b in arrows[a] if a in arrows[b]] == []


@pytest.mark.parametrize("command", TO_READ)
def test_there_is_not_too_much_to_read(command: str) -> None:
    paths = to_read(ROOT / f"{command}.py")
    names = sorted(str(path.relative_to(ROOT)) for path in paths)
    assert len(paths) <= TO_READ[command][0] and lines(paths) <= TO_READ[command][1], names


@pytest.mark.parametrize("pattern", LINES)
def test_no_part_grows(pattern: str) -> None:
    assert 0 < lines(path for path in ROOT.glob(pattern) if path.is_file()) <= LINES[pattern]


def test_the_product_does_not_grow() -> None:
    templates = ROOT.glob("impossible/**/*.j2")
    commands_and_docs = [*ROOT.glob("*.py"), *ROOT.glob("docs/*.py"), *ROOT.glob("config/*.py")]
    assert lines([*commands_and_docs, *PACKAGE, *templates]) <= PRODUCT


def test_the_root_holds_the_commands_and_the_science() -> None:
    assert {path.stem for path in ROOT.glob("*.py")} == COMMANDS | {"model", "perturb"}


def test_no_module_of_the_root_hides_an_installed_package() -> None:
    installed = set(importlib.metadata.packages_distributions())
    assert not {path.stem for path in ROOT.glob("*.py")} & installed


def test_functions_are_short() -> None:
    for path in [*ROOT.glob("*.py"), *PACKAGE]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef):
                length = node.end_lineno - node.lineno + 1
                assert length <= 40, f"{path.name}: {node.name} has {length} lines"
