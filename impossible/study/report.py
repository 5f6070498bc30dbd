"""The report of a study: one page that needs no other file, for screens and for paper."""

import base64
import contextlib
import datetime
import math
import subprocess
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pandas as pd
import torch

import perturb
from impossible import files
from impossible.evaluation import differences, pictures
from impossible.settings import Prepare
from impossible.study import states
from impossible.study.plan import ROOT, Plan, missing_controls, of
from impossible.text import token_files

NAME = "report.html"
_TEMPLATE = Path(__file__).with_name("report.html.j2")
# Further pictures, by the name of the file, wherever they are among the results.
_MORE = {
    "losses.png": "Training and validation losses against training step",
    "pairs.png": "Share of minimal pairs that the models get right, against training step",
    "markers.png": "Surprisal at the marker against training step",
}
_OLDER = (
    "The results below are from an earlier evaluation, perhaps of other runs or with other "
    "settings. To update them, run the same command again."
)


def write(plan: Plan, runs: pd.DataFrame, error: str = "", is_current: bool = True) -> None:
    """Write the report from the results in the folder of the study.

    runs: a row for each run, as in runs.csv. error: of the joint evaluation.
    is_current: whether the joint results are those of the runs that are done, as they are now.
    """
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True
    )
    template = environment.from_string(_TEMPLATE.read_text(encoding="utf-8"))
    found = {
        **_about(plan, runs),
        "problems": _problems(plan, runs, error, is_current),
        **_comparisons(plan),
        **_perplexities(plan),
        "curves": _picture(plan.folder / "perplexity.png"),
        "differences": _picture(plan.folder / "differences.png"),
        "more": _more(plan),
        "runs": [_shown(run) for run in runs.to_dict("records")],
    }
    with files.atomic_write(plan.folder / NAME) as file:
        file.write(template.render(found).encode())


def _about(plan: Plan, runs: pd.DataFrame) -> dict[str, Any]:
    """What was studied, and how to repeat it."""
    first, study = plan.runs[0], plan.settings
    devices = dict.fromkeys(device for device in runs["device"] if device)
    config = [str(first.config)]
    commands = [plan.preparing._replace(configs=config), *plan.commands(first)]
    return {
        "title": f"Study “{plan.name}”: {_listed(study.languages)}",
        "summary": summary(plan),
        "devices": f"Trained on: {'; '.join(devices)}." if devices else "",
        "command": plan.line,
        "config": plan.text,
        "commands": "\n".join(map(str, commands)),
        "tables": ", ".join(sorted(path.name for path in plan.folder.glob("*.csv"))),
        "version": _version(),
        "corpus": _corpus(plan),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "torch": str(torch.__version__),
    }


def _problems(plan: Plan, runs: pd.DataFrame, error: str, is_current: bool) -> list[str]:
    """What is missing, in words."""
    found = [states.problem_of_data(plan)]
    counts = runs["state"].value_counts().items()
    done = int((runs["state"] == "done").sum())
    if missing := ", ".join(f"{n} {state}" for state, n in counts if state != "done"):
        told = "There are no results yet."
        if (plan.folder / "perplexity.csv").exists():
            told = _OLDER
            if is_current:
                told = f"The results below are from the {done} runs that are done."
        found.append(f"Not all of the {len(runs)} runs are done ({done} done, {missing}). {told}")
    elif not is_current and (plan.folder / "perplexity.csv").exists():
        found.append(_OLDER)
    if error:
        found.append(f"The evaluation of all runs together failed: {error}")
    return [*filter(None, found), *missing_controls(plan)]


def _version() -> str:
    """The commit of this code, if it is known."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty"]
    with contextlib.suppress(OSError):
        told = subprocess.run(command, capture_output=True, text=True, check=False)
        if told.returncode == 0:
            return f", with commit {told.stdout.strip()} of the code"
    return ""


def _corpus(plan: Plan) -> str:
    """The version of the corpus, from the token files; or its name."""
    if plan.is_prepared:
        return token_files.read_meta(plan.runs[0].data_dir).corpus_version
    return of(Prepare, plan.runs[0].values).corpus


def _listed(languages: tuple[str, ...]) -> str:
    *most, last = [perturb.get(name).title for name in languages]
    return f"{', '.join(most)} and {last}" if most else last


def summary(plan: Plan) -> str:
    """What was trained, in two sentences."""
    run, study = plan.runs[0], plan.settings
    t, count = run.training, len(study.seeds)
    seeds = f"{count} seeds each" if count > 1 else "one seed each"
    listed = ", ".join(map(str, study.seeds))
    return (
        f"{len(study.languages)} languages with {seeds} ({listed}). Every "
        f"model has {t.n_layer} layers, a width of {t.n_embd} and {run.parameters / 1e6:.1f} "
        f"million parameters; training takes {t.max_steps:,} steps of {t.tokens_per_step:,} "
        f"tokens ({run.tokens:,} in all). Corpus: {_corpus(plan)}."
    )


def _comparisons(plan: Plan) -> dict[str, Any]:
    """Each language beside its control after the last step."""
    path = plan.folder / "differences.csv"
    if not path.exists():
        return {"comparisons": [], "over": "", "interval_note": "", "has_markers": False}
    table = pd.read_csv(path)
    table = table[table["step"] == table["step"].max()]
    with_markers = table[table["measure"] == "perplexity"]
    without = table[table["measure"] == "perplexity_without_markers"].set_index("label")
    found = [
        {
            "language": perturb.get(row["language"]).title,
            "control": perturb.get(row["control"]).title,
            "difference": f"{row['difference']:+.3f}",
            "interval": f"{row['low']:+.3f} to {row['high']:+.3f}",
            "p": _p(row["p_holm"]),
            "n": row["n"],
            "sentences": f"{row['sentences']:,}",
            "unmarked": f"{without.loc[row['label'], 'difference']:+.3f}",
            "sentence": sentence(row),
        }
        for row in with_markers.to_dict("records")
    ]
    kinds = set(with_markers["interval"])
    warnings = map(differences.lacking, with_markers.to_dict("records"))
    lacking = [f"Warning: {warning}" for warning in warnings if warning]
    notes = {
        "t, over seeds": "Intervals over seeds are based on Student's t distribution, and are wide "
        "for fewer than five seeds; p is from a t-test of the hypothesis that the mean difference "
        "after the last step is zero, corrected for the number of languages by Holm's method.",
        "bootstrap, over sentences": "Intervals over sentences are bootstrapped; with one seed, "
        "they do not say how much other seeds would differ.",
    }
    over = " or ".join(sorted(kind.partition(", ")[2] for kind in kinds))
    return {
        "comparisons": found,
        "over": over,
        "has_markers": any(perturb.get(name).markers for name in with_markers["language"]),
        "interval_note": " ".join([*(notes[kind] for kind in sorted(kinds)), *lacking]),
    }


def sentence(row: dict[str, Any]) -> str:
    """What a difference means, in words. row: of differences.csv."""
    language, control = perturb.get(row["language"]).title, perturb.get(row["control"]).title
    low, middle, high = ((math.exp(row[name]) - 1) * 100 for name in ("low", "difference", "high"))
    seeds = f"{row['n']} seeds" if row["n"] > 1 else "one seed"
    start = f"After step {row['step']:,}, the perplexity of {language} is {abs(middle):.1f}%"
    word = "higher" if middle > 0 else "lower"
    ends = sorted((abs(low), abs(high)))
    if math.isnan(low):
        return (
            f"{start} {word} than that of {control} ({seeds}; too few sentences for an interval)."
        )
    if row["low"] > 0 or row["high"] < 0:
        return (
            f"{start} {word} than that of {control} (95% interval {ends[0]:.1f}% to "
            f"{ends[1]:.1f}%, {seeds})."
        )
    return (
        f"{start} {word} than that of {control}, but the 95% interval ({low:+.1f}% to "
        f"{high:+.1f}%, {seeds}) includes zero: this study does not show a difference."
    )


def _p(value: float) -> str:
    if math.isnan(value):
        return "–"
    return "< 0.0001" if value < 1e-4 else f"{value:.4f}"


def _perplexities(plan: Plan) -> dict[str, Any]:
    """The test perplexity of each language after the last step: its mean over runs."""
    path = plan.folder / "perplexity.csv"
    if not path.exists():
        return {"perplexities": [], "last_step": "", "band_note": ""}
    table = pd.read_csv(path)
    last = table["step"].max()
    table = table[(table["genre"] == "all") & (table["step"] == last)]
    rows = []
    for label, group in table.groupby("model", sort=False):
        values = group["perplexity"].to_numpy()
        interval = "–"
        if len(values) > 1:
            low, high = pictures.t_interval(values[:, np.newaxis])
            interval = f"{low[0]:,.1f} to {high[0]:,.1f}"
        mean = f"{values.mean():,.1f}"
        rows.append({"language": label, "mean": mean, "interval": interval, "n": len(values)})
    is_of_seeds = any(row["n"] > 1 for row in rows)
    band = (
        "Lines are means over seeds, and bands 95% t-intervals of these means."
        if is_of_seeds
        else ""
    )
    return {"perplexities": rows, "last_step": f"{int(last):,}", "band_note": band}


def _picture(path: Path) -> str:
    """A picture as a data URI; empty if there is none."""
    if not path.exists():
        return ""
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()


def _more(plan: Plan) -> list[dict[str, str]]:
    """Further pictures, in the folder of the study or in subfolders with joint results."""
    found = []
    for name, caption in _MORE.items():
        for path in sorted([*plan.folder.glob(name), *plan.folder.glob(f"*/{name}")]):
            place = str(path.relative_to(plan.folder))
            found.append({"data": _picture(path), "caption": caption, "name": place})
    return found


def _shown(run: dict[str, Any]) -> dict[str, Any]:
    """A row of the table of runs as it is shown."""

    def number(value: float, form: str) -> str:
        return "" if math.isnan(value) else format(value, form)

    return {
        "run": run["run"],
        "state": run["state"],
        "step": f"{run['step']:,} of {run['max_steps']:,}",
        "val_loss": number(run["val_loss"], ".4f"),
        "perplexity": number(run["perplexity"], ",.1f"),
        "minutes": number(run["minutes"], ".1f"),
        "speed": number(run["tokens_per_second"], ",.0f"),
        "error": run["error"],
    }
