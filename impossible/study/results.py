"""The results of a study: joint tables and pictures, a table of all runs, and the report."""

import hashlib
import json
import math
import os
import statistics
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import pandas as pd

from impossible import checkpoint, files, log
from impossible.settings import UserError
from impossible.study import local, report, slurm, states
from impossible.study.local import Stop
from impossible.study.plan import Plan, Run

RUNS = "runs.csv"
_MADE = "results.json"  # what the joint results were made from, and their files
_OUTPUT = "results.txt"  # what their commands print
T = TypeVar("T")


class Made(NamedTuple):
    """The joint results in the folder of a study."""

    source: str = ""  # a hash of what they were made from
    files: tuple[str, ...] = ()  # paths from that folder
    hashes: frozenset[str] = frozenset()  # SHA-256 of all that the study wrote


def write(plan: Plan, stop: Stop) -> None:
    """Evaluate all finished runs together, unless that is done, and write the table and the report.

    Raises UserError if an evaluation fails, or if the record of the results is damaged.
    """
    done = [run for run in plan.runs if states.following(plan, run) is None]
    made, error = Made(), ""
    try:
        made = read_made(plan)
        if len(done) > 1 and not stop.count:
            _evaluate(plan, done, stop)
            made = read_made(plan)
    except UserError as problem:
        error = "" if stop.count else str(problem)
    table = runs_table(plan)
    with files.atomic_write(plan.folder / RUNS) as file:
        table.to_csv(file, index=False)
    report.write(plan, table, made.files, error, made.source == _source(plan, done))
    print(f"to see the results, open {plan.folder / report.NAME}", flush=True)
    if error:
        raise UserError(error)


def _evaluate(plan: Plan, runs: list[Run], stop: Stop) -> None:
    """Evaluate runs together, unless that is done. Raises UserError if it fails.

    The earlier results stay until the new ones are whole.
    """
    source, output = _source(plan, runs), plan.folder / _OUTPUT
    if read_made(plan).source == source:
        return
    with tempfile.TemporaryDirectory(files.TEMPORARY, "results-", plan.folder) as folder:
        for command in plan.joint(runs):
            to_folder = command._replace(options=[*command.options, f"--eval_dir={folder}"])
            if error := local.watch(to_folder, output, stop):
                raise UserError(f"{error} (in {output})")
        _replace(plan, Path(folder), source)


def _replace(plan: Plan, folder: Path, source: str) -> None:
    """Replace the joint results by those in a folder.

    Raises UserError if files would be overwritten that the study did not write.
    """
    before, record = read_made(plan), plan.folder / _MADE
    written = sorted(path for path in folder.rglob("[!.]*") if path.is_file())
    new = {path.relative_to(folder).as_posix(): path for path in written}
    hashes = {files.sha256(path) for path in written}
    targets = [plan.folder / name for name in new if (plan.folder / name).exists()]
    if others := [p for p in targets if files.sha256(p) not in hashes | before.hashes]:
        raise UserError(
            "the study has results of the same names as these files, which it did not write, or "
            f"which were changed since: {', '.join(map(str, others))}. Move them elsewhere, or "
            "choose another folder with --study_dir="
        )
    names = {*before.files, *new}
    both = {"from": "", "files": sorted(names), "sha256": sorted(hashes | before.hashes)}
    files.write_json(record, both)
    for name in names - new.keys():
        (plan.folder / name).unlink()
        with suppress(OSError):  # it is not empty
            (plan.folder / name).parent.rmdir()
    for name, path in new.items():
        (plan.folder / name).parent.mkdir(parents=True, exist_ok=True)
        os.replace(path, plan.folder / name)
    files.write_json(record, {"from": source, "files": sorted(new), "sha256": sorted(hashes)})


def read_made(plan: Plan) -> Made:
    """The joint results that the study has written.

    A file that is gone or was changed since is left out, and the results are not whole. Raises
    UserError if the record of these files is damaged.
    """
    path = plan.folder / _MADE
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        source, names, hashes = record["from"], record["files"], frozenset(record["sha256"])
        paths = {name: plan.folder / name for name in names}
    except FileNotFoundError:
        return Made()
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(
            f"{path} is damaged ({error!r}). It lists the joint tables and pictures that the study "
            f"wrote in {plan.folder}. Delete it together with these (perplexity.csv, pairs_*, ...) "
            "and run the same command again: they are written again."
        )
    same = [n for n, path in paths.items() if path.is_file() and files.sha256(path) in hashes]
    return Made(source if len(same) == len(names) else "", tuple(same), hashes)


def _source(plan: Plan, runs: list[Run]) -> str:
    """A hash of what the joint results of these runs are made from."""
    commands = [str(command) for command in plan.joint(runs)]
    configs = [run.config.read_text(encoding="utf-8") for run in runs]
    weights = [checkpoint.path_of(run.folder, run.settings.max_steps) for run in runs]
    times = [path.stat().st_mtime_ns for path in weights]
    hashes = [sorted(states.read(run.folder).done.items()) for run in runs]
    described = json.dumps([commands, configs, times, hashes])
    return hashlib.sha256(described.encode()).hexdigest()


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
    problems: list[str] = []

    def attempt(read: Callable[[], T], otherwise: T) -> T:
        """What can be read of a run; a damaged file is a problem of this run alone."""
        try:
            return read()
        except Exception as error:  # libraries have many for a damaged file
            told = f"a file in {run.folder} is damaged: {error!r}"
            problems.append(states.adapted(str(error)) if isinstance(error, UserError) else told)
            return otherwise

    records = attempt(lambda: log.read(run.folder), [])
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
        "max_steps": run.settings.max_steps,
        "loss": losses[-1] if losses else math.nan,
        "val_loss": val_losses[-1] if val_losses else math.nan,
        "perplexity": attempt(lambda: _perplexity(plan, run), math.nan),
        "minutes": round(minutes, 2),
        "tokens_per_second": round(_speed(records)) or math.nan,
        "device": attempt(lambda: _device(run), ""),
        "error": "; ".join([*filter(None, [state.failed]), *problems]),
    }


def speed(run: Run) -> float:
    """The median speed of a run in tokens per second; 0 if it has not begun."""
    return _speed(log.read(run.folder))


def _speed(records: list[dict[str, Any]]) -> float:
    found = [r["tokens_per_second"] for r in records if "tokens_per_second" in r]
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


def _perplexity(plan: Plan, run: Run) -> float:
    """The test perplexity after the last step, of a run that is done."""
    path = run.folder / "evaluation" / "perplexity.csv"
    if states.following(plan, run) or not path.exists():
        return math.nan
    table = pd.read_csv(path)
    rows = table[(table["genre"] == "all") & (table["step"] == run.settings.max_steps)]
    return float(rows["perplexity"].iloc[0]) if len(rows) else math.nan


def _device(run: Run) -> str:
    """The devices that trained a run."""
    paths = checkpoint.list_checkpoints(run.folder)
    if not paths:
        return ""
    sessions = checkpoint.load(paths[-1]).sessions
    return "; ".join(dict.fromkeys(name for session in sessions for name in session["devices"]))
