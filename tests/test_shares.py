"""Processes that take unequal parts of a step."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import fail, kill, start, succeed, wait_for
from test_train import losses, same, weights

import train
from impossible import checkpoint, log
from impossible.distributed import World
from impossible.settings import Settings, load

Config = Callable[..., Path]
NO_DROPOUT = {"dropout": "0.0", "batch_size": "1", "max_steps": "12", "checkpoint_interval": "6"}


def test_one_process_two_equal_and_two_unequal_ones_have_the_same_losses(
    config: Config, tmp_path: Path
) -> None:
    found = []
    for name, processes, shares in (
        ("one", 1, "equal"),
        ("two", 2, "equal"),
        ("unequal", 2, "1,2.5"),
        ("measured", 2, "auto"),
    ):
        out_dir = tmp_path / name
        printed = succeed(
            "train.py",
            config(**NO_DROPOUT, out_dir=str(out_dir)),
            f"--shares={shares}",
            processes=processes,
        )
        found.append((losses(out_dir), [r["grad_norm"] for r in log.read(out_dir)[1:]]))
        assert ("x 2/6 micro-step(s)" in printed) == (name == "unequal")
    for values, norms in found[1:]:
        assert values == pytest.approx(found[0][0], rel=1e-5)
        assert norms == pytest.approx(found[0][1], rel=1e-3)


@pytest.mark.slow
def test_measured_shares_are_kept_so_that_a_run_resumes_bit_for_bit(
    config: Config, tmp_path: Path
) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    options = NO_DROPOUT | {"dropout": "0.1", "checkpoint_interval": "2", "max_steps": "40"}
    succeed("train.py", config(**options, out_dir=str(whole)), "--shares=2,6", processes=2)
    script = tmp_path / "slow_first.py"  # whose first process seems to be three times slower
    script.write_text(
        "import sys, runpy; sys.path.insert(0, ''); from impossible import shares; "
        "shares._seconds = lambda run: 1.0 if run.world.rank else 3.0; "
        "sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    path = config(**options, out_dir=str(parts))
    process = start(script, "train.py", path, "--shares=auto", processes=2)
    wait_for(lambda: checkpoint.state_path(parts).exists())
    kill(process)
    state = checkpoint.load(checkpoint.state_path(parts))
    assert state.step < 40 and state.micro_steps == [2, 6]
    printed = succeed("train.py", path, "--shares=auto", processes=2)
    assert "2 process(es) x 2/6 micro-step(s)" in printed
    assert losses(parts) == losses(whole)
    assert same(weights(parts, 40), weights(whole, 40))


@pytest.mark.parametrize(
    ("saved", "measured_on", "options", "expected"),
    [
        ([2, 6], ["slow", "fast"], ["--shares=auto"], [2, 6]),
        ([2, 6], ["slow", "fast"], ["--shares=auto", "--batch_size=2"], []),  # 4 micro-batches now
        ([2, 6], ["fast", "slow"], ["--shares=auto"], []),  # exchanged
        ([2, 6], ["slow", "fast"], ["--shares=1,1"], [4, 4]),
        ([], [], ["--shares=auto"], []),  # the run began with equal shares
    ],
)
def test_saved_shares_are_used_where_they_were_measured_and_else_measured_anew(
    saved: list[int],
    measured_on: list[str],
    options: list[str],
    expected: list[int],
    config: Config,
    trained: Path,
    tmp_path: Path,
) -> None:
    state = checkpoint.load(checkpoint.state_path(trained))
    state = dataclasses.replace(state, micro_steps=saved, measured_on=measured_on)
    (tmp_path / "out").mkdir()
    checkpoint.save_state(tmp_path / "out", state)
    settings = load("train.py", [str(config(batch_size="1")), *options])[0]
    run = train.open_run(settings, World(size=2, local_size=2))
    run.device_names = ["slow", "fast"]
    runs._load_state(run)
    assert run.micro_steps == expected  # [] is measured before the first step


@pytest.mark.parametrize(
    ("shares", "processes", "expected"),
    [
        ("2,3", 1, "is for 2 processes, and there are 1. Give one number for each process"),
        ("two", 1, "It must be equal, auto, or positive numbers such as 2,3"),
        ("0,1", 1, "It must be equal, auto, or positive numbers such as 2,3"),
    ],
)
def test_shares_that_cannot_work_are_refused(
    shares: str, processes: int, expected: str, config: Config
) -> None:
    assert expected in fail("train.py", config(), f"--shares={shares}", processes=processes)
