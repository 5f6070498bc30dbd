"""Executing the runs of a study on this machine, several at a time."""

import os
import signal
import subprocess
import time
from collections import Counter
from typing import Any, NamedTuple

from impossible.study import children, states
from impossible.study.plan import Command, Plan, Run

_PAUSE = 0.2  # seconds between two looks at the processes
_ATTEMPTS = 3  # of a run that is killed, within one study


class Slot(NamedTuple):
    """A share of this machine, for one run at a time."""

    env: dict[str, str]  # of its processes


class Job(NamedTuple):
    """A command of a run that is being executed."""

    run: Run
    command: Command
    process: "subprocess.Popen[bytes]"


class Stop:
    """Whether a signal has asked the study to end; a second one ends its processes at once."""

    def __init__(self) -> None:
        self.count = 0
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, self._note)

    def _note(self, *_: Any) -> None:
        self.count += 1


def slots_of(plan: Plan) -> list[Slot]:
    """The shares of this machine: `gpus` GPUs each or, without GPUs, one core each."""
    import torch

    wanted, gpus = plan.settings.at_once, max(1, plan.settings.gpus)
    device = plan.runs[0].training.device
    if device == "cpu" or (device == "auto" and not torch.cuda.is_available()):
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        count = wanted or cores
        return [Slot({"OMP_NUM_THREADS": str(max(1, cores // count))})] * count
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    names = visible.split(",") if visible else [str(i) for i in range(torch.cuda.device_count())]
    groups = [names[i : i + gpus] for i in range(0, len(names) - gpus + 1, gpus)]
    count = wanted or len(groups)
    return [Slot({"CUDA_VISIBLE_DEVICES": ",".join(groups[i % len(groups)])}) for i in range(count)]


def prepare(plan: Plan, stop: Stop) -> str:
    """Prepare the token files of all runs. Returns how the command ended, and its error."""
    output = plan.folder / "prepare.txt"
    return watch(plan.preparing, output, stop)


def watch(command: Command, output: Any, stop: Stop) -> str:
    """Execute one command to its end. Returns an empty string, `interrupted`, or its error."""
    process = children.start(command, output, {})
    asked = 0
    while (code := process.poll()) is None:
        if stop.count > asked:
            asked = stop.count
            children.ask_to_end(process) if asked == 1 else children.kill(process)
        time.sleep(_PAUSE)
    if code == 0:
        return ""
    return "interrupted" if stop.count or code < 0 else states.error_in(output)


def execute(plan: Plan, slots: list[Slot], stop: Stop) -> None:
    """Execute what is left of all runs, until all are done or have failed, or a signal comes."""
    waiting = [run for run in plan.runs if states.following(plan, run) and not failed(run)]
    free, jobs, attempts, asked = list(slots), {}, Counter(), 0
    while (waiting and not stop.count) or jobs:
        while waiting and free and not stop.count:
            run = waiting.pop(0)
            slot = free.pop(0)
            jobs[run.name] = (slot, _begin(plan, run, slot))
        if stop.count > asked:
            asked = stop.count
            print("stopping all runs after whole steps" if asked == 1 else "ending all processes")
            for _, job in jobs.values():
                children.ask_to_end(job.process) if asked == 1 else children.kill(job.process)
        for name, (slot, job) in list(jobs.items()):
            if (code := job.process.poll()) is None:
                continue
            del jobs[name]
            how = states.end(job.run, job.command, code, bool(stop.count))
            tell(plan, job, how)
            if how == "done" and not stop.count and states.following(plan, job.run):
                jobs[name] = (slot, _begin(plan, job.run, slot))
                continue
            free.append(slot)
            attempts[name] += 1
            if how == "interrupted" and attempts[name] < _ATTEMPTS:
                waiting.append(job.run)
        time.sleep(_PAUSE)


def failed(run: Run) -> bool:
    """Whether a command of a run failed, and has not been tried again."""
    return bool(states.read(run.folder).failed)


def _begin(plan: Plan, run: Run, slot: Slot) -> Job:
    command = states.following(plan, run)
    states.begin(run, command)
    print(f"{run.name}: {command}", flush=True)
    return Job(run, command, children.start(command, run.output, slot.env))


def tell(plan: Plan, job: Job, how: str) -> None:
    """Print how a command of a run ended."""
    state = states.read(job.run.folder)
    reason = f" ({state.failed})" if state.failed else ""
    print(f"{job.run.name}: {job.command.script} {how}{reason}", flush=True)
