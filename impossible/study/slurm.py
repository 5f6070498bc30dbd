"""Executing the runs of a study as jobs of SLURM, submitted through submitit."""

import getpass
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from impossible import files
from impossible.errors import UserError
from impossible.study import children, states
from impossible.study.local import PREPARING, Stop
from impossible.study.plan import ROOT, Command, Plan, Run

NAME = "jobs.json"  # name of a run, `prepare` or `results` -> number of its latest job
_PAUSE = 0.5  # seconds between two looks at a process
_NOTICE = 120  # seconds before its time limit in which a job may save the last whole step
_RESTARTS = 100_000  # after time limits: as many as it takes


class _InterruptedError(Exception):
    """A command was stopped or killed; the study resumes it when it is started again."""


class Chain:
    """A job: commands one after the other. submitit sends it to another machine and calls it."""

    def __init__(self, plan: Plan, run: Run | None) -> None:
        """run: the one whose commands are executed; None: the text is prepared."""
        self.plan = plan
        self.run = run
        self._child: subprocess.Popen[bytes] | None = None
        self._is_stopped = False

    def __call__(self) -> None:
        """Execute what is left. Raises an error, which fails the job, unless all ends well."""
        if self.run is None:
            output = self.plan.folder / PREPARING
            if self._execute(self.plan.preparing, output):
                raise RuntimeError(states.error_in(output))
            return
        while command := states.following(self.plan, self.run):
            states.begin(self.run, command)
            code = self._execute(command, self.run.output)
            how = states.end(self.run, command, code, self._is_stopped)
            if how == "failed":
                raise RuntimeError(states.read(self.run.folder).failed)
            if how == "interrupted":
                raise _InterruptedError(f"{command} was interrupted")

    def _execute(self, command: Command, output: Path) -> int:
        self._child = children.start(command, output, {})
        while (code := self._child.poll()) is None:
            time.sleep(_PAUSE)
        return code

    def checkpoint(self) -> Any:
        """Stop after a whole step, and say what to execute next time (submitit calls this)."""
        from submitit.helpers import DelayedSubmission

        self._is_stopped = True
        if self._child is not None and self._child.returncode is None:
            children.end(self._child)
            # Not wait(): this may have interrupted poll(), which holds the lock of both.
            os.waitid(os.P_PID, self._child.pid, os.WEXITED | os.WNOWAIT)
        return DelayedSubmission(Chain(self.plan, self.run))

    def __getstate__(self) -> dict[str, Any]:
        return {"plan": self.plan, "run": self.run, "_child": None, "_is_stopped": False}


class Results:
    """The last job: the joint results of all runs that are done."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan

    def __call__(self) -> None:
        """Write them."""
        from impossible.study import results

        with files.locked(self.plan.folder):
            results.write(self.plan, Stop())

    def checkpoint(self) -> Any:
        """Begin again in another job."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def submit(plan: Plan) -> None:
    """Submit what is left of the study, each run as a job, unless its job is still there.

    Raises UserError if there is no SLURM or if it refuses a job.
    """
    if not shutil.which("sbatch"):
        raise UserError(
            "cluster = slurm, but there is no command sbatch. Run this on a login node of the "
            "cluster, or leave --cluster= out."
        )
    alive, before = jobs(plan), _recorded(plan)
    after = ""
    if "prepare" in alive:
        after = f"afterok:{before['prepare']}"
    elif not plan.is_prepared:
        after = f"afterok:{_submit(plan, 'prepare', Chain(plan, None), '')}"
    left = [run for run in plan.runs if states.following(plan, run)]
    for run in left:
        if run.name not in alive and not states.read(run.folder).failed:
            _submit(plan, run.name, Chain(plan, run), after)
    alive, recorded = jobs(plan), _recorded(plan)
    if "results" in alive:  # it waits for fewer runs than there are now
        subprocess.run(["scancel", recorded["results"]], check=False)
    waited = [recorded[run.name] for run in left if run.name in alive]
    dependency = f"afterany:{':'.join(waited)}" if waited else ""
    _submit(plan, "results", Results(plan), dependency)


def _submit(plan: Plan, name: str, job: Chain | Results, dependency: str) -> str:
    """Submit one job. Returns its number."""
    import submitit
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    s = plan.settings
    python = shlex.join(["env", f"PYTHONPATH={ROOT}", sys.executable])
    folder = plan.folder / "slurm"
    executor = submitit.SlurmExecutor(folder, max_num_timeout=_RESTARTS, python=python)
    options = {"partition": s.partition, "account": s.account, "dependency": dependency}
    executor.update_parameters(
        job_name=f"{plan.folder.name}-{name}",
        time=max(1, round(s.hours * 60)),
        cpus_per_task=s.cpus,
        mem=f"{s.memory_gb}G",
        signal_delay_s=_NOTICE,
        stderr_to_stdout=True,
        additional_parameters={"requeue": True, "kill-on-invalid-dep": "yes"}
        | ({"gpus-per-node": s.gpus} if s.gpus else {}),
        **{key: value for key, value in options.items() if value},
    )
    try:
        number = executor.submit(job).job_id
    except (FailedJobError, FailedSubmissionError, OSError) as error:
        raise UserError(f"SLURM did not accept the job {name}: {error}")
    files.write_json(plan.folder / NAME, _recorded(plan) | {name: number})
    print(f"{name}: job {number}" + (f" ({dependency})" if dependency else ""), flush=True)
    return number


def _recorded(plan: Plan) -> dict[str, str]:
    path = plan.folder / NAME
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def jobs(plan: Plan) -> dict[str, str]:
    """The jobs of the study that SLURM still has, by name: their states."""
    recorded = _recorded(plan)
    if not recorded or not shutil.which("squeue"):
        return {}
    command = ["squeue", "--noheader", "--format=%i %T", f"--user={getpass.getuser()}"]
    told = subprocess.run(command, capture_output=True, text=True, check=False)
    if told.returncode:
        raise UserError(f"SLURM does not tell its jobs: {told.stderr.strip()}. Try again later.")
    states_of = dict(line.split() for line in told.stdout.splitlines())
    return {name: states_of[job] for name, job in recorded.items() if job in states_of}
