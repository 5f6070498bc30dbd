"""The report of a study: one page that needs no other file, for screens and for paper."""

import base64
import contextlib
import datetime
import math
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pandas as pd
import torch

import perturb
from impossible import files
from impossible.evaluation import differences, intervals
from impossible.settings import UserError
from impossible.study import states
from impossible.study.plan import ROOT, Plan, missing_controls
from impossible.text import token_files

NAME = "report.html"
_TEMPLATE = Path(__file__).with_name("report.html.j2")
# Further pictures, by the name of the file, wherever they are among the results.
_MORE = {
    "losses.png": "Training and validation losses against training step",
    "pairs.png": "Share of minimal pairs that the models get right, against training step",
    "markers.png": "Surprisal at the marker against training step",
}
_IN_PERCENT = 3.0  # nats: a perplexity that is 1,909% higher
_LEVEL = 0.05  # of the corrected p-value, for a difference that a study shows
_NOTES = {
    "t, over seeds": "Intervals over seeds are based on Student's t distribution, and are wide for "
    "fewer than five seeds. The last step is the test of this study: p is from a t-test of the "
    "hypothesis that the mean difference is zero. “p (Holm)” is corrected for the number of "
    "languages, and intervals are not. At the other steps, nothing is tested.",
    "bootstrap, over sentences": "Intervals over sentences are bootstrapped. With one seed, they "
    "are of one model only, and do not say how much other seeds would differ.",
}
_OLDER = (
    "The results below are from an earlier evaluation, perhaps of other runs or with other "
    "settings. To update them, run the same command again."
)


def write(
    plan: Plan,
    runs: pd.DataFrame,
    names: Sequence[str] = (),
    error: str = "",
    is_current: bool = True,
) -> None:
    """Write the report from the results in the folder of the study.

    runs: a row for each run, as in runs.csv. names: the files of the joint results, as paths from
    that folder. error: of the joint evaluation. is_current: whether the joint results are those of
    the runs that are done, as they are now.
    """
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True
    )
    template = environment.from_string(_TEMPLATE.read_text(encoding="utf-8"))
    problems = _problems(plan, runs, error, "perplexity.csv" in names, is_current)
    found = {
        **_about(plan, runs, names),
        **_of_table(plan, "differences.csv", names, _comparisons, problems),
        **_of_table(plan, "perplexity.csv", names, _perplexities, problems),
        "problems": problems,
        "curves": _picture(plan, "perplexity.png", names),
        "differences": _picture(plan, "differences.png", names),
        "more": _more(plan, names),
        "runs": [_shown(run) for run in runs.to_dict("records")],
    }
    with files.atomic_write(plan.folder / NAME) as file:
        file.write(template.render(found).encode())


def _of_table(
    plan: Plan,
    name: str,
    names: Sequence[str],
    show: Callable[[pd.DataFrame | None], dict[str, Any]],
    problems: list[str],
) -> dict[str, Any]:
    """What is shown of a joint table; if it is damaged, that is a problem."""
    try:
        return show(pd.read_csv(plan.folder / name) if name in names else None)
    except (OSError, ValueError, KeyError) as error:
        problems.append(
            f"{plan.folder / name} cannot be read ({error}). To write it again, delete "
            f"{plan.folder / 'results.json'} and run the same command again."
        )
        return show(None)


def _about(plan: Plan, runs: pd.DataFrame, names: Sequence[str]) -> dict[str, Any]:
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
        "tables": ", ".join(sorted(["runs.csv", *(n for n in names if n.endswith(".csv"))])),
        "version": _version(),
        "corpus": _corpus(plan),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "torch": str(torch.__version__),
    }


def _problems(
    plan: Plan, runs: pd.DataFrame, error: str, has_results: bool, is_current: bool
) -> list[str]:
    """What is missing, in words."""
    found = [states.problem_of_data(plan)]
    counts = runs["state"].value_counts().items()
    done = int((runs["state"] == "done").sum())
    if missing := ", ".join(f"{n} {state}" for state, n in counts if state != "done"):
        told = "" if error else "There are no results yet."
        if has_results:
            told = _OLDER
            if is_current:
                told = f"The results below are from the {done} runs that are done."
        found.append(f"Not all of the {len(runs)} runs are done ({done} done, {missing}). {told}")
    elif has_results and not is_current:
        found.append(_OLDER)
    if error:
        found.append(f"The runs could not be evaluated together: {error}")
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
    with contextlib.suppress(UserError):
        return token_files.read_meta(plan.runs[0].data_dir).corpus_version
    return plan.runs[0].settings.corpus


def _listed(languages: tuple[str, ...]) -> str:
    *most, last = [perturb.get(name).title for name in languages]
    return f"{', '.join(most)} and {last}" if most else last


def summary(plan: Plan) -> str:
    """What was trained, in two sentences."""
    run, study = plan.runs[0], plan.settings
    t, count = run.settings, len(study.seeds)
    seeds = f"{count} seeds each" if count > 1 else "one seed each"
    listed = ", ".join(map(str, study.seeds))
    return (
        f"{len(study.languages)} languages with {seeds} ({listed}). Every "
        f"model has {t.n_layer} layers, a width of {t.n_embd} and {run.parameters / 1e6:.1f} "
        f"million parameters; training takes {t.max_steps:,} steps of {t.tokens_per_step:,} "
        f"tokens ({run.tokens:,} in all). Corpus: {_corpus(plan)}."
    )


def _comparisons(table: pd.DataFrame | None) -> dict[str, Any]:
    """Each language beside its control after the last step that all of them have."""
    if table is None:
        return {"comparisons": []}
    languages = table.groupby("step")["label"].nunique()
    table = table[table["step"] == languages.index[languages == table["label"].nunique()].max()]
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
            "sentence": sentence(row, len(with_markers)),
        }
        for row in with_markers.to_dict("records")
    ]
    kinds = set(with_markers["interval"])
    warnings = map(differences.lacking, with_markers.to_dict("records"))
    lacking = [f"Warning: {warning}" for warning in warnings if warning]
    over = " or ".join(sorted(kind.partition(", ")[2] for kind in kinds))
    return {
        "comparisons": found,
        "over": over,
        "has_markers": any(perturb.get(name).markers for name in with_markers["language"]),
        "interval_note": " ".join([*(_NOTES[kind] for kind in sorted(kinds)), *lacking]),
    }


def sentence(row: dict[str, Any], compared: int) -> str:
    """What a difference means, in words: with several seeds, what the corrected test says.

    row: of differences.csv, for one of `compared` languages. A difference or interval of more than
    _IN_PERCENT nats is given in nats of log-perplexity.
    """
    language, control = perturb.get(row["language"]).title, perturb.get(row["control"]).title
    low, middle, high = (float(row[name]) for name in ("low", "difference", "high"))
    start = f"After step {row['step']:,}, the perplexity of {language}"
    if not math.isfinite(middle):
        return f"{start} cannot be compared with that of {control}: the difference is not a number."
    unit, decimals = "%", 1
    if any(abs(value) > _IN_PERCENT for value in (low, middle, high)):
        start = f"After step {row['step']:,}, the log-perplexity of {language}"
        unit, decimals = " nats", 2
    else:
        low, middle, high = (100 * math.expm1(value) for value in (low, middle, high))
    if abs(middle) < 10**-decimals / 2:
        start = f"{start} differs from that of {control} by less than {10**-decimals}{unit}"
    else:
        word = "higher" if middle > 0 else "lower"
        start = f"{start} is {abs(middle):,.{decimals}f}{unit} {word} than that of {control}"
    seeds = f"{row['n']} seeds" if row["n"] > 1 else "one seed"
    if not (math.isfinite(low) and math.isfinite(high)):
        why = "too few sentences for an interval" if math.isnan(low) else "no finite interval"
        return f"{start} ({seeds}; {why})."
    kind = ""
    if row["n"] == 1:
        kind = " over test sentences of this one model:"
    elif compared > 1:
        kind = ", not corrected for the number of languages:"
    start = f"{start} (95% interval{kind} {_ends(low, high, unit, decimals)}, {seeds})"
    if reason := _doubt(row):
        return f"{start}, but {reason}: this study does not show a difference."
    return f"{start}."


def _ends(low: float, high: float, unit: str, decimals: int) -> str:
    """The ends of an interval: with signs if it includes zero."""
    sign, ends = "+", (low, high)
    if low > 0 or high < 0:
        sign, ends = "", sorted((abs(low), abs(high)))
    near, far = (f"{end:{sign},.{decimals}f}" for end in ends)
    return f"{near}{unit.removesuffix(' nats')} to {far}{unit}"


def _doubt(row: dict[str, Any]) -> str:
    """Why a row of differences.csv does not show a difference; empty if it does."""
    if row["n"] == 1:
        return "" if row["low"] > 0 or row["high"] < 0 else "the interval includes zero"
    if math.isnan(row["p_holm"]):
        return "nothing is tested at this step"
    return "" if row["p_holm"] < _LEVEL else f"p (Holm) is {_p(row['p_holm'])}"


def _p(value: float) -> str:
    if math.isnan(value):
        return "–"
    return "< 0.0001" if value < 1e-4 else f"{value:.4f}"


def _perplexities(table: pd.DataFrame | None) -> dict[str, Any]:
    """The test perplexity of each language after the last step: its mean over runs."""
    if table is None:
        return {"perplexities": []}
    last = table["step"].max()
    table = table[(table["genre"] == "all") & (table["step"] == last)]
    rows = []
    for label, group in table.groupby("model", sort=False):
        values = group["perplexity"].to_numpy()
        interval = "–"
        if len(values) > 1:
            low, high = intervals.t_interval(values[:, np.newaxis])
            interval = f"{low[0]:,.1f} to {high[0]:,.1f}"
        mean = f"{values.mean():,.1f}"
        rows.append({"language": label, "mean": mean, "interval": interval, "n": len(values)})
    is_of_seeds = any(row["n"] > 1 for row in rows)
    band = (
        "Lines are means over seeds, and bands pointwise 95% t-intervals of these means."
        if is_of_seeds
        else ""
    )
    return {"perplexities": rows, "last_step": f"{int(last):,}", "band_note": band}


def _picture(plan: Plan, name: str, names: Sequence[str]) -> str:
    """A picture of the joint results as a data URI; empty if there is none."""
    path = plan.folder / name
    if name not in names or not path.exists():
        return ""
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()


def _more(plan: Plan, names: Sequence[str]) -> list[dict[str, str]]:
    """Further pictures of the joint results, some of which are in subfolders."""
    return [
        {"data": _picture(plan, name, names), "caption": caption, "name": name}
        for file, caption in _MORE.items()
        for name in sorted(names)
        if Path(name).name == file
    ]


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
