"""The results of a study: joint tables and pictures, a table of all runs, and the report."""

import hashlib
import json
import math
import statistics
from typing import Any

import pandas as pd

from impossible import files
from impossible.errors import UserError
from impossible.study import local, report, slurm, states
from impossible.study.local import Stop
from impossible.study.plan import Plan, Run
from impossible.training import checkpoint, log

RUNS = "runs.csv"
_MADE = "results.json"  # what the joint results were made from
# Tables and pictures of the joint results, in the folder of the study or in subfolders.
_JOINT = ("perplexity", "differences", "losses", "pairs", "markers", "stimuli")


def write(plan: Plan, stop: Stop) -> None:
    """Evaluate all finished runs together, unless that is done, and write the table and the report.

    Raises UserError if an evaluation fails.
    """
    done = [run for run in plan.runs if states.following(plan, run) is None]
    error = ""
    if len(done) > 1 and not stop.count:
        error = _evaluate(plan, done, stop)
    is_current = _made(plan) == _source(plan, done)
    table = runs_table(plan)
    with files.atomic_write(plan.folder / RUNS) as file:
        table.to_csv(file, index=False)
    report.write(plan, table, error, is_current)
    print(f"to see the results, open {plan.folder / report.NAME}", flush=True)
    if error and not stop.count:
        raise UserError(f"{error} (in {plan.folder / 'results.txt'})")


def _evaluate(plan: Plan, runs: list[Run], stop: Stop) -> str:
    """The joint evaluation of runs. Returns an error, if there is one."""
    if _made(plan) == _source(plan, runs):
        return ""
    (plan.folder / _MADE).unlink(missing_ok=True)
    for name in _JOINT:  # of other runs or evaluations
        for pattern in (f"{name}.csv", f"{name}.png"):
            for path in [*plan.folder.glob(pattern), *plan.folder.glob(f"*/{pattern}")]:
                path.unlink()
    for command in plan.joint(runs):
        if error := local.watch(command, plan.folder / "results.txt", stop):
            return error
    files.write_json(plan.folder / _MADE, _source(plan, runs))
    return ""


def _made(plan: Plan) -> dict[str, str]:
    """What the joint results were made from; {} if there are none that are whole."""
    path = plan.folder / _MADE
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def _source(plan: Plan, runs: list[Run]) -> dict[str, str]:
    """What the joint results of these runs are made from."""
    commands = plan.joint(runs)
    configs = [run.config.read_text(encoding="utf-8") for run in runs]
    weights = [run.folder / f"checkpoint-{run.training.max_steps}.pt" for run in runs]
    times = [path.stat().st_mtime_ns for path in weights]
    described = json.dumps([list(map(str, commands)), configs, times])
    return {"from": hashlib.sha256(described.encode()).hexdigest()}


def runs_table(plan: Plan) -> pd.DataFrame:
    """A row for each run: its state, how far it is, its losses, its time and its device."""
    is_open = files.is_locked(plan.folder)
    try:
        jobs = slurm.jobs(plan)
    except UserError as error:
        print(f"warning: {error}")
        jobs = {}
    return pd.DataFrame([_row(plan, run, is_open, jobs) for run in plan.runs])


def _row(plan: Plan, run: Run, is_open: bool, jobs: dict[str, str]) -> dict[str, Any]:
    records = log.read(run.folder)
    last = records[-1] if records else {"step": 0}
    losses = [record["loss"] for record in records if record.get("loss")]
    val_losses = [record["val_loss"] for record in records if record.get("val_loss")]
    state = states.read(run.folder)
    minutes = sum(state.seconds.values()) / 60
    return {
        "run": run.name,
        "language": run.language,
        "seed": run.seed,
        "state": state_of(plan, run, is_open, jobs),
        "step": last["step"],
        "max_steps": run.training.max_steps,
        "loss": losses[-1] if losses else math.nan,
        "val_loss": val_losses[-1] if val_losses else math.nan,
        "perplexity": math.nan if states.following(plan, run) else _perplexity(run),
        "minutes": round(minutes, 2),
        "tokens_per_second": round(speed(run)) or math.nan,
        "device": _device(run),
        "error": state.failed,
    }


def speed(run: Run) -> float:
    """The median speed of a run in tokens per second; 0 if it has not begun."""
    found = [r["tokens_per_second"] for r in log.read(run.folder) if "tokens_per_second" in r]
    return statistics.median(found) if found else 0.0


def state_of(plan: Plan, run: Run, is_open: bool, jobs: dict[str, str]) -> str:
    """The state of a run in a word.

    is_open: whether a process executes the study on this machine. jobs: SLURM's states of jobs.
    """
    state = states.read(run.folder)
    following = states.following(plan, run)
    if following is None:
        return "done"
    if state.failed:
        return "failed"
    job = jobs.get(run.name, "")
    if state.running and (job == "RUNNING" or ("job" not in state.running and is_open)):
        return "running"
    if job:
        return "queued"
    if following.key in state.done:  # with other settings
        return "outdated"
    return "interrupted" if state.seconds or state.running else "waiting"


def _perplexity(run: Run) -> float:
    """The test perplexity after the last step."""
    path = run.folder / "evaluation" / "perplexity.csv"
    if not path.exists():
        return math.nan
    table = pd.read_csv(path)
    rows = table[(table["genre"] == "all") & (table["step"] == run.training.max_steps)]
    return float(rows["perplexity"].iloc[0]) if len(rows) else math.nan


def _device(run: Run) -> str:
    """The devices that trained a run."""
    paths = checkpoint.list_checkpoints(run.folder)
    if not paths:
        return ""
    sessions = checkpoint.load(paths[-1]).sessions
    return "; ".join(dict.fromkeys(name for session in sessions for name in session["devices"]))
