"""Processes that take unequal parts of a step."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import fail, kill, start, succeed, wait_for
from hypothesis import given
from hypothesis import strategies as st
from test_train import losses, same, weights

import train
from impossible import checkpoint
from impossible.distributed import World
from impossible.settings import load
from impossible.text.token_files import step_blocks

Config = Callable[..., Path]


@pytest.mark.slow
def test_measured_shares_are_kept_so_that_a_run_resumes_bit_for_bit(
    config: Config, whole: Callable[..., Path], tmp_path: Path
) -> None:
    options = {"batch_size": "1", "checkpoint_interval": "2", "max_steps": "40"}
    out_dir, path = tmp_path / "out", config(**options)
    script = tmp_path / "slow_first.py"  # whose first process seems to be three times slower
    script.write_text(
        "import os, runpy, sys, time\n"
        "sys.path.insert(0, '')\n"
        "import model\n"
        "forward, calls = model.GPT.forward, []\n"
        "def slow(*arguments):\n"
        "    calls.append(1)\n"
        "    if len(calls) <= 4:  # while the speed is measured\n"
        "        time.sleep(1 if os.environ['RANK'] == '1' else 3)\n"
        "    return forward(*arguments)\n"
        "model.GPT.forward = slow\n"
        "sys.argv = sys.argv[1:]\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')\n"
    )
    process = start(script, "train.py", path, "--shares=auto", processes=2)
    wait_for(lambda: checkpoint.state_path(out_dir).exists())
    kill(process)
    state = checkpoint.load(checkpoint.state_path(out_dir))
    assert state.step < 40 and state.state["accumulation_steps"] == [2, 6]
    printed = succeed("train.py", path, "--shares=auto", processes=2)
    assert "2 process(es) x 2/6 micro-batches" in printed
    assert " attention, on 2 x cpu" in printed
    expected = whole(processes=2, **options, shares="2,6")
    assert losses(out_dir) == losses(expected)
    assert same(weights(out_dir, 40), weights(expected, 40))


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
    state.state.update(accumulation_steps=saved, measured_on=measured_on)
    (tmp_path / "out").mkdir()
    path = checkpoint.state_path(tmp_path / "out")
    checkpoint.save(path, state)
    settings = load("train.py", [str(config(batch_size="1")), *options])[0]
    run = train.open_run(settings, World(size=2, local_size=2))
    run.device_names = ["slow", "fast"]
    train.load_state(run, path)
    assert run.accumulation_steps == expected  # [] is measured before the first step


@pytest.mark.parametrize(
    ("shares", "expected"),
    [
        ("2,3", "is for 2 processes, but there are 1. Give one number for each process"),
        ("two", "It must be equal, auto, or positive numbers such as 2,3"),
        ("0,1", "It must be equal, auto, or positive numbers such as 2,3"),
    ],
)
def test_shares_that_cannot_work_are_refused(shares: str, expected: str, config: Config) -> None:
    assert expected in fail("train.py", config(), f"--shares={shares}")


def shares_of(blocks: np.ndarray, batch: int, counts: list[int]) -> list[np.ndarray]:
    """The micro-batches of each process, (count, batch) each."""
    owners = train.owners_of_micro_batches(counts)
    return [blocks.reshape(-1, batch)[owners == rank] for rank in range(len(counts))]


@given(st.integers(1, 40), st.integers(1, 50), st.integers(0, 3), st.integers(1, 8))
def test_every_epoch_reads_every_block_once(
    n_blocks: int, per_step: int, seed: int, epochs: int
) -> None:
    steps = -(-n_blocks * epochs // per_step)
    drawn = np.concatenate([step_blocks(n_blocks, per_step, seed, k) for k in range(steps)])
    for epoch in range(epochs):
        part = drawn[epoch * n_blocks : (epoch + 1) * n_blocks]
        assert sorted(part.tolist()) == list(range(n_blocks))


def test_blocks_depend_on_seed_and_step_alone() -> None:
    assert step_blocks(100, 8, 41, 5).tolist() == step_blocks(100, 8, 41, 5).tolist()
    assert step_blocks(100, 8, 41, 5).tolist() != step_blocks(100, 8, 14, 5).tolist()
    # A golden draw: a run that was begun with an older version goes on with the same blocks.
    assert step_blocks(10, 4, 41, 2).tolist() == [6, 7, 1, 8]


@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 4))
def test_equal_processes_take_turns(world: int, batch: int, count: int) -> None:
    blocks = np.arange(world * batch * count)
    expected = [blocks.reshape(-1, world, batch)[:, rank] for rank in range(world)]
    shares = shares_of(blocks, batch, [count] * world)
    assert all(np.array_equal(a, b) for a, b in zip(shares, expected, strict=True))


@given(st.lists(st.floats(0.05, 20), min_size=1, max_size=5), st.integers(0, 60), st.integers(1, 3))
def test_unequal_processes_share_a_step_without_gap_or_overlap(
    speeds: list[float], more: int, batch: int
) -> None:
    total = len(speeds) + more
    counts = train.divide(speeds, total)
    assert sum(counts) == total and min(counts) >= 1
    blocks = np.arange(total * batch)
    shares = shares_of(blocks, batch, counts)
    assert [len(share) for share in shares] == counts
    assert sorted(np.concatenate(shares).ravel().tolist()) == blocks.tolist()
    stops = [train.stopping_points(counts, rank) for rank in range(len(speeds))]
    assert {len(points) for points in stops} == {min(counts)}, "all agree equally often"
    assert all(0 in points for points in stops)


def test_shares_follow_the_speed() -> None:
    assert train.divide([1, 1], 64) == [32, 32]
    assert train.divide([2, 3], 64) == [26, 38]
    assert train.divide([1, 1000], 64) == [1, 63]
