"""How the processes share the micro-steps of a step: equally, as the settings say, or by speed."""

import statistics
import time

import torch

from impossible.errors import UserError
from impossible.settings import Train, divisors
from impossible.training import device as devices
from impossible.training import order
from impossible.training.processes import World
from impossible.training.run import Run
from model import next_tokens

_MEASURED = 3  # micro-steps; one more, which compiles, comes before them


def given(settings: Train, world: World) -> list[int]:
    """The micro-steps of each process by the settings; empty if they are to be measured.

    Raises UserError if the processes cannot share the blocks of a step like that.
    """
    total = settings.blocks_per_step // settings.batch_size
    if settings.shares == "equal":
        _require_equal(settings, world)
        return [total // world.size] * world.size
    if total < world.size:
        raise UserError(
            f"a step has {total} micro-batches of {settings.batch_size} blocks, and there are "
            f"{world.size} processes. Set a smaller --batch_size="
        )
    if settings.shares == "auto":
        return [] if world.size > 1 else [total]
    shares = [float(share) for share in settings.shares.split(",")]
    if len(shares) != world.size:
        raise UserError(
            f"shares = {settings.shares!r} is for {len(shares)} processes, and there are "
            f"{world.size}. Give one number for each process, or set --shares=auto"
        )
    return order.micro_steps_of(shares, total)


def _require_equal(settings: Train, world: World) -> None:
    blocks = settings.blocks_per_step
    if blocks % (settings.batch_size * world.size):
        advice = "another number of processes, or --shares=auto"
        if blocks % world.size == 0:
            possible = divisors(blocks // world.size)
            advice = f"a --batch_size= of {', '.join(map(str, possible[:12]))}"
        raise UserError(
            f"the {blocks} blocks of a step cannot be shared by {world.size} processes in "
            f"micro-batches of {settings.batch_size}. Use {advice}."
        )


def settle(run: Run) -> None:
    """Measure the shares if they are neither given nor known from the training state."""
    if not run.micro_steps:
        speeds = [1 / seconds for seconds in run.world.gather(_seconds(run))]
        total = run.settings.blocks_per_step // run.settings.batch_size
        run.micro_steps = order.micro_steps_of(speeds, total)


def _seconds(run: Run) -> float:
    """The median time of a micro-step in this process, while the others work too."""
    blocks = run.train_blocks[: run.settings.batch_size].astype("int64")
    batch = torch.from_numpy(blocks).to(run.device)  # (B, T)
    seconds = []
    with run.wrapped.no_sync():
        for _ in range(1 + _MEASURED):
            run.world.gather(None)  # all begin together
            start = time.perf_counter()
            run.scaler.scale(run.loss(batch, next_tokens(batch))).backward()
            devices.synchronize(run.device)
            seconds.append(time.perf_counter() - start)
    run.optimizer.zero_grad(set_to_none=False)
    return statistics.median(seconds[1:])
