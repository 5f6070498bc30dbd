"""The report of a study: one page that needs no other file, for screens and for paper."""

import base64
import datetime
import math
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pandas as pd
import torch

import perturb
from impossible import files
from impossible.evaluation import pictures
from impossible.study.plan import Plan

NAME = "report.html"
_TEMPLATE = Path(__file__).with_name("report.html.j2")
# Further pictures, by the name of the file, wherever they are among the results.
_MORE = {
    "losses.png": "Training and validation losses against training step",
    "pairs.png": "Share of minimal pairs that the models get right, against training step",
    "markers.png": "Surprisal at the marker against training step",
}


def write(plan: Plan, runs: pd.DataFrame) -> None:
    """Write the report from the results in the folder of the study.

    runs: a row for each run, as in runs.csv.
    """
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True
    )
    template = environment.from_string(_TEMPLATE.read_text(encoding="utf-8"))
    found = {
        **_about(plan, runs),
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
    count, states = len(runs), runs["state"].value_counts()
    problems = [
        f"{n} of {count} runs: {state}. The results are those of the others."
        for state, n in states.items()
        if state != "done"
    ]
    first, study = plan.runs[0], plan.settings
    devices = dict.fromkeys(device for device in runs["device"] if device)
    return {
        "title": f"Study “{plan.folder.name}”: {_listed(study.languages)}",
        "summary": summary(plan),
        "problems": problems,
        "devices": f"Trained on: {'; '.join(devices)}." if devices else "",
        "command": plan.line,
        "config": plan.text,
        "commands": "\n".join(map(str, [plan.preparing_of(first), *plan.commands(first)])),
        "tables": ", ".join(sorted(path.name for path in plan.folder.glob("*.csv"))),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "torch": str(torch.__version__),
    }


def _listed(languages: tuple[str, ...]) -> str:
    *most, last = [perturb.get(name).title for name in languages]
    return f"{', '.join(most)} and {last}" if most else last


def summary(plan: Plan) -> str:
    """What was trained, in two sentences."""
    run, study = plan.runs[0], plan.settings
    t = run.training
    parameters = run.parameters
    text = run.values.get("corpus", "babylm")
    years = f" ({run.values['sotu_years']})" if "sotu_years" in run.values else ""
    seeds = ", ".join(map(str, study.seeds))
    return (
        f"{len(study.languages)} languages with {len(study.seeds)} seeds each ({seeds}). Every "
        f"model has {t.n_layer} layers, a width of {t.n_embd} and {parameters / 1e6:.1f} million "
        f"parameters, and was trained for {t.max_steps:,} steps of {t.tokens_per_step:,} tokens "
        f"({run.tokens:,} in all) on the corpus {text}{years}."
    )


def _comparisons(plan: Plan) -> dict[str, Any]:
    """Each language beside its control after the last step."""
    path = plan.folder / "differences.csv"
    if not path.exists():
        return {"comparisons": [], "over": "", "interval_note": ""}
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
            "p": _p(row["p"]),
            "n": row["n"],
            "unmarked": f"{without.loc[row['label'], 'difference']:+.3f}",
            "sentence": sentence(row),
        }
        for row in with_markers.to_dict("records")
    ]
    is_of_seeds = bool(len(with_markers)) and with_markers["n"].max() > 1
    note = "Intervals are Student's t over seeds; p tests whether the mean difference is zero."
    if not is_of_seeds:
        note = (
            "Intervals are bootstrapped over sentences: with one seed, they say nothing of others."
        )
    over = "over seeds" if is_of_seeds else "over sentences"
    return {"comparisons": found, "over": over, "interval_note": note}


def sentence(row: dict[str, Any]) -> str:
    """What a difference means, in words. row: of differences.csv."""
    language, control = perturb.get(row["language"]).title, perturb.get(row["control"]).title
    low, middle, high = ((math.exp(row[name]) - 1) * 100 for name in ("low", "difference", "high"))
    seeds = f"{row['n']} seeds" if row["n"] > 1 else "one seed"
    start = f"After step {row['step']:,}, the perplexity of {language} is {abs(middle):.1f}%"
    ends = sorted((abs(low), abs(high)))
    if row["low"] > 0 or row["high"] < 0:
        word = "higher" if middle > 0 else "lower"
        return (
            f"{start} {word} than that of {control} (95% interval {ends[0]:.1f}% to "
            f"{ends[1]:.1f}%, {seeds})."
        )
    word = "higher" if middle > 0 else "lower"
    return (
        f"{start} {word} than that of {control}, but the 95% interval ({low:+.1f}% to "
        f"{high:+.1f}%, {seeds}) includes zero: no difference is shown."
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
