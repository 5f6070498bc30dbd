"""`make bench` works: each of its tables, small."""

import importlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import speeches

import perturb
from bench import evaluating, gpu, preparing, training, turns
from impossible import distributed
from impossible.settings import Settings

TINY = Settings(n_layer=1, n_head=1, n_embd=8, block_size=64, compile=False)


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Path, str]]:
    """Data and the folder of their corpus; tables on them take seconds, in this process."""

    def compare(contenders: dict[str, tuple[Any, ...]]) -> dict[str, tuple[float, float]]:
        for name, *arguments in contenders.values():
            module, _, function = name.partition(".")
            contender = getattr(importlib.import_module(f"bench.{module}"), function)
            contender(*map(str, arguments))()
        return {name: (2.0 + i, 1.0) for i, name in enumerate(contenders)}

    monkeypatch.setattr(turns, "compare", compare)
    monkeypatch.setattr(turns, "MODEL", TINY)
    monkeypatch.setattr(torch, "compile", lambda model: model)
    monkeypatch.setattr(evaluating, "_SCORED", 12)
    monkeypatch.setattr(preparing, "_SIZES", (0,))
    monkeypatch.setattr(preparing, "_COMPARED", 0)
    some = ("no_reverse", "partial_reverse", "no_hop")
    languages = {name: perturb.LANGUAGES[name] for name in some}
    monkeypatch.setattr(perturb, "LANGUAGES", languages)
    monkeypatch.setattr(distributed, "keep_freed_memory", lambda: None)
    corpus = tmp_path / "texts"
    corpus.mkdir()
    (corpus / "speech.txt").write_text(speeches("1961-Kennedy-1"))
    turns.printed("prepare.py", f"--corpus={corpus}", f"--data_dir={tmp_path / 'data'}")
    yield tmp_path / "data", str(corpus)
    shutil.rmtree(tmp_path)


def test_training_is_measured(small: tuple[Path, str], monkeypatch: pytest.MonkeyPatch) -> None:
    rows = list(training.table(*small))
    assert [row["s per step"] for row in rows] == ["2.00", "3.00", "4.00", "5.00"] * 2
    assert rows[0]["share of the GEMM limit"] == "250%"
    monkeypatch.setattr(training, "speed_of_run", lambda *_: 1.0)
    assert [row["processes"] for row in training.processes_table(*small)] == [1, 2]


@pytest.mark.slow
def test_a_run_of_two_processes_has_a_speed(small: tuple[Path, str]) -> None:
    assert training.speed_of_run(small[0], 2) > 0


def test_preparing_is_measured(small: tuple[Path, str]) -> None:
    folder, corpus = small
    rows = list(preparing.table(folder, corpus))
    assert [row["languages"] for row in rows] == ["1", "2", "1 (Hop), annotated by spaCy"]
    ours = preparing.ours(str(folder), corpus, "1")()
    assert np.array_equal(ours, preparing.published(str(folder), corpus)())


def test_evaluating_is_measured(small: tuple[Path, str]) -> None:
    first, second = evaluating.table(*small)
    assert first["speed relative to the published method"] == "1.50"
    assert second["s"] == "3.0"


def test_the_parts_of_a_gpus_report(
    small: tuple[Path, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert [row["blocks"] for row in gpu.sizes(*small)] == [8, 16, 32]
    monkeypatch.setattr(gpu, "_ATTENTION", (2, 2, 64, 16))
    rows = {row["kernel"]: row for row in gpu.kernels(*small)}
    assert list(rows) == ["math", "flash", "efficient", "cudnn"]
    assert rows["math"]["verdict"].startswith("as exact as") and float(rows["math"]["error"]) < 1e-5
    assert rows["cudnn"]["verdict"] == "not available", "on a CPU"
    (row,) = gpu.large_logits(*small)
    assert float(row["difference / largest logit"]) < row["limit"]
    monkeypatch.setattr(turns, "printed", lambda *command: "\n".join(map(str, command)))
    assert [row["command"] for row in gpu.short_run(*small)][-1] == "eval.py"
