"""A language is compared with its control on the same sentences, seed by seed."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy.stats
from conftest import succeed

import perturb
from impossible.evaluation import differences, intervals, perplexity
from impossible.evaluation.measures import MEASURES
from impossible.evaluation.models import Model, Seeds, Series
from impossible.evaluation.plots import groups_of
from impossible.evaluation.scores import Scores, Source
from impossible.evaluation.scoring import sentence_losses
from impossible.settings import Settings
from impossible.text import token_files
from impossible.text.tokenizer import Tokenizer

Make = Callable[..., Scores]
LANGUAGES = ("no_reverse", "partial_reverse", "full_reverse")


@pytest.fixture(scope="module")
def prepared(corpus_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("languages")
    for language in LANGUAGES:
        options = (f"--corpus={corpus_dir}", "--segmenter=line", f"--language={language}")
        succeed("prepare.py", *options, f"--data_dir={folder / language}")
    return folder


@pytest.fixture
def scored(prepared: Path) -> Make:
    """Makes scores with random losses at two steps, whose mean is given."""

    def make(
        language: str,
        mean: float,
        seed: int = 1,
        recipe: str = "recipe",
        place: str = "out",
        steps: tuple[int, ...] = (10, 20),
        **about: object,
    ) -> Scores:
        meta = token_files.read_meta(prepared / language)
        test = perplexity.draw(prepared / language, meta, 60, 7)
        sha256 = meta.splits["test"]["sha256"]
        names = [f"checkpoint-{step}" for step in steps]
        models = [Model(name, str, lambda _: None) for name in names]
        seeds, name = Seeds(seed, seed, seed, 0), f"{place}-{seed}"
        where = f"{place}/{language}/{seed}"
        series = Series(language, name, where, "", models, language, seeds, sha256, recipe)
        rng = np.random.default_rng([len(language), seed])
        count = len(test.sentences.tokens) - len(test.sentences.lengths)
        losses = {name: rng.normal(mean, 1, count).astype(np.float32) for name in names}
        source = Source(language, f"{language}-{sha256[:8]}", sha256)
        scores = Scores(Settings(language=language), series, source, test, losses)
        return scores.with_sequences(about=test.about | about)

    return make


def table(runs: list[Scores]) -> pd.DataFrame:
    return differences.table(runs, MEASURES["perplexity"].compared)


def means(s: Scores, step: int) -> np.ndarray:
    """The log-perplexity of each sentence."""
    return s.by_step(sentence_losses)[step]


def test_one_seed_gives_the_mean_over_sentences_and_its_bootstrap_interval(
    scored: Make,
) -> None:
    control, other = scored("no_reverse", 5), scored("partial_reverse", 5.5)
    compared = table([other, control])
    measures = ("perplexity", "perplexity_without_markers", "bits_per_byte")
    assert compared["measure"].tolist() == [name for name in measures for _ in range(2)]
    decode = Tokenizer(["🅁"]).decode
    for row in compared.itertuples():
        unscored = [50257] if row.measure == "perplexity_without_markers" else []
        means = []
        for e in (other, control):
            losses = iter(e.losses[f"checkpoint-{row.step}"].tolist())
            means.append([])
            for tokens in e.sequences.parts:
                scored = [(next(losses), token) for token in tokens[1:]]
                losses_of_sentence = [x for x, token in scored if token not in unscored]
                if row.measure == "bits_per_byte":
                    size = len(decode(tokens[1:]).replace("🅁", "").encode())
                    means[-1].append(sum(losses_of_sentence) / np.log(2) / size)
                else:
                    means[-1].append(np.mean(losses_of_sentence))
        expected = np.subtract(*means)
        expected = expected[~np.isnan(expected)]
        assert row.difference == pytest.approx(expected.mean(), abs=1e-6)
        half = 1.96 * expected.std(ddof=1) / len(expected) ** 0.5
        assert row.low == pytest.approx(row.difference - half, abs=half / 5)
        assert row.high == pytest.approx(row.difference + half, abs=half / 5)
        assert (row.n, row.sentences, row.sentences_drawn) == (1, len(expected), 120)
        assert np.isnan(row.p) and np.isnan(row.p_holm)
        assert (row.seeds, row.init_seeds, row.order_seeds, row.data_seeds) == ("1", "1", "1", "0")


def test_several_seeds_are_paired(scored: Make, capsys: pytest.CaptureFixture[str]) -> None:
    seeds = [1, 14, 41]
    runs = [
        scored(language, mean + seed / 41, seed)
        for language, mean in (("no_reverse", 5), ("partial_reverse", 5.1))
        for seed in seeds
    ]
    alone = scored("partial_reverse", 9, 96)
    compared = table([*runs, alone])
    message = (
        "(seed 96, init_seed 96, order_seed 96, data_seed 0) is not compared with its control: 0"
    )
    assert message in capsys.readouterr().out
    row = compared.iloc[1]
    control, other = np.array([np.nanmean(means(s, 20)) for s in runs]).reshape(2, 3)
    test = scipy.stats.ttest_rel(other, control)
    assert row.difference == pytest.approx((other - control).mean())
    assert row.p == pytest.approx(test.pvalue)
    assert (row.low, row.high) == pytest.approx(tuple(test.confidence_interval(0.95)))
    assert (row.n, row.seeds, row.data_seeds) == (3, "1 14 41", "0 0 0")


def test_a_language_without_a_control_is_named(
    scored: Make, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [scored("no_reverse", 5), scored("partial_reverse", 5)]
    alone = dataclasses.replace(perturb.get("partial_reverse"), control="")
    monkeypatch.setitem(perturb.LANGUAGES, "partial_reverse", alone)
    assert not len(table(runs))
    assert "partial_reverse is not compared: its row in perturb.py names no" in (
        capsys.readouterr().out
    )
    table(runs[1:])
    assert not capsys.readouterr().out, "nobody asked for a comparison"


def test_sentences_are_paired_by_their_ids(
    scored: Make, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever the language says of how its sentences are undone."""
    control, other = scored("no_reverse", 5), scored("partial_reverse", 5)
    wrong = dataclasses.replace(
        perturb.LANGUAGES["partial_reverse"], invert=lambda tokens, markers: tokens[:1]
    )
    monkeypatch.setitem(perturb.LANGUAGES, "partial_reverse", wrong)
    count = len(other.sequences.columns)
    compared = table([control, other])
    assert (compared["sentences"] == count).all()
    assert "warning" not in capsys.readouterr().out
    columns = control.sequences.columns.copy()
    columns.loc[: count // 2 - 1, "id"] += 10_000  # half of them are not those of the language
    few = control.with_sequences(columns=columns)
    compared = table([few, other])
    assert (compared["sentences"] == count - count // 2).all()
    assert (compared["sentences_drawn"] == count).all()
    message = f"warning: partial_reverse - NoReverse: only {count - count // 2} of {count} test"
    assert capsys.readouterr().out.count(message) == 1
    expected = [
        np.nanmean((means(other, step) - means(few, step))[count // 2 :]) for step in (10, 20)
    ]
    assert compared["difference"].tolist()[:2] == pytest.approx(expected)


def test_the_last_step_is_tested_with_holms_correction(scored: Make) -> None:
    languages = {"no_reverse": 5.0, "partial_reverse": 5.3, "full_reverse": 5.0}
    runs = [scored(name, mean, seed) for name, mean in languages.items() for seed in (1, 2, 3)]
    compared = table(runs)
    assert compared["p"].notna().tolist() == (compared["step"] == 20).tolist(), "steps 10 and 20"
    for _, rows in compared[compared["step"] == 20].groupby("measure"):
        smaller, larger = sorted(rows["p"])
        expected = [min(1, 2 * smaller), min(1, max(2 * smaller, larger))]
        assert sorted(rows["p_holm"]) == pytest.approx(expected)
    corrected = intervals.holm(np.array([0.04, np.nan, 0.01, 0.03]))
    np.testing.assert_allclose(corrected, [0.06, np.nan, 0.03, 0.06])
    assert intervals.holm(np.array([0.6, 0.7])).tolist() == [1, 1]


@pytest.mark.parametrize(
    "changes",
    [{"test_corpus": "another"}, {"test_segmenter": "sentencex"}, {"drop_duplicates": True}],
)
def test_a_run_without_a_partner_is_named(
    changes: dict[str, object], scored: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [scored("no_reverse", 5, **changes), scored("partial_reverse", 5)]
    assert differences.pairs_of(runs) == []
    if "drop_duplicates" not in changes:  # nor do they share a picture without a word
        labels = [label for label, _ in groups_of(runs)]
        for label, e in zip(labels, runs, strict=True):
            assert label == f"{e.label} ({e.series.name}, on {e.source.place})"
    assert "partial_reverse" in capsys.readouterr().out
    assert differences.pairs_of([scored("partial_reverse", 5)]) == []
    assert capsys.readouterr().out == "", "no control was asked for"


def test_only_runs_that_differ_in_their_seeds_are_averaged(
    scored: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [
        scored(language, 5, recipe=recipe, place=recipe)
        for language in ("no_reverse", "partial_reverse")
        for recipe in ("2 layers", "3 layers")
    ]
    compared = table(runs)
    assert (compared["n"] == 1).all()
    assert compared["label"].nunique() == 2
    again = scored("no_reverse", 4, recipe="2 layers", place="again")
    assert len(differences.pairs_of([*runs, again])) == 1
    assert "2 runs of NoReverse have the same seeds" in capsys.readouterr().out


def test_runs_without_a_common_step_or_with_one_sentence_have_no_interval(
    scored: Make,
) -> None:
    runs = [scored("no_reverse", 5), scored("partial_reverse", 5, steps=(30,))]
    assert table(runs).empty
    (row,) = intervals.summaries([np.array([[0.5]])]).itertuples()
    assert row.difference == 0.5
    assert np.isnan(row.low) and np.isnan(row.high)


def test_intervals_over_seeds_are_students_and_those_of_shares_stay_between_0_and_1() -> None:
    low, high = intervals.t_interval(np.array([[1.0], [2.0], [3.0]]))
    half = 4.302653 / 3**0.5  # t(0.975, 2) by tables
    assert (low, high) == (pytest.approx([2 - half]), pytest.approx([2 + half]))
    rng = np.random.default_rng(0)
    for count in (2, 3, 5):
        shares = rng.random((count, 200))
        shares[:, :100] = shares[:, :100] ** 9  # near 0
        low, high = intervals.share_interval(shares)
        assert ((low >= 0) & (low <= shares.mean(0)) & (shares.mean(0) <= high)).all()
        assert (high <= 1).all()
    close = np.array([[0.5], [0.501], [0.502]])  # far from the ends: Student's
    expected = np.concatenate(intervals.t_interval(close))
    assert np.concatenate(intervals.share_interval(close)) == pytest.approx(expected, abs=1e-5)
    low, high = intervals.share_interval(np.array([[0.6], [0.7]]))
    half = 12.706205 * 0.05 / (0.65 * 0.35)  # t(0.975, 1) by tables
    odds = np.log(0.65 / 0.35) + np.array([-half, half])
    assert [*low, *high] == pytest.approx(1 / (1 + np.exp(-odds)))
    ends = intervals.share_interval(np.array([[0.0, 1.0], [0.0, 1.0]]))
    assert np.isnan(ends).all(), "no interval where all runs have the same extreme"


def test_a_bootstrap_interval_has_95_percent() -> None:
    values = np.random.default_rng(1).normal(0, 1, (1, 4000))
    low, high = intervals.bootstrap_interval(values)
    half = 1.96 * values.std(ddof=1) / 4000**0.5
    assert [*low, *high] == pytest.approx([values.mean() - half, values.mean() + half], abs=0.003)
