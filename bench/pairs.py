"""Two processes on a CPU: beside one, and with unequal shares of a step where one is slower."""

import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist

from bench.training import BATCH, BLOCK, ours
from bench.turns import REPEATS, compare

_SHARED = 3  # micro-batches of one block in a step, for each of two unequal processes


def one_process(folder: str) -> Callable[[], float]:
    """One process with two threads, the whole micro-batch."""
    torch.set_num_threads(2)
    return ours(folder, "0.0")


def two_processes(folder: str, shares: str = "") -> Callable[[], float]:
    """Two processes with a thread each.

    With shares, as in the settings: each on a core of its own, with several micro-batches a step.
    Without: half a micro-batch each.
    """
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    _start("-m", "bench", "second", folder, port, shares)
    step = _one_of_two(0, folder, port, shares)

    def both() -> float:
        dist.broadcast(torch.zeros(()), 0)  # the second waits for it
        return step()

    return both


def _one_of_two(rank: int, folder: str, port: str, shares: str) -> Callable[[], float]:
    torch.set_num_threads(1)
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
    }
    if not shares:
        return ours(folder, "0.0", str(BATCH // 2))
    os.sched_setaffinity(0, {_cores()[rank]})
    return ours(folder, "0.0", "1", _SHARED, shares)


def second(folder: str, port: str, shares: str) -> None:
    """Run as the second of two processes until the first one ends."""
    step = _one_of_two(1, folder, port, shares)
    with contextlib.suppress(RuntimeError):  # the first has gone
        while True:
            dist.broadcast(torch.zeros(()), 0)
            step()


def table(folder: str) -> None:
    """Print how fast two processes are, and two unequal ones: one has half of its core."""
    (one, _), (two, _) = compare(folder, ("pairs.one_process",), ("pairs.two_processes",))
    print(
        f"\n1 process x 2 threads: {one:.2f} s a step; 2 processes x 1 thread: {two:.2f} s "
        f"({one / two:.2f} x as fast)\n"
    )
    if len(_cores()) < 2:
        return
    shares = ("equal", "auto")
    pin = f"import os; os.sched_setaffinity(0, {{{_cores()[1]}}})"
    busy = _start("-c", f"{pin}\nwhile True: pass")
    try:
        found = compare(folder, *(("pairs.two_processes", share) for share in shares))
    finally:
        busy.kill()
    print(
        f"Two processes with a core each; another program takes half of the second core. A step of "
        f"{2 * _SHARED} x {BLOCK} tokens, medians of {REPEATS}:\n\n"
        "| shares | s per step | speed relative to equal shares |\n|---|---|---|"
    )
    for share, (seconds, _) in zip(shares, found, strict=True):
        print(f"| {share} | {seconds:.2f} | {found[0][0] / seconds:.2f} |", flush=True)


def _cores() -> list[int]:
    """The cores that this program may use; none where they cannot be chosen."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []


def _start(*arguments: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, *arguments], cwd=Path(__file__).parent.parent)
