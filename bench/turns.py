"""Run contenders in turn, each in a process of its own: a repetition for each line of input."""

import importlib
import json
import os
import platform
import re
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from impossible import distributed
from impossible.distributed import World
from impossible.settings import Settings, UserError

REPEATS = 5
MODEL = Settings()  # GPT-2 Small at 1,024 tokens
ROOT = Path(__file__).parent.parent


def serve(name: str, *arguments: str) -> None:
    """Run as a contender: print the seconds and the peak memory in GB of each repetition.

    name: MODULE.FUNCTION of this package. This function returns another one, without arguments,
    that runs one repetition.
    """
    module, _, function = name.partition(".")
    repeat = getattr(importlib.import_module(f"bench.{module}"), function)(*arguments)
    device = distributed.pick_device("auto", World())
    for _ in sys.stdin:
        start = time.perf_counter()
        try:
            repeat()
        except Exception as error:
            print(json.dumps(f"{type(error).__name__}: {error}"), flush=True)
            break
        distributed.synchronize(device)
        seconds = time.perf_counter() - start
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6  # GB, from kB
        if device.type == "cuda":
            peak = torch.cuda.max_memory_allocated() / 1e9
            torch.cuda.empty_cache()  # for the others
        print(json.dumps([seconds, peak]), flush=True)
    os._exit(0)


def compare(contenders: dict[str, tuple[Any, ...]]) -> dict[str, tuple[float, float]]:
    """The median seconds and the peak memory in GB of each contender, by name.

    contenders: the arguments of `serve`. The first repetition, which compiles, is not counted.
    """
    processes: list[subprocess.Popen[str]] = []
    try:
        for contender in contenders.values():
            command = [sys.executable, "-m", "bench", "serve", *map(str, contender)]
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
            processes.append(subprocess.Popen(command, cwd=ROOT, **pipes))
            _repetition(processes[-1])
        rounds = [[_repetition(process) for process in processes] for _ in range(REPEATS)]
    finally:
        for process in processes:
            process.communicate()
    return {
        name: (statistics.median(seconds for seconds, _ in results), max(p for _, p in results))
        for name, results in zip(contenders, zip(*rounds, strict=True), strict=True)
    }


def _repetition(process: subprocess.Popen[str]) -> tuple[float, float]:
    """The seconds and the peak memory of one repetition. Raises RuntimeError if it failed."""
    process.stdin.write("\n")
    process.stdin.flush()
    answer = json.loads(process.stdout.readline() or '"it ended: did it run out of memory?"')
    if isinstance(answer, str):
        raise RuntimeError(f"{process.args[-1]}: {answer}")
    return tuple(answer)


def printed(*command: Any) -> str:
    """The output of a command of the project. Raises UserError with its errors if it fails."""
    command = (sys.executable, *map(str, command))
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(f"{' '.join(command)}:\n{done.stdout}{done.stderr}")
    return done.stdout


def processor() -> str:
    """The name of this machine's processor."""
    info = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*: (.*)", info.read_text()) if info.exists() else []
    return next(iter(names), platform.processor() or platform.machine())
