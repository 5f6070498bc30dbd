"""The order of the data: the blocks of each step, as a pure function of seed and step.

It depends neither on the batch size nor on the number of processes.
"""

import functools

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


def micro_batches(blocks: np.ndarray, batch_size: int, rank: int, world_size: int) -> np.ndarray:
    """The blocks of one process, (micro-steps, batch_size), out of those of a step."""
    return blocks.reshape(-1, world_size, batch_size)[:, rank]


def dropout_seed(seed: int, step: int, rank: int) -> int:
    """The seed of the dropout of one process in one step."""
    return int(np.random.SeedSequence([seed, step, rank]).generate_state(1, np.uint64)[0] >> 1)
