"""Executing the runs of a study on this machine, several at a time."""

import os
import signal
import subprocess
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch

from impossible import files
from impossible.settings import UserError
from impossible.study import children, states
from impossible.study.plan import Command, Plan, Run, is_on_gpus

_PAUSE = 0.2  # seconds between two looks at the processes


class Stop:
    """How many signals have asked the study to end. The second one ends its processes at once."""

    def __init__(self) -> None:
        self.count = 0
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, self._note)

    def _note(self, *_: Any) -> None:
        self.count += 1


class Job(NamedTuple):
    """A command of a run that is being executed."""

    run: Run
    command: Command
    process: "subprocess.Popen[bytes]"
    env: dict[str, str]  # its share of the machine


def shares_of(plan: Plan) -> list[dict[str, str]]:
    """The shares of this machine, one for each run at a time, as variables of the environment.

    A share is `gpus` GPUs or, without GPUs, one core; on a Mac, the whole device. Raises UserError
    if there are too few GPUs.
    """
    wanted, gpus = plan.settings.at_once, plan.processes
    device = plan.shared.get("device", "auto")
    if not is_on_gpus(plan.settings, plan.shared):
        is_mps = device == "mps" or (device == "auto" and torch.backends.mps.is_available())
        count = wanted or (1 if is_mps else cores())
        return [{"OMP_NUM_THREADS": str(max(1, cores() // count))}] * count
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    names = visible.split(",") if visible else [str(i) for i in range(torch.cuda.device_count())]
    groups = [names[i : i + gpus] for i in range(0, len(names) - gpus + 1, gpus)]
    if not groups:
        advice = f"Set --gpus={len(names)} or fewer." if names else "Set --device=cpu."
        raise UserError(f"a run needs {gpus} GPU(s), and this machine has {len(names)}. {advice}")
    count = wanted or len(groups)
    return [{"CUDA_VISIBLE_DEVICES": ",".join(groups[i % len(groups)])} for i in range(count)]


def cores() -> int:
    """The cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def watch(command: Command, output: Path, stop: Stop) -> str:
    """Execute one command to its end. Returns nothing, or why it did not end well."""
    print(command, flush=True)
    process = children.start(command, output, {})
    asked = 0
    while (code := process.poll()) is None:
        if stop.count > asked:
            asked = stop.count
            children.end(process, at_once=asked > 1)
        time.sleep(_PAUSE)
    if code == 0 or stop.count:
        return "" if code == 0 else "stopped"
    return f"killed by signal {-code}" if code < 0 else states.error_in(output)


def execute(plan: Plan, stop: Stop) -> None:
    """Execute what is left of all runs, until all are done or have failed, or a signal comes."""
    left = [run for run in plan.runs if states.following(plan, run)]
    waiting = [run for run in left if not states.read(run.folder).failed]
    if waiting:
        _Execution(plan, stop, waiting, shares_of(plan)).go()


@dataclass
class _Execution:
    plan: Plan
    stop: Stop
    waiting: list[Run]
    free: list[dict[str, str]]  # shares of the machine
    jobs: list[Job] = field(default_factory=list)
    attempts: Counter[str] = field(default_factory=Counter)  # run -> at its present command
    asked: int = 0  # how many signals have been passed on
    told: set[str] = field(default_factory=set)  # runs that other processes write to

    def go(self) -> None:
        while (self.waiting and not self.stop.count) or self.jobs:
            while self.free and not self.stop.count and (run := self._next()):
                self._begin(run, self.free.pop(0))
            if self.stop.count > self.asked:
                self._pass_on()
            for job in list(self.jobs):
                if (code := job.process.poll()) is not None:
                    self._ended(job, code)
            time.sleep(_PAUSE)

    def _next(self) -> Run | None:
        """Take the first run that no other process writes to (one may still be ending)."""
        for run in self.waiting:
            if not files.is_locked(run.folder):
                self.waiting.remove(run)
                return run
            if run.name not in self.told:
                self.told.add(run.name)
                print(f"{run.name}: waiting for another process that writes to {run.folder}")
        return None

    def _begin(self, run: Run, env: dict[str, str]) -> None:
        command = states.following(self.plan, run)
        states.begin(run, command)
        print(f"{run.name}: {command}", flush=True)
        self.jobs.append(Job(run, command, children.start(command, run.output, env), env))

    def _pass_on(self) -> None:
        self.asked = self.stop.count
        stops = "stopping: each run finishes its current step"
        print(stops if self.asked == 1 else "ending all processes", flush=True)
        for job in self.jobs:
            children.end(job.process, at_once=self.asked > 1)

    def _ended(self, job: Job, code: int) -> None:
        """Record how a command ended, and start the next one of its run or free its share."""
        self.jobs.remove(job)
        children.end_group(job.process)
        self.attempts[job.run.name] += 1
        gives_up = self.attempts[job.run.name] >= states.ATTEMPTS
        how = states.end(job.run, job.command, code, bool(self.stop.count), gives_up)
        failed = states.read(job.run.folder).failed
        told = f"failed. {failed}" if failed else f"{job.command.script} {how}"
        following = states.following(self.plan, job.run)
        if not following:
            done = sum(not states.following(self.plan, run) for run in self.plan.runs)
            told += f" ({done} of {len(self.plan.runs)} runs are done)"
        print(f"{job.run.name}: {told}", flush=True)
        if how == "done" and following and not self.stop.count:
            del self.attempts[job.run.name]
            self._begin(job.run, job.env)
            return
        self.free.append(job.env)
        if how == "interrupted" and not gives_up:
            self.waiting.append(job.run)
