"""Saving stops training only for a copy, and a write that fails is reported."""

import copy
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import wait_for
from test_train import losses, opened_run, same, trained_here, weights

import train
from impossible import checkpoint, log

Config = Callable[..., Path]
LONG_ENOUGH = 20  # seconds after which a write that nobody lets go on fails


def test_training_goes_on_while_a_state_is_written_as_it_was(
    config: Config, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The state of step 3 is written after step 5, and is still that of step 3."""
    go_on, save, update = threading.Event(), checkpoint.save, train.update
    optimizers = {}

    def slow(*arguments: object) -> None:
        assert go_on.wait(LONG_ENOUGH), "training waited for the disk"
        save(*arguments)

    def noted(run: train.Run, learning_rate: float) -> torch.Tensor:
        optimizers[run.step] = copy.deepcopy(run.optimizer.state_dict())
        if run.step == 5:
            assert not list(run.out_dir.glob("*.pt"))
            go_on.set()
        return update(run, learning_rate)

    monkeypatch.setattr(checkpoint, "save", slow)
    monkeypatch.setattr(train, "update", noted)
    trained_here(opened_run(config()))
    assert losses(tmp_path / "out") == losses(trained)
    assert same(weights(tmp_path / "out", 3), weights(trained, 3))
    before = checkpoint.load(tmp_path / "out" / checkpoint.PREVIOUS_STATE)
    assert before.step == 3 and before.sessions[0]["to_step"] == 3
    assert same(before.model, weights(trained, 3))
    for key, values in before.state["optimizer"]["state"].items():
        assert same(values, optimizers[3]["state"][key])


def test_one_copy_waits_for_the_disk_and_no_more(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on, save, steps = threading.Event(), checkpoint.save, []

    def slow(*arguments: object) -> None:
        assert go_on.wait(LONG_ENOUGH)
        save(*arguments)

    def let_go() -> None:
        wait_for(lambda: len(log.read(tmp_path / "out")) > 2, LONG_ENOUGH)
        go_on.wait(0.5)
        steps.append(log.read(tmp_path / "out")[-1]["step"])
        go_on.set()

    monkeypatch.setattr(checkpoint, "save", slow)
    thread = threading.Thread(target=let_go)
    thread.start()
    trained_here(opened_run(config(checkpoint_interval="1")))
    thread.join()
    assert steps == [2], "the state of step 2 waited until that of step 1 was written"
    kept = list(map(checkpoint.load, checkpoint.list_checkpoints(tmp_path / "out")))
    assert [c.sessions[0]["to_step"] for c in kept] == [c.step for c in kept] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("max_steps", [6, 2000])
def test_a_write_that_failed_is_told_soon_or_at_the_end(
    max_steps: int, config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(checkpoint, "save", fail)
    intervals = {"checkpoint_interval": "6", "eval_interval": "2000", "eval_blocks": "1"}
    with pytest.raises(OSError, match="disk full"):
        trained_here(opened_run(config(max_steps=str(max_steps), **intervals)))
    assert 6 <= log.read(tmp_path / "out")[-1]["step"] <= 12
