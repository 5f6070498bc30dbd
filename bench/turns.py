"""Contenders, each a process of its own, that do a repetition when it is their turn."""

import importlib
import json
import os
import resource
import statistics
import subprocess
import sys
from pathlib import Path

import torch

REPEATS = 5


def serve(name: str, folder: str, *arguments: str) -> None:
    """Be one contender: a repetition for each line read, its seconds and the peak memory out.

    name: a module of this package and a function in it, which returns what does a repetition.
    """
    module, _, function = name.partition(".")
    step = getattr(importlib.import_module(f"bench.{module}"), function)(folder, *arguments)
    for _ in sys.stdin:
        seconds = step()
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6  # GB, from kB
        if torch.cuda.is_available():
            peak = torch.cuda.max_memory_allocated() / 1e9
        print(json.dumps([seconds, peak]), flush=True)
    os._exit(0)


def compare(folder: str, *contenders: tuple[str, ...]) -> list[tuple[float, float]]:
    """The median seconds of each contender's repetitions, in turns, and its peak memory in GB.

    folder: with data that they may read. contenders: as in `serve`, with its arguments.
    """
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "bench", "serve", name, folder, *arguments],
            cwd=Path(__file__).parent.parent,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for name, *arguments in contenders
    ]
    measured: list[list[tuple[float, float]]] = [[] for _ in contenders]
    for _ in range(1 + REPEATS):
        for process, found in zip(processes, measured, strict=True):
            process.stdin.write("\n")
            process.stdin.flush()
            found.append(json.loads(process.stdout.readline()))
    for process in processes:
        process.stdin.close()
        process.wait()
    return [
        (statistics.median(seconds for seconds, _ in found[1:]), max(peak for _, peak in found))
        for found in measured
    ]
