"""The order of the data: the blocks of each step, as a pure function of seed and step.

It depends neither on the batch size nor on the number of processes.
"""

import functools
from collections.abc import Sequence

import numpy as np


def step_blocks(n_blocks: int, blocks_per_step: int, seed: int, step: int) -> np.ndarray:
    """The blocks of one step, (blocks_per_step,) int64: a pure function of its arguments.

    Blocks are drawn without replacement, epoch by epoch: an endless sequence of permutations
    of all blocks, of which step k (from 0) reads the k-th stretch.
    """
    positions = np.arange(step * blocks_per_step, (step + 1) * blocks_per_step)
    epochs, places = np.divmod(positions, n_blocks)
    blocks = np.empty(blocks_per_step, np.int64)
    for epoch in np.unique(epochs):
        here = epochs == epoch
        blocks[here] = _epoch_order(n_blocks, seed, int(epoch))[places[here]]
    return blocks


@functools.lru_cache(maxsize=2)
def _epoch_order(n_blocks: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(n_blocks)


def micro_steps_of(shares: Sequence[float], total: int) -> list[int]:
    """How many of `total` micro-steps each process takes: in proportion to its share, at least one.

    total: no fewer than there are shares.
    """
    exact = np.array(shares) / sum(shares) * total
    steps = np.maximum(np.floor(exact).astype(int), 1)
    while steps.sum() != total:  # the one that is furthest from its share gives or takes
        if steps.sum() < total:
            steps[(exact - steps).argmax()] += 1
        else:
            steps[np.where(steps > 1, steps - exact, -np.inf).argmax()] -= 1
    return steps.tolist()


def owners(micro_steps: Sequence[int]) -> np.ndarray:
    """The process of each micro-batch of a step, (sum of micro_steps,), evenly interleaved.

    For equal processes 0, 1, 0, 1, ...
    """
    credit, found = np.zeros(len(micro_steps), np.int64), []
    for _ in range(sum(micro_steps)):
        credit += micro_steps
        found.append(int(credit.argmax()))
        credit[found[-1]] -= sum(micro_steps)
    return np.array(found)


def micro_batches(
    blocks: np.ndarray, batch_size: int, rank: int, micro_steps: Sequence[int]
) -> np.ndarray:
    """The blocks of one process, (micro-steps, batch_size), out of those of a step.

    micro_steps: those of each process.
    """
    return blocks.reshape(-1, batch_size)[owners(micro_steps) == rank]


def agreements(micro_steps: Sequence[int], rank: int) -> set[int]:
    """The micro-steps of a process before which all agree whether to stop.

    As many in each process, at equal parts of its work: nobody waits for a slower one.
    """
    parts = np.array_split(np.arange(micro_steps[rank]), min(micro_steps))
    return {int(part[0]) for part in parts}


def dropout_seed(seed: int, step: int, rank: int) -> int:
    """The seed of the dropout of one process in one step."""
    return int(np.random.SeedSequence([seed, step, rank]).generate_state(1, np.uint64)[0] >> 1)
