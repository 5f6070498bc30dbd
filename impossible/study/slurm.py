"""Executing the runs of a study as jobs of SLURM, submitted through submitit."""

import contextlib
import getpass
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any, NoReturn

from impossible import files
from impossible.settings import UserError
from impossible.study import children, states
from impossible.study.local import Stop
from impossible.study.plan import ROOT, Command, Plan, Run

NAME = "jobs.json"  # name of a run, `prepare` or `results` -> number of its latest job
PREPARE = "prepare"
_LONGEST_WAIT = 3600.0  # seconds for another process that writes results
_PAUSE = 0.5  # seconds between two looks at a process
_NOTICE = 120  # seconds before its time limit in which a job may save the last whole step
_RESTARTS = 100_000  # after time limits: as many as it takes


class StoppedError(Exception):
    """Another process executes the run; the study resumes it when it is started again."""


class Chain:
    """A job: commands one after the other. submitit sends it to another machine and calls it."""

    def __init__(self, plan: Plan, run: Run | None) -> None:
        """run: the one whose commands are executed; None: the text is prepared."""
        self.plan = plan
        self.run = run
        self._command: Command | None = None  # that is being executed
        self._child: subprocess.Popen[bytes] | None = None
        self._is_stopped = False

    def __getstate__(self) -> dict[str, Any]:
        return vars(Chain(self.plan, self.run))

    def __call__(self) -> None:
        """Execute what is left. Raises an error, which fails the job, unless all ends well."""
        # Of scancel, or of SLURM before it starts the job again elsewhere; submitit ignores it.
        signal.signal(signal.SIGTERM, lambda *_: self._stop())
        if self.run is None:
            output = self.plan.folder / states.PREPARING
            if self._execute(self.plan.preparing, output):
                if self._is_stopped:
                    _give_way()
                raise RuntimeError(states.error_in(output))
            return
        if files.is_locked(self.run.folder):
            raise StoppedError(f"another process is writing to {self.run.folder}")
        attempts: Counter[str] = Counter()
        while command := states.following(self.plan, self.run):
            if self._is_stopped:
                _give_way()
            states.begin(self.run, command, os.environ["SLURM_JOB_ID"])
            code = self._execute(command, self.run.output)
            attempts[command.key] += 1
            gives_up = attempts[command.key] >= states.ATTEMPTS
            how = states.end(self.run, command, code, self._is_stopped, gives_up)
            if how == "failed":
                raise RuntimeError(states.read(self.run.folder).failed)
            self._is_stopped |= how == "interrupted" and code == states.EXIT_STOPPED

    def _execute(self, command: Command, output: Path) -> int:
        threads = max(1, self.plan.settings.cpus // command.processes)
        self._command = command
        self._child = children.start(command, output, {"OMP_NUM_THREADS": str(threads)})
        while (code := self._child.poll()) is None:
            time.sleep(_PAUSE)
        children.end_group(self._child)
        return code

    def _stop(self) -> None:
        self._is_stopped = True
        if self._child is not None and self._child.returncode is None:
            children.end(self._child)

    def checkpoint(self) -> Any:
        """Stop after a whole step, and say what to execute next time.

        submitit calls this in its handler of the signal before a time limit, and then ends this
        process.
        """
        from submitit.helpers import DelayedSubmission

        self._stop()
        if self._child is not None and self._child.returncode is None:
            # Not wait(): this may have interrupted poll(), which holds the lock of both.
            with contextlib.suppress(ChildProcessError):
                os.waitid(os.P_PID, self._child.pid, os.WEXITED | os.WNOWAIT)
        if self.run is not None and self._command is not None:
            states.end(self.run, self._command, states.EXIT_STOPPED, is_stopped=True)
        return DelayedSubmission(Chain(self.plan, self.run))


class Results:
    """The last job: the joint results of all runs that are done."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan

    def __call__(self) -> None:
        """Write them."""
        from impossible.study import results

        with files.locked(self.plan.folder, wait=_LONGEST_WAIT):
            stop = Stop()
            results.write(self.plan, stop)
        if stop.count:
            _give_way()

    def checkpoint(self) -> Any:
        """Begin again in another job."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def _give_way() -> NoReturn:
    """End a job that was asked to end. Unless it was cancelled, it goes back into the queue."""
    job = os.environ["SLURM_JOB_ID"]
    shown = subprocess.run(
        ["scontrol", "show", "job", job], capture_output=True, text=True, check=False
    )
    if {"JobState=RUNNING", "JobState=PREEMPTED"} & set(shown.stdout.split()):
        subprocess.run(["scontrol", "requeue", job], check=False)
    sys.exit(states.EXIT_STOPPED)


def require(plan: Plan) -> None:
    """Raise UserError if there is no SLURM here, or if its jobs cannot write to the study."""
    if "%" in str(plan.folder.absolute()):
        raise UserError(
            f"study_dir = {plan.folder.absolute()} contains %, which SLURM replaces in the names "
            "of files. Choose another folder with --study_dir="
        )
    if not shutil.which("sbatch"):
        raise UserError(
            "cluster = slurm, but there is no command sbatch. Run this on a login node of the "
            "cluster, or leave --cluster= out."
        )


def submit(plan: Plan) -> None:
    """Submit what is left of the study, each run as a job, unless its job is still there.

    Raises UserError if SLURM refuses a job.
    """
    alive, recorded = jobs(plan), _recorded(plan)
    left = [run for run in plan.runs if states.following(plan, run)]
    new = [run for run in left if run.name not in alive and not states.read(run.folder).failed]
    after = ""
    if new:  # it does nothing where all is prepared, and refuses data of other text
        before = f"afterany:{recorded[PREPARE]}" if PREPARE in alive else ""
        after = f"afterok:{_submit(plan, PREPARE, Chain(plan, None), before)}"
    submitted = [_submit(plan, run.name, Chain(plan, run), after) for run in new]
    if not submitted and "results" in alive:
        return
    if "results" in alive:  # it waits for fewer runs than there are now
        subprocess.run(["scancel", recorded["results"]], check=False)
    waited = submitted + [recorded[run.name] for run in left if run.name in alive]
    _submit(plan, "results", Results(plan), f"afterany:{':'.join(waited)}" if waited else "")


def _submit(plan: Plan, name: str, job: Chain | Results, dependency: str) -> str:
    """Submit one job. Returns its number."""
    import submitit
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    s, is_run = plan.settings, name not in (PREPARE, "results")
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    executor = submitit.SlurmExecutor(
        plan.folder / "slurm",
        max_num_timeout=_RESTARTS if is_run else 3,  # what begins anew each time may never end
        python=shlex.join(["env", f"PYTHONPATH={path}", sys.executable]),
    )
    options = {"partition": s.partition, "account": s.account, "dependency": dependency}
    options |= {"gpus_per_node": s.gpus} if is_run and plan.settings.gpus else {}
    executor.update_parameters(
        job_name=f"{plan.name}-{name}",
        time=round(s.hours * 60),
        cpus_per_task=s.cpus,
        srun_args=[f"--cpus-per-task={s.cpus}"],  # which srun does not take from the job
        mem=f"{s.memory_gb}G",
        signal_delay_s=_NOTICE,
        stderr_to_stdout=True,
        additional_parameters={"requeue": True, "kill-on-invalid-dep": "yes"},
        **{key: value for key, value in options.items() if value},
    )
    try:
        number = executor.submit(job).job_id
    except (FailedJobError, FailedSubmissionError, OSError) as error:
        raise UserError(
            f"SLURM did not accept the job {name} ({error}). Is this a login node of a cluster, "
            "and are --partition= and --account= right?"
        )
    files.write_json(plan.folder / NAME, _recorded(plan) | {name: number})
    print(f"{name}: job {number}" + (f" ({dependency})" if dependency else ""), flush=True)
    return number


def _recorded(plan: Plan) -> dict[str, str]:
    path = plan.folder / NAME
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return {}
    except (ValueError, TypeError) as error:
        raise UserError(
            f"{path} is damaged ({error}). It contains the numbers of the study's jobs. If "
            f"squeue --me shows jobs named {plan.name}-..., cancel them with scancel. Then delete "
            "the file."
        )


def jobs(plan: Plan) -> dict[str, str]:
    """The jobs of the study that SLURM still has, by name: their states.

    Raises UserError if SLURM does not answer, or if their record is damaged.
    """
    recorded = _recorded(plan) if shutil.which("squeue") else {}
    if not recorded:
        return {}
    command = ["squeue", "--noheader", "--format=%i %T", f"--user={getpass.getuser()}"]
    told = subprocess.run(command, capture_output=True, text=True, check=False)
    if told.returncode:
        raise UserError(f"squeue failed ({told.stderr.strip()}). Run the same command again later.")
    states_of = dict(line.split() for line in told.stdout.splitlines())
    alive = {name: states_of[job] for name, job in recorded.items() if job in states_of}
    return {name: state for name, state in alive.items() if state != "COMPLETING"}
