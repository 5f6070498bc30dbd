"""Saving holds training for a copy alone, and a write that fails is told."""

import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import train
from impossible import checkpoint
from impossible.distributed import World
from impossible.settings import Settings, load
from impossible.training.saving import Saver


def test_training_goes_on_while_a_checkpoint_is_written(
    config: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on = threading.Event()
    save_state = checkpoint.save_state

    def slow(*arguments: object) -> None:
        assert go_on.wait(60)
        save_state(*arguments)

    monkeypatch.setattr(checkpoint, "save_state", slow)
    run = train.open_run(load("train.py", [str(config())])[0], World())
    with train.opened(run):
        train.resume(run)
        before = run.model.transformer.ln_f.bias.detach().clone()
        for run.step in (3, 4):  # the second, while the first is still written
            train.save(run, 0.0)
            with torch.no_grad():
                run.model.transformer.ln_f.bias += 1
        assert not checkpoint.list_checkpoints(tmp_path / "out")
        go_on.set()
        run.saver.wait()
    for step, added in ((3, 0), (4, 1)):
        kept = checkpoint.load(checkpoint.path_of(tmp_path / "out", step))
        assert torch.equal(kept.model["transformer.ln_f.bias"], before + added)
    assert checkpoint.load(checkpoint.state_path(tmp_path / "out")).step == 4


def test_a_write_that_failed_is_told_by_the_next_step() -> None:
    saver, done = Saver(), threading.Event()

    def fail() -> None:
        done.wait(60)
        raise OSError("disk full")

    saver.start(fail)
    saver.check()
    done.set()
    with pytest.raises(OSError, match="disk full"):
        while True:
            saver.check()
    saver.wait()


def test_an_error_in_the_background_is_raised_at_the_end_and_once() -> None:
    def fail() -> None:
        raise OSError("the disk is full")

    saver, done = Saver(), []
    saver.start(lambda: done.append(1))
    saver.start(fail)
    with pytest.raises(OSError, match="the disk is full"):
        saver.wait()
    saver.wait()
    assert done == [1]


def test_not_too_many_copies_wait_for_the_disk() -> None:
    saver, go_on = Saver(), threading.Event()
    for _ in range(3):
        saver.start(lambda: go_on.wait(60))
    started = threading.Event()

    def fourth() -> None:
        saver.start(started.set)

    thread = threading.Thread(target=fourth)
    thread.start()
    thread.join(0.2)
    assert thread.is_alive(), "it waits for the first"
    go_on.set()
    thread.join(60)
    saver.wait()
    assert started.is_set()
