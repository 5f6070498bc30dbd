"""Who may import whom at the root; import-linter keeps the rest (pyproject.toml)."""

import ast
import importlib.metadata
from pathlib import Path

import pytest
from conftest import ROOT

COMMANDS = {"prepare", "train", "convert_to_hf", "evaluate", "sample", "batch_viewer", "study"}
OURS = {path.stem for path in ROOT.glob("*.py")} | {"impossible", "bench"}


def imported(path: Path, within_functions: bool) -> set[str]:
    """The modules of ours that a file imports, with or without those within functions."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = list(ast.walk(tree)) if within_functions else tree.body
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    return {name for name in found if name.split(".")[0] in OURS}


def test_no_command_imports_another() -> None:
    for path in ROOT.glob("*.py"):
        assert not {name.split(".")[0] for name in imported(path, True)} & COMMANDS, path


@pytest.mark.parametrize("name", ["model", "perturb"])
def test_the_science_stands_on_its_own(name: str) -> None:
    allowed = ("impossible.errors", "impossible.training.loss")
    for module in imported(ROOT / f"{name}.py", False):
        assert module.startswith(allowed), module


def test_the_root_holds_the_commands_and_the_science() -> None:
    assert {path.stem for path in ROOT.glob("*.py")} == COMMANDS | {"model", "perturb"}


def test_no_module_of_the_root_hides_an_installed_package() -> None:
    installed = set(importlib.metadata.packages_distributions())
    assert not {path.stem for path in ROOT.glob("*.py")} & installed


def test_commands_are_short_and_so_are_functions() -> None:
    for name in COMMANDS:
        lines = (ROOT / f"{name}.py").read_text(encoding="utf-8").count("\n")
        assert lines <= 250, f"{name}.py has {lines} lines"
    for path in [*ROOT.glob("*.py"), *(ROOT / "impossible").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef):
                length = node.end_lineno - node.lineno + 1
                assert length <= 40, f"{path.name}: {node.name} has {length} lines"
