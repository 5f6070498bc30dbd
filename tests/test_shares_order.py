import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from impossible.training.order import agreements, micro_batches, micro_steps_of, step_blocks


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
def test_processes_share_a_step_without_gap_or_overlap(
    world: int, batch: int, micro_steps: int
) -> None:
    blocks = np.arange(world * batch * micro_steps)
    shares = [micro_batches(blocks, batch, rank, [micro_steps] * world) for rank in range(world)]
    assert all(share.shape == (micro_steps, batch) for share in shares)
    # As older versions shared them: a run that was begun with one goes on with the same.
    older = [blocks.reshape(-1, world, batch)[:, rank] for rank in range(world)]
    assert all(np.array_equal(a, b) for a, b in zip(shares, older, strict=True))
    assert sorted(np.concatenate(shares).ravel().tolist()) == blocks.tolist()


@given(st.lists(st.floats(0.05, 20), min_size=1, max_size=5), st.integers(0, 60), st.integers(1, 3))
def test_unequal_processes_share_a_step_without_gap_or_overlap(
    speeds: list[float], more: int, batch: int
) -> None:
    total = len(speeds) + more
    micro_steps = micro_steps_of(speeds, total)
    assert sum(micro_steps) == total and min(micro_steps) >= 1
    blocks = np.arange(total * batch)
    shares = [micro_batches(blocks, batch, rank, micro_steps) for rank in range(len(speeds))]
    assert [len(share) for share in shares] == micro_steps
    assert sorted(np.concatenate(shares).ravel().tolist()) == blocks.tolist()
    agreed = [agreements(micro_steps, rank) for rank in range(len(speeds))]
    assert {len(found) for found in agreed} == {min(micro_steps)}, "all agree equally often"
    assert all(0 in found for found in agreed)


def test_shares_follow_the_speed() -> None:
    assert micro_steps_of([1, 1], 64) == [32, 32]
    assert micro_steps_of([2, 3], 64) == [26, 38]
    assert micro_steps_of([1, 1000], 64) == [1, 63]
