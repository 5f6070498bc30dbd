"""`make bench` works: every module of it loads, and its evaluation runs on a tiny model."""

import importlib
import pkgutil
from pathlib import Path

import pytest
from conftest import speeches

import bench
from bench import evaluating
from impossible import distributed
from impossible.settings import Settings

TINY = Settings(n_layer=1, n_head=1, n_embd=8, block_size=64, tokens_per_step=512)


@pytest.mark.parametrize("name", [module.name for module in pkgutil.iter_modules(bench.__path__)])
def test_every_module_loads(name: str) -> None:
    importlib.import_module(f"bench.{name}")


def test_the_two_ways_to_evaluate_are_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def compare(folder: str, *contenders: tuple[str]) -> list[tuple[float, float]]:
        """Each contender once, in this process."""
        names = [name.removeprefix("evaluating.") for (name,) in contenders]
        return [(getattr(evaluating, name)(folder)(), 1.0) for name in names]

    monkeypatch.setattr(evaluating, "compare", compare)
    monkeypatch.setattr(evaluating, "_SCORED", 12)
    monkeypatch.setattr(distributed, "keep_freed_memory", lambda: None)
    texts = {"first": speeches("1961-Kennedy-1"), "second": speeches("1971-Nixon-1")}
    evaluating.table(tmp_path, texts, TINY)
    rows = [line.split("|") for line in capsys.readouterr().out.splitlines() if line.count("|") > 5]
    assert [row[1].strip() for row in rows[-2:]] == ["this project", "the published method"]
    assert all(float(row[3].replace(",", "")) > 0 for row in rows[-2:]), "tokens/s"
