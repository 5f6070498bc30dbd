"""Executing the next command of each task, in slots of this machine or in jobs of SLURM."""

import contextlib
import ctypes
import dataclasses
import functools
import getpass
import hashlib
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import torch

from impossible import files
from impossible.settings import ROOT, UserError
from impossible.study.plan import Plan, is_on_gpus
from impossible.study.tasks import Command, Task

EXIT_STOPPED = 75  # of train.py: the last whole step is saved
_ATTEMPTS = 3  # of a command that is killed
_PAUSE = 0.2  # seconds between two looks at the processes
_NOTICE = 120  # seconds before its time limit in which a job may save the last whole step
_RESTARTS = 10  # of a job that starts from the beginning each time, and so might never end
_PR_SET_PDEATHSIG = 1  # of Linux's prctl.h
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None  # before a process is forked
# torchrun itself exits with 1. Its output says, below the heading of the process that ended first,
# whether that process was killed or asked to end. (torchrun then asks the others to end.)
_BY_SIGNAL = re.compile(rf"Root Cause(?s:.*)(Signal (9|15) \(SIG|exitcode *: {EXIT_STOPPED}\b)")
_KILLED = (
    f"killed {_ATTEMPTS} times, perhaps because memory ran out. Use a smaller --batch_size= or "
    "--at_once=, or more --memory_gb= on SLURM."
)
# Advice in the errors of commands, which a study replaces with its own.
_FOLDERS = re.compile(r"--(data|out|eval)_dir=( or --(data|out|eval)_dir=)*")
_AGAIN = re.compile(r"(R|r)un the same command again")


class Stop:
    """Counts the signals that ask the study to end. The second one ends its processes at once."""

    def __init__(self, is_job: bool = False) -> None:
        """is_job: in a job of SLURM, which may send several signals; they count as one."""
        self.count = 0
        self._most = 1 if is_job else sys.maxsize
        also = [signal.SIGUSR2] if is_job else []  # before the time limit
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, *also):
            if signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, self._note)

    def _note(self, *_: Any) -> None:
        self.count = min(self.count + 1, self._most)


class Attempt(NamedTuple):
    """A command that is being executed."""

    task: Task
    command: Command
    inputs: dict[str, str]  # of the command, when it was started
    process: "subprocess.Popen[bytes]"
    slot: dict[str, str]


def perform(task: Task, stop: Stop) -> None:
    """Execute one task, even if it failed before. Raises UserError if it fails now."""
    task.error_file.unlink(missing_ok=True)
    if task.is_repeated:
        task.state_file.unlink(missing_ok=True)
    execute([task], [{}], stop)
    if error := task.error:
        raise UserError(f"{task.name} failed: {error}")


def execute(tasks: list[Task], slots: list[dict[str, str]], stop: Stop) -> None:
    """Execute the remaining commands of tasks, until all are done or failed, or a signal comes.

    slots: each executes one command at a time, with these environment variables.
    """
    waiting = [task for task in tasks if task.following and not task.error]
    running: list[Attempt] = []
    attempts: Counter[tuple[str, str]] = Counter()
    announced: set[str] = set()
    signals = 0
    while running or (waiting and not stop.count):
        for attempt in [attempt for attempt in running if attempt.process.poll() is not None]:
            running.remove(attempt)
            slots.insert(0, attempt.slot)
            task, key = attempt.task, (attempt.task.name, attempt.command.key)
            attempts[key] += 1
            result = _end(attempt, bool(stop.count), attempts[key] >= _ATTEMPTS)
            if result == "done" and task.following:
                waiting.insert(0, task)
            elif result == "done" and len(tasks) > 1:
                done = sum(not task.following for task in tasks)
                result += f" ({done} of {len(tasks)} runs are done)"
            elif result == "interrupted" and attempts[key] < _ATTEMPTS:
                waiting.append(task)
            print(f"{task.name}: {attempt.command.script} {result}", flush=True)
        while slots and not stop.count and (task := _first_free(waiting, announced)):
            waiting.remove(task)
            running.append(_begin(task, slots.pop(0)))
        if stop.count > signals:
            signals = stop.count
            each = "stopping: each run saves its last whole step"
            print(each if signals == 1 else "ending all processes", flush=True)
            for attempt in running:
                if signals > 1:
                    os.killpg(attempt.process.pid, signal.SIGKILL)  # torchrun's workers still save
                else:
                    attempt.process.terminate()  # a run saves when its step is complete
        time.sleep(_PAUSE)


def _first_free(waiting: list[Task], announced: set[str]) -> Task | None:
    """The first task whose folder is not in use, or None. announced: those reported before."""
    for task in waiting:
        folder = task.output.parent
        if not files.is_locked(folder):
            return task
        if task.name not in announced:
            announced.add(task.name)
            print(f"{task.name}: waiting for another process that writes to {folder}")
    return None


def _begin(task: Task, slot: dict[str, str]) -> Attempt:
    """Start the next command of a task, and record the time."""
    command, state = task.following, task.state
    if state.since and task.output.exists():  # the study was killed too, and recorded no end
        state.seconds += max(0.0, task.output.stat().st_mtime - state.since)
    state.since = time.time()
    files.write_json(task.state_file, dataclasses.asdict(state))
    print(f"{task.name}: {command}", flush=True)
    inputs = task.inputs(command)
    return Attempt(task, command, inputs, start(command, task.output, slot), slot)


def _end(attempt: Attempt, is_stopped: bool, gives_up: bool) -> str:
    """Record how a command ended. Returns `done`, `interrupted` or `failed` with its error.

    is_stopped: whether the study was asked to end. gives_up: whether a killed command is a failure.
    """
    task, command, code = attempt.task, attempt.command, attempt.process.returncode
    with contextlib.suppress(ProcessLookupError):  # processes that a killed command left behind
        os.killpg(attempt.process.pid, signal.SIGTERM)
    state = task.state
    state.seconds += max(0.0, time.time() - state.since)
    state.since = 0.0
    if code == 0:
        task.note_finished(state, command, attempt.inputs)
    files.write_json(task.state_file, dataclasses.asdict(state))
    if code == 0:
        return "done"
    is_killed = code < 0 or (command.processes > 1 and _BY_SIGNAL.search(_tail(task.output)))
    if is_stopped or code == EXIT_STOPPED or (is_killed and not gives_up):
        return "interrupted"
    error = _KILLED if is_killed else adapted(error_in(task.output))
    with files.atomic_write(task.error_file) as file:
        file.write(f"{command.script}: {error} (in {task.output})".encode())
    return f"failed. {error} (in {task.output})"


def start(command: Command, output: Path, env: dict[str, str]) -> "subprocess.Popen[bytes]":
    """Start a command whose output is added to a file.

    The command has its own process group, so that Ctrl-C does not reach it. If the study is killed,
    Linux sends the command SIGTERM, after which train.py saves the last whole step.
    """
    with open(output, "ab") as file:
        file.write(f"\n$ {command}  # {time.strftime('%Y-%m-%d %H:%M:%S')}\n".encode())
        file.flush()
        return subprocess.Popen(
            command.line,
            env=os.environ | env,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=functools.partial(_end_with, os.getpid()) if _LIBC else None,
        )


def _end_with(parent: int) -> None:
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:  # the parent was killed before the line above
        os._exit(1)


def adapted(error: str) -> str:
    """An error of a run with advice that helps in a study."""
    return _AGAIN.sub(r"\1un the study again with --retry", _FOLDERS.sub("--study_dir=", error))


def error_in(output: Path) -> str:
    """The last error in the output of the latest command, or else its last lines.

    For an unexpected error, this is the last line of its traceback.
    """
    text = _tail(output)
    errors = re.findall(r"^error: (.*)", text, re.MULTILINE)
    if errors and not errors[-1].startswith("unexpected error"):
        return errors[-1]
    exceptions = re.findall(r"^Traceback \(most.*\n(?: .*\n)*(.+)", text, re.MULTILINE)
    causes = [line for line in exceptions if "ChildFailedError" not in line]  # torchrun's own
    return causes[-1] if causes else " / ".join(text.split("\n")[-3:]) or "no output"


def _tail(output: Path) -> str:
    """The end of a file, after the line of the latest command, without empty lines."""
    text = output.read_bytes()[-20_000:].decode(errors="replace") if output.exists() else ""
    latest = text.rpartition("\n$ ")[2].partition("\n")[2]
    return "\n".join(line for line in latest.splitlines() if line.strip())


def slots_of(plan: Plan) -> list[dict[str, str]]:
    """The slots of this machine, one for each run at a time, as environment variables.

    A slot is `gpus` GPUs or, without GPUs, one core; on a Mac, the whole device; in a job of SLURM,
    all of its cores. Raises UserError if there are too few GPUs.
    """
    study, device = plan.settings, plan.runs[0].settings.device
    gpus = plan.runs[0].commands[0].processes
    if study.job:
        return [{"OMP_NUM_THREADS": str(max(1, study.cpus // gpus))}]
    if not is_on_gpus(study, device):
        is_mps = device == "mps" or (device == "auto" and torch.backends.mps.is_available())
        count = study.at_once or (1 if is_mps else cores())
        return [{"OMP_NUM_THREADS": str(max(1, cores() // count))}] * count
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    names = visible.split(",") if visible else [str(i) for i in range(torch.cuda.device_count())]
    groups = [names[i : i + gpus] for i in range(0, len(names) - gpus + 1, gpus)]
    if not groups:
        advice = f"Set --gpus={len(names)} or fewer." if names else "Set --device=cpu."
        raise UserError(f"a run needs {gpus} GPU(s), and this machine has {len(names)}. {advice}")
    count = study.at_once or len(groups)
    return [{"CUDA_VISIBLE_DEVICES": ",".join(groups[i % len(groups)])} for i in range(count)]


def cores() -> int:
    """The number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


class Job(NamedTuple):
    """A job of SLURM: study.py itself with --job=NAME."""

    number: str
    state: str


def jobs_of(plan: Plan) -> dict[str, Job]:
    """The jobs of the study by name: prepare, results, or that of a run.

    Raises UserError if SLURM does not answer.
    """
    if not (plan.folder / "slurm").exists() or not shutil.which("squeue"):
        return {}
    command = ["squeue", "--noheader", "--format=%i %T %j", f"--user={getpass.getuser()}"]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    if answer.returncode:
        error = answer.stderr.strip()
        raise UserError(f"squeue failed ({error}). Run the same command again later.")
    jobs, prefix = {}, _job_name(plan, "")
    for number, state, name in (line.split(maxsplit=2) for line in answer.stdout.splitlines()):
        if name.startswith(prefix) and state != "COMPLETING":
            jobs[name.removeprefix(prefix)] = Job(number, state)
    return jobs


def _job_name(plan: Plan, name: str) -> str:
    """The name of a job on SLURM, which no job of another folder has."""
    folder = str(plan.folder.resolve()).encode()
    return f"{plan.name}-{hashlib.sha256(folder).hexdigest()[:8]}-{name}"


def submit(plan: Plan) -> None:
    """Submit each run that is not done as a job, unless SLURM has its job already.

    Raises UserError if SLURM refuses a job.
    """
    (plan.folder / "slurm").mkdir(exist_ok=True)
    jobs = jobs_of(plan)
    unfinished = [run for run in plan.runs if run.following]
    new = [run for run in unfinished if run.name not in jobs and not run.error]
    after = ""
    if new:  # `prepare` does nothing if all data are complete, and refuses data of other text
        before = f"afterany:{jobs['prepare'].number}" if "prepare" in jobs else ""
        after = f"afterok:{_submit(plan, 'prepare', before)}"
    submitted = [_submit(plan, run.name, after) for run in new]
    if not submitted and "results" in jobs:
        return
    if "results" in jobs:  # the old job waits for fewer runs than there are now
        subprocess.run(["scancel", jobs["results"].number], check=False)
    numbers = submitted + [jobs[run.name].number for run in unfinished if run.name in jobs]
    _submit(plan, "results", f"afterany:{':'.join(numbers)}" if numbers else "")


def _submit(plan: Plan, name: str, dependency: str) -> str:
    """Submit one job. Returns its number."""
    study, output = plan.settings, plan.folder.resolve() / "slurm" / name
    cpus = f"--cpus-per-task={study.cpus}"  # which srun does not take from the job
    options = {
        "job-name": _job_name(plan, name),
        "output": str(output).replace("%", "%%") + "-%j.txt",
        "open-mode": "append",  # when it is requeued
        "time": round(study.hours * 60),
        "mem": f"{study.memory_gb}G",
        "signal": f"USR2@{_NOTICE}",
        "gpus-per-node": study.gpus if name not in ("prepare", "results") else 0,
        "partition": study.partition,
        "account": study.account,
        "dependency": dependency,
        "kill-on-invalid-dep": "yes",
    }
    texts = [f"--{option}={value}" for option, value in options.items() if value]
    command = ["srun", cpus, sys.executable, "-u", str(ROOT / "study.py")]
    command += [*plan.arguments({"job"}), f"--job={name}"]
    line = ["sbatch", "--parsable", "--requeue", "--ntasks=1", cpus, *texts]
    line += ["--wrap", shlex.join(command)]
    answer = subprocess.run(line, capture_output=True, text=True, check=False)
    if answer.returncode:
        raise UserError(
            f"SLURM did not accept the job {name} ({answer.stderr.strip()}). Is this a login node "
            "of a cluster, and are --partition= and --account= right?"
        )
    number = answer.stdout.strip().partition(";")[0]
    print(f"{name}: job {number}" + (f" ({dependency})" if dependency else ""), flush=True)
    return number


def requeue(is_run: bool) -> None:
    """Requeue a job that was asked to end, but not cancelled. is_run: restart it without limit."""
    job = os.environ["SLURM_JOB_ID"]
    command = ["scontrol", "show", "job", job]
    shown = subprocess.run(command, capture_output=True, text=True, check=False).stdout.split()
    may_restart = is_run or int(os.environ.get("SLURM_RESTART_COUNT", "0")) < _RESTARTS
    if may_restart and {"JobState=RUNNING", "JobState=PREEMPTED"} & set(shown):
        subprocess.run(["scontrol", "requeue", job], check=False)
