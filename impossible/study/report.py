"""The plan of a study, the state of its runs, and a page with all results.

The page, report.html, contains its tables and pictures, needs no other files and can be printed.
"""

import base64
import contextlib
import datetime
import math
import shlex
import subprocess
from pathlib import Path, PurePosixPath
from typing import Any

import jinja2
import pandas as pd
import torch

import perturb
from impossible import checkpoint, files, log, records
from impossible.settings import ROOT, UserError, find_config
from impossible.study import execute
from impossible.study.plan import OF_ONE_START, Plan, Run, missing_controls
from impossible.study.tasks import Command
from impossible.text import token_files

NAME = "report.html"
RUNS = "runs.csv"
# What pictures show, by name.
_CAPTIONS = {
    "losses": "Training and validation loss in nats per token, against training step",
    "pairs": "Share of minimal pairs that the models get right, against training step; the thin "
    "line is chance",
    "markers": "Surprisal in bits of the next token in the marker's place, minus that of the "
    "marker, against training step",
    "interventions": "Accuracy of interchange interventions at the best position of each layer, "
    "averaged over layers, against training step",
    "interventions_heat_maps": "Accuracy of interchange interventions by layer and position",
}
_MEANS = "perplexity_means.csv"
# For tables by name: the column with the number of sentences or pairs that a model was scored on.
_COUNTS = {"pairs": "pairs_common", "markers": "sentences", "interventions": "pairs"}
_OF_LOG = ["step", "loss", "val_loss", "tokens_per_second"]
_STATE_SIZE = 3  # a training state holds weights and AdamW's two moments; two states are kept
_IN_PERCENT = 3.0  # nats, or 1,909% in perplexity; larger differences are not given in percent
_LEVEL = 0.05  # below this corrected p-value, the study shows a difference


def show_plan(plan: Plan) -> None:
    """Print the runs, the commands, the tokens, and estimates of time and disk."""
    unfinished = [run for run in plan.runs if run.following]
    study, first = plan.settings, plan.runs[0]
    print(f"{len(study.languages)} language(s) x {len(study.seeds)} seed(s)", end=" ")
    print(f"= {len(plan.runs)} runs")
    print(f"  {len(plan.runs) - len(unfinished)} of them are done already in {plan.folder}")
    for language in study.languages:
        print(f"  {language}: seed {', '.join(map(str, study.seeds))}")
    for title, commands in (
        (", once for all runs", plan.preparing.commands),
        (" for each run, here for the first", first.commands),
        (" at the end, for all runs together", plan.joint(plan.runs).commands),
    ):
        print(f"commands{title}:", *map(_short, commands), sep="\n  ")
    print("(The study writes the config files when it begins.)")
    tokens = sum(run.tokens for run in plan.runs)
    print(f"tokens: {first.tokens:,} for each run, {tokens:,} for all")
    print(f"time left: {_time(plan, unfinished)}")
    print(f"disk: {_disk(plan)}")
    if study.publish:
        print(f"repos: {', '.join(plan.repo(run) for run in plan.runs)}")
    for warning in missing_controls(plan):
        print(f"warning: {warning}")


def _short(command: Command) -> str:
    configs = command.configs
    is_long = len(configs) > 2
    return str(command._replace(configs=(configs[0], "...", configs[-1])) if is_long else command)


def _time(plan: Plan, unfinished: list[Run]) -> str:
    """The time that training takes, by the speed of the runs so far."""
    if not unfinished:
        return "nothing is left to do"
    progress = pd.DataFrame(map(_progress, plan.runs), [run.name for run in plan.runs])
    speed = progress["tokens_per_second"].mean()
    if math.isnan(speed):
        return "unknown until a run has begun"
    of_slurm = plan.settings.cluster == "slurm"
    at_once = len(unfinished) if of_slurm else min(len(execute.slots_of(plan)), len(unfinished))
    settings = unfinished[0].settings
    done = progress.loc[[run.name for run in unfinished], "step"].mean()
    tokens = (settings.max_steps - done) * settings.tokens_per_step
    # Each slot does several runs, one after the other; some slots may be idle during the last runs.
    seconds = tokens / speed * math.ceil(len(unfinished) / at_once)
    return (
        f"at least {log.duration(seconds)} of training, {at_once} runs at a time at {speed:,.0f} "
        "tokens/s each (as in the runs so far); export and evaluation are not included"
    )


def _disk(plan: Plan) -> str:
    """The size of checkpoints, exports and training states."""
    settings, weights, meta = plan.runs[0].settings, 4 * plan.runs[0].parameters, {}
    try:
        with contextlib.suppress(UserError):
            meta = vars(token_files.read_meta(Path(settings.data_dir)))
        steps = checkpoint.kept_steps(settings, meta)
    except (UserError, KeyError):
        return "unknown before the data are prepared, as it depends on their number of words"
    total = weights * (len(steps) * 2 + 2 * _STATE_SIZE) * len(plan.runs) / 1e9
    return (
        f"about {total:,.1f} GB for all runs: for each one {len(steps)} checkpoints of "
        f"{weights / 1e6:,.0f} MB, as many exports, and the states to resume from; token files and "
        "results are not included"
    )


def show_states(plan: Plan) -> None:
    """Print the state and the progress of each run."""
    table = runs_table(plan)
    forms = {"loss": ".4f", "val_loss": ".4f", "perplexity": ",.1f", "minutes": ".1f"}
    texts = {name: lambda v, form=form: format(v, form) for name, form in forms.items()}
    with pd.option_context("display.width", None):
        columns = ["run", "state", "step", *forms]
        print(table[columns].to_string(index=False, formatters=texts, na_rep="-"))
    errors = table[table["error"] != ""]
    for line in [*(errors["run"] + ": " + errors["error"]), *_failures(plan)]:
        print(line)
    counts = ", ".join(f"{n} {state}" for state, n in table["state"].value_counts().items())
    print(f"{len(table)} runs: {counts}")
    if "failed" in set(table["state"]):
        print("To try failed runs again, add --retry to the command of the study.")


def _failures(plan: Plan) -> list[str]:
    """The errors of the latest preparation of data and of the latest joint evaluation."""
    tasks = {
        "The latest preparation of data failed": plan.preparing,
        "The runs could not be evaluated together": plan.joint([]),
    }
    return [f"{text}: {error}" for text, task in tasks.items() if (error := task.error)]


def runs_table(plan: Plan) -> pd.DataFrame:
    """A row for each run: its state, progress, losses, time and device."""
    is_open, jobs = files.is_locked(plan.locked_folder), {}
    try:
        jobs = execute.jobs_of(plan)
    except UserError as error:
        print(f"warning: {error}")
    return pd.DataFrame([_row(run, is_open, jobs) for run in plan.runs])


def _row(run: Run, is_open: bool, jobs: dict[str, execute.Job]) -> dict[str, Any]:
    row: dict[str, Any] = {
        "run": run.name,
        "language": run.language,
        "seed": run.seed,
        "state": state_of(run, is_open, jobs),
        "step": 0,
        "max_steps": run.settings.max_steps,
        "loss": math.nan,
        "val_loss": math.nan,
        "perplexity": math.nan,
        "minutes": round(run.state.seconds / 60, 2),
        "tokens_per_second": math.nan,
        "device": "",
    }
    problems = [run.error]
    for read in (_progress, _perplexity, _device):
        try:
            row |= read(run)
        except UserError as error:  # a damaged file is a problem of this run alone
            problems.append(execute.adapted(str(error)))
        except Exception as error:  # of many kinds, for a damaged file
            problems.append(f"a file in {run.folder} is damaged: {error!r}")
    return row | {"error": "; ".join(filter(None, problems))}


def _progress(run: Run) -> dict[str, float]:
    """The last step, the last losses and the median speed of a run, by its log."""
    table = pd.DataFrame([{"step": 0}, *log.read(run.folder)], columns=_OF_LOG, dtype=float)
    last, speed = table.ffill().iloc[-1], table["tokens_per_second"].median()
    speed = speed if math.isnan(speed) else round(speed)
    return last.to_dict() | {"step": int(last["step"]), "tokens_per_second": speed}


def state_of(run: Run, is_open: bool, jobs: dict[str, execute.Job]) -> str:
    """The state of a run in a word.

    is_open: whether a process executes the study on this machine. jobs: of SLURM, by name.
    """
    state, following = run.state, run.following
    if following is None:
        return "done"
    if run.error:
        return "failed"
    if run.name in jobs:
        return "running" if jobs[run.name].state == "RUNNING" else "queued"
    if state.since and is_open:
        return "running"
    if following.key in state.finished:  # with other settings
        return "outdated"
    return "interrupted" if state.seconds or state.since else "waiting"


def _perplexity(run: Run) -> dict[str, float]:
    """The test perplexity of a run after its last step; empty unless the run is done."""
    path = run.folder / "evaluation" / "perplexity.csv"
    if run.following or not path.exists():
        return {}
    table = pd.read_csv(path)
    rows = table[(table["genre"] == "all") & (table["step"] == run.settings.max_steps)]
    return rows[["perplexity"]].iloc[0].to_dict() if len(rows) else {}


def _device(run: Run) -> dict[str, str]:
    """The devices that trained a run."""
    paths = checkpoint.list_checkpoints(run.folder)
    sessions = checkpoint.load(paths[-1]).sessions if paths else []
    names = dict.fromkeys(name for session in sessions for name in session["devices"])
    return {"device": "; ".join(names)}


def write(plan: Plan) -> None:
    """Write runs.csv, and report.html from the joint results of the study."""
    table = runs_table(plan)
    with files.atomic_write(plan.folder / RUNS) as file:
        table.to_csv(file, index=False)
    done = [run for run in plan.runs if not run.following]
    joint = plan.joint(done)
    results = joint.state.results
    hashes = {k: v for command in joint.commands for k, v in results.get(command.key, {}).items()}
    for run in done:
        own = records.recorded_in(run.folder / "evaluation").items()
        hashes |= {f"runs/{run.name}/evaluation/{name}": sha256 for name, sha256 in own}
    names = sorted(joint.unchanged(hashes))
    with files.atomic_write(plan.folder / NAME) as file:
        file.write(page(plan, table, names, not joint.following).encode())
    print(f"to see the results, open {plan.folder / NAME}", flush=True)


def page(plan: Plan, runs: pd.DataFrame, names: list[str], is_current: bool) -> str:
    """The report in HTML.

    runs: as `runs_table` returns them. names: the files of the results, as paths from the folder of
    the study. is_current: whether the joint results come from exactly the runs that are done, in
    their present state.
    """
    templates = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
    )
    templates.filters["number"] = lambda v, form: "" if math.isnan(v) else format(v, form)
    templates.filters["p"] = _p
    paths = [PurePosixPath(name) for name in (RUNS, *names) if "/." not in f"/{name}"]
    joint = {str(path): plan.folder / path for path in paths if path.parts[0] != "runs"}
    read = {"differences.csv", "perplexity.csv", _MEANS, *(f"{measure}.csv" for measure in _COUNTS)}
    tables = {name: pd.read_csv(path) for name, path in joint.items() if path.name in read}
    pictures = {name: path for name, path in joint.items() if path.suffix == ".png"}
    return templates.get_template("report.html.j2").render(
        _about(plan),
        paths=paths,
        is_current=is_current,
        failures=_failures(plan),
        missing_controls=missing_controls(plan),
        states=runs["state"].value_counts().to_dict(),
        devices=[device for device in runs["device"].unique() if device],
        runs=runs.to_dict("records"),
        comparisons=_comparisons(tables["differences.csv"]) if "differences.csv" in tables else [],
        perplexities=_perplexities(tables) if {"perplexity.csv", _MEANS} <= {*tables} else [],
        pictures={name: _data_uri(path) for name, path in pictures.items()},
        captions={name: _caption(PurePosixPath(name), tables) for name in pictures},
    )


def _about(plan: Plan) -> dict[str, Any]:
    """The facts about the study and how to repeat it, by their names in the template."""
    first, study = plan.runs[0], plan.settings
    preparing = plan.preparing.commands[0]._replace(configs=(str(first.config),))
    return {
        "name": plan.name,
        "study": study,
        "first": first,
        "titles": [perturb.get(name).title for name in study.languages],
        "corpus": _corpus(plan),
        "command": shlex.join(["python", "study.py", *plan.arguments(OF_ONE_START)]),
        "config": find_config(plan.config).read_text(encoding="utf-8-sig").strip(),
        "commands": "\n".join(map(str, [preparing, *first.commands])),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "torch": str(torch.__version__),
        "commit": _commit(),
    }


def _commit() -> str:
    """The commit of this code; empty if it is not known."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty"]
    with contextlib.suppress(OSError):
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    return ""


def _corpus(plan: Plan) -> str:
    """The version of the corpus, from the token files; or its name."""
    with contextlib.suppress(UserError):
        return token_files.read_meta(Path(plan.runs[0].settings.data_dir)).corpus_version
    return plan.runs[0].settings.corpus


def _comparisons(table: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows that compare each language with its control, at the last step that all have.

    table: differences.csv.
    """
    languages = table.groupby("step")["label"].nunique()
    table = table[table["step"] == languages.index[languages == table["label"].nunique()].max()]
    rows = table[table["measure"] == "perplexity"].to_dict("records")
    without = table[table["measure"] == "perplexity_without_markers"].set_index("label")
    for row in rows:
        language = perturb.get(row["language"])
        row["sentence"] = sentence(row, len(rows))
        row["unmarked"] = without.loc[row["label"], "difference"]
        row["titles"] = language.title, perturb.get(row["control"]).title
        row["has_markers"] = bool(language.markers)
        row["left_out"] = row["sentences_drawn"] - row["sentences"]
    return rows


def sentence(row: dict[str, Any], compared: int) -> str:
    """A sentence that states a difference in perplexity, and whether this study shows it.

    row: of differences.csv. compared: the number of languages. With several seeds, the corrected
    test decides. Differences and intervals of more than _IN_PERCENT nats are given in nats.
    """
    language, control = perturb.get(row["language"]).title, perturb.get(row["control"]).title
    low, middle, high = (float(row[name]) for name in ("low", "difference", "high"))
    start, measure = f"After step {row['step']:,}, the", f"perplexity of {language}"
    if not math.isfinite(middle):
        reason = f"cannot be compared with that of {control}: the difference is not a number"
        return f"{start} {measure} {reason}."
    if any(abs(value) > _IN_PERCENT for value in (low, middle, high)):
        measure, unit, decimals = f"log-{measure}", " nats", 2
    else:
        low, middle, high = (100 * math.expm1(value) for value in (low, middle, high))
        unit, decimals = "%", 1
    if abs(middle) < 10**-decimals / 2:
        size = f"differs from that of {control} by less than {10**-decimals}{unit}"
    else:
        word = "higher" if middle > 0 else "lower"
        size = f"is {abs(middle):,.{decimals}f}{unit} {word} than that of {control}"
    seeds = f"{row['n']} seeds" if row["n"] > 1 else "one seed"
    seeds += f", {row['sentences']:,} test sentences"
    if not (math.isfinite(low) and math.isfinite(high)):
        why = "too few sentences for an interval" if math.isnan(low) else "no finite interval"
        return f"{start} {measure} {size} ({seeds}; {why})."
    kind = ", not corrected for the number of languages:" if compared > 1 else ""
    if row["n"] == 1:
        kind = " over test sentences, for these two models alone:"
    interval = f"95% interval{kind} {_ends(low, high, unit, decimals)}"
    reason = _doubt(row)
    verdict = f", but {reason}: this study does not show a difference" if reason else ""
    return f"{start} {measure} {size} ({interval}, {seeds}){verdict}."


def _ends(low: float, high: float, unit: str, decimals: int) -> str:
    """The ends of an interval: with signs if it includes zero."""
    sign, ends = "+", (low, high)
    if low > 0 or high < 0:
        sign, ends = "", sorted((abs(low), abs(high)))
    near, far = (f"{end:{sign},.{decimals}f}" for end in ends)
    return f"{near}{unit.removesuffix(' nats')} to {far}{unit}"


def _doubt(row: dict[str, Any]) -> str:
    """The reason why a row of differences.csv does not show a difference; empty if it does."""
    if row["n"] == 1:
        return "" if row["low"] > 0 or row["high"] < 0 else "the interval includes zero"
    if math.isnan(row["p_holm"]):
        return "nothing is tested at this step"
    return "" if row["p_holm"] < _LEVEL else f"p (Holm) is {_p(row['p_holm'])}"


def _p(value: float) -> str:
    if math.isnan(value):
        return "–"
    return "< 0.0001" if value < 1e-4 else f"{value:.4f}"


def _perplexities(tables: dict[str, pd.DataFrame]) -> list[dict[str, Any]]:
    """The test perplexity of each language after the last step: its mean over runs.

    For a language with one run, the interval is NaN.
    """
    means, runs = tables[_MEANS], tables["perplexity.csv"]
    counts = runs[runs["genre"] == "all"].groupby("model")["sentences"].agg(_range)
    rows = means[means["step"] == means["step"].max()].rename(columns={"label": "language"})
    return rows.assign(sentences=rows["language"].map(counts).fillna("–")).to_dict("records")


def _range(counts: pd.Series) -> str:
    """The lowest and the highest of some counts; one number if they are the same."""
    return " to ".join(f"{count:,.0f}" for count in sorted({counts.min(), counts.max()}))


def _caption(picture: PurePosixPath, tables: dict[str, pd.DataFrame]) -> str:
    """What a picture shows, and the number of sentences or pairs that each model was scored on."""
    text, measure = _CAPTIONS.get(picture.stem, picture.stem), picture.stem.partition("_")[0]
    table = tables.get(str(picture.with_name(f"{measure}.csv")))
    if measure not in _COUNTS or table is None:
        return text
    column = _COUNTS[measure]
    counts = table.groupby("run")[column].max()  # for pairs, the row of all paradigms
    return f"{text} ({_range(counts)} {column.removesuffix('_common')} for each model)"


def _data_uri(picture: Path) -> str:
    return f"data:image/png;base64,{base64.b64encode(picture.read_bytes()).decode()}"
