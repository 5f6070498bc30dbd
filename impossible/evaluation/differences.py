"""Differences between each language and its control on the same sentences (log-perplexity, ...).

Perplexities of languages with and without markers cannot be compared, as a marker is easy or hard
to predict by itself. The control has the same markers and the same sentences, in a natural order.
"""

from collections.abc import Callable, Mapping

import numpy as np
import pandas as pd

import perturb
from impossible.evaluation.intervals import holm, summaries
from impossible.evaluation.perplexity import sentence_ids
from impossible.evaluation.plots import groups_of, seeds_of
from impossible.evaluation.scores import Scores
from impossible.evaluation.scoring import Sequences

# Maps the losses of a model on test sentences to a value for each sentence, (S,).
Values = Callable[[Sequences, np.ndarray], np.ndarray]
Pair = tuple[Scores, Scores]  # a run, and the run of its control with the same seeds
_ENOUGH = 0.9  # share of the sampled sentences below which a warning is printed


def table(scores: list[Scores], measures: Mapping[str, Values]) -> pd.DataFrame:
    """A row for each curve, measure, and step that all its runs and their controls have.

    `p` is from a t-test, at the last step alone; `p_holm` is corrected for the number of curves.
    """
    parts = [
        _curve(label, pairs, measure, values)
        for label, pairs in pairs_of(scores)
        for measure, values in measures.items()
    ]
    if not (parts := [part for part in parts if len(part)]):
        return pd.DataFrame()
    differences = pd.concat(parts, ignore_index=True)
    p = differences.groupby("measure")["p"]
    differences["p_holm"] = p.transform(lambda values: holm(values.to_numpy()))
    for row in differences.drop_duplicates("label").itertuples():
        if row.sentences < _ENOUGH * row.sentences_drawn:
            print(
                f"warning: {row.label}: only {row.sentences:,} of {row.sentences_drawn:,} test "
                "sentences are compared. The others are not among those of the control, or too "
                "long for the models."
            )
    return differences


def pairs_of(scores: list[Scores]) -> list[tuple[str, list[Pair]]]:
    """The label and the pairs of each curve; the runs of several pairs differ only in their seeds.

    Runs without exactly one control of the same seeds, settings and test sentences are left out,
    with a message if their language has no control, or if any run of its control is evaluated.
    """
    own = [s for s in scores if s.series.language == s.source.language]
    controls: dict[tuple[object, ...], list[Scores]] = {}
    for s in own:
        if _control(s) == s.source.language:
            controls.setdefault(_partner(s), []).append(s)
    others = [s for s in own if _control(s) != s.source.language]
    curves = []
    for label, group in groups_of(others):
        control = _control(group[0])
        if not control and len(own) > 1:
            print(f"{label} is not compared: its row in perturb.py names no control=")
        title = perturb.get(control).title if control else ""
        pairs = []
        for s in group:
            partners = controls.get(_partner(s), [])
            if len(partners) == 1:
                pairs.append((s, partners[0]))
            elif control in {name for name, *_ in controls}:
                print(
                    f"{s.title} ({s.series.seeds}) is not compared with its control: "
                    f"{len(partners)} runs of {title} have the same seeds, settings and test data "
                    "(expected: 1)"
                )
        if pairs:
            curves.append((f"{label} - {title}", pairs))
    return curves


def _control(s: Scores) -> str:
    return perturb.get(s.source.language).control


def _partner(s: Scores) -> tuple[object, ...]:
    """The properties that a run and the run of its control must share."""
    names = ("test_corpus", "test_segmenter", "sample_seed", "drop_duplicates")
    sampled = (s.sequences.about[name] for name in names)
    return (_control(s), s.series.seeds, s.series.recipe, *sampled)


def _curve(label: str, pairs: list[Pair], measure: str, of: Values) -> pd.DataFrame:
    """The rows of `table` for one curve and measure; empty if its runs have no common step."""
    runs = [_differences(*pair, of) for pair in pairs]
    steps = sorted(set.intersection(*(set(run) for run in runs)))
    if missing := ", ".join(map(str, sorted(set().union(*runs) - set(steps)))):
        print(f"{label}, {measure}: left out the steps {missing}, which some seeds lack")
    if not steps:
        return pd.DataFrame()
    values = [np.ascontiguousarray(run[steps].to_numpy().T) for run in runs]  # (steps, sentences)
    about = {
        "label": label,
        "language": pairs[0][0].source.language,
        "control": pairs[0][1].source.language,
        "measure": measure,
        "step": steps,
    }
    return (
        pd.DataFrame(about)
        .join(summaries(values))
        .assign(
            p=[np.nan] * (len(steps) - 1) + [_p([run[-1].mean() for run in values])],
            p_holm=np.nan,
            sentences_drawn=max(len(s.sequences.columns) for s, _ in pairs),
            **seeds_of([s for s, _ in pairs]),
        )
    )


def _differences(scores: Scores, control: Scores, of: Values) -> pd.DataFrame:
    """The difference of each sentence that both runs sampled; rows are ids, columns are steps.

    A sentence that is too long, or of which nothing is scored, is left out.
    """
    own, other = (
        pd.DataFrame(s.by_step(of), index=sentence_ids(s.sequences)) for s in (scores, control)
    )
    steps = [step for step in own if step in other]
    common = own.index[own.index.isin(other.index)]
    return (own.loc[common, steps] - other.loc[common, steps]).dropna()


def _p(means: list[float]) -> float:
    """The p-value of a t-test of the hypothesis that the runs' mean is zero; NaN for one run."""
    from scipy.stats import ttest_1samp

    return float(ttest_1samp(means, 0).pvalue) if len(means) > 1 else np.nan


def curves(differences: pd.DataFrame, measure: str, styles: Mapping[str, int]) -> pd.DataFrame:
    """The curves of a measure, for `plots.draw`. differences: from `table`. styles: by label."""
    rows = differences[differences["measure"] == measure]
    curve = rows["label"].str.rpartition(" - ")[0].map(styles)
    in_order = pd.Series(pd.factorize(rows["label"])[0], rows.index)
    rows = rows.rename(columns={"difference": "mean"})
    return rows.assign(style=curve.fillna(in_order), is_faint=False)
