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
        try:
            seconds = step()
        except Exception as error:
            print(json.dumps(f"{type(error).__name__}: {error}"), flush=True)
            os._exit(1)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6  # GB, from kB
        if torch.cuda.is_available():
            peak = torch.cuda.max_memory_allocated() / 1e9
            torch.cuda.empty_cache()  # for the others
        print(json.dumps([seconds, peak]), flush=True)
    os._exit(0)


def compare(folder: str, *contenders: tuple[str, ...]) -> list[tuple[float, float]]:
    """The median seconds of each contender's repetitions, in turns, and its peak memory in GB.

    folder: with data that they may read. contenders: as in `serve`, with its arguments.
    """
    processes: list[subprocess.Popen[str]] = []
    measured: list[list[tuple[float, float]]] = [[] for _ in contenders]
    try:
        for name, *arguments in contenders:
            command = [sys.executable, "-m", "bench", "serve", name, folder, *arguments]
            processes.append(
                subprocess.Popen(
                    command,
                    cwd=Path(__file__).parent.parent,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                )
            )
            _turn(processes[-1], name)  # begins alone, and compiles; not counted
        for _ in range(REPEATS):
            for process, (name, *_), found in zip(processes, contenders, measured, strict=True):
                found.append(_turn(process, name))
    finally:
        for process in processes:
            process.stdin.close()
            process.wait()
    return [
        (statistics.median(seconds for seconds, _ in found), max(peak for _, peak in found))
        for found in measured
    ]


def _turn(process: subprocess.Popen[str], name: str) -> tuple[float, float]:
    """One repetition of a contender: its seconds and its peak memory. Raises RuntimeError."""
    process.stdin.write("\n")
    process.stdin.flush()
    answer = json.loads(process.stdout.readline() or '"it ended: was its memory too large?"')
    if isinstance(answer, str):
        raise RuntimeError(f"{name}: {answer}")
    return tuple(answer)
