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
from impossible.evaluation import differences, scoring
from impossible.evaluation.curves import groups_of
from impossible.evaluation.results import Evaluation
from impossible.evaluation.series import Member, Seeds, Series
from impossible.settings import Settings
from impossible.text import token_files

Make = Callable[..., Evaluation]
LANGUAGES = (
    "no_reverse",
    "partial_reverse",
    "full_reverse",
    "no_shuffle",
    "nondeterministic_shuffle",
)


@pytest.fixture(scope="module")
def prepared(corpus_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("languages")
    for language in LANGUAGES:
        options = (f"--corpus={corpus_dir}", "--segmenter=line", f"--language={language}")
        succeed("prepare.py", *options, f"--data_dir={folder / language}")
    return folder


@pytest.fixture
def evaluation(prepared: Path) -> Make:
    """Makes evaluations with random losses at two steps, whose mean is given."""

    def make(
        language: str,
        mean: float,
        seed: int = 1,
        recipe: str = "recipe",
        place: str = "out",
        steps: tuple[int, ...] = (10, 20),
        **changes: object,
    ) -> Evaluation:
        data = prepared / language
        test = scoring.draw(data, token_files.read_meta(data), 60, 7)
        test = dataclasses.replace(test, **changes)
        names = [f"checkpoint-{step}" for step in steps]
        members = [Member(name, str, lambda _: None) for name in names]
        where = f"{place}/{language}/{seed}"
        seeds, name = Seeds(seed, seed, seed, 0), f"{place}-{seed}"
        about = (language, seeds, test.split_sha256, recipe)
        series = Series(language, name, where, "", members, *about)
        rng = np.random.default_rng([len(language), seed])
        count = len(test.sentences.tokens) - len(test.sentences.lengths)
        losses = {name: rng.normal(mean, 1, count).astype(np.float32) for name in names}
        return Evaluation(Settings(language=language), series, test, losses)

    return make


def table(runs: list[Evaluation]) -> pd.DataFrame:
    return differences.table(differences.pairs_of(runs), differences.LOG_PERPLEXITIES)


def test_one_seed_gives_the_mean_over_sentences_and_its_bootstrap_interval(
    evaluation: Make,
) -> None:
    control, other = evaluation("no_reverse", 5), evaluation("partial_reverse", 5.5)
    found = table([other, control])
    assert found["measure"].tolist() == ["perplexity"] * 2 + ["perplexity_without_markers"] * 2
    for row in found.itertuples():
        member = next(m for m in other.series.members if m.step == row.step)
        unscored = [] if row.measure == "perplexity" else [50257]
        means = []
        for e in (other, control):
            losses = iter(e.losses[member.name].tolist())
            means.append([])
            for tokens in e.test.tokens_of(range(len(e.test.ids))):
                scored = [(next(losses), token) for token in tokens[1:]]
                means[-1].append(np.mean([x for x, token in scored if token not in unscored]))
        expected = np.subtract(*means)
        expected = expected[~np.isnan(expected)]
        assert row.difference == pytest.approx(expected.mean(), abs=1e-6)
        half = 1.96 * expected.std(ddof=1) / len(expected) ** 0.5
        assert row.low == pytest.approx(row.difference - half, abs=half / 5)
        assert row.high == pytest.approx(row.difference + half, abs=half / 5)
        assert (row.n, row.sentences, row.sentences_drawn) == (1, len(expected), 120)
        assert np.isnan(row.p) and np.isnan(row.p_holm)
        assert (row.seeds, row.init_seeds, row.order_seeds, row.data_seeds) == ("1", "1", "1", "0")
    (curve,) = differences.curves(found, {"NoReverse": 0, "partial_reverse": 1})
    assert curve.label == "partial_reverse - NoReverse"
    assert curve.style == 1, "the colour of the language in the picture of perplexities"
    assert curve.steps == [10, 20]


def test_several_seeds_are_paired(evaluation: Make, capsys: pytest.CaptureFixture[str]) -> None:
    seeds = [1, 14, 41]
    runs = [
        evaluation(language, mean + seed / 41, seed)
        for language, mean in (("no_reverse", 5), ("partial_reverse", 5.1))
        for seed in seeds
    ]
    alone = evaluation("partial_reverse", 9, 96)
    found = table([*runs, alone])
    told = "(seed 96, init_seed 96, order_seed 96, data_seed 0) is not compared with its control: 0"
    assert told in capsys.readouterr().out
    row = found.iloc[1]
    means = np.array([np.nanmean(e.sentence_losses(e.series.members[1])) for e in runs]).reshape(
        2, 3
    )
    test = scipy.stats.ttest_rel(means[1], means[0])
    assert row.difference == pytest.approx((means[1] - means[0]).mean())
    assert row.p == pytest.approx(test.pvalue)
    assert (row.low, row.high) == pytest.approx(tuple(test.confidence_interval(0.95)))
    assert (row.n, row.seeds, row.data_seeds) == (3, "1 14 41", "0 0 0")


def test_a_language_that_cannot_be_undone_is_compared_by_the_tokens_of_each_sentence(
    evaluation: Make,
) -> None:
    runs = [evaluation("no_shuffle", 5), evaluation("nondeterministic_shuffle", 6)]
    (row, *_) = table(runs).itertuples()
    assert (row.control, row.sentences_drawn) == ("no_shuffle", len(runs[0].test.ids))


def test_a_language_without_a_control_is_named(
    evaluation: Make, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [evaluation("no_reverse", 5), evaluation("partial_reverse", 5)]
    alone = dataclasses.replace(perturb.get("partial_reverse"), control="")
    monkeypatch.setitem(perturb.LANGUAGES, "partial_reverse", alone)
    assert not len(table(runs))
    assert "partial_reverse is not compared: its row in perturb.py names no" in (
        capsys.readouterr().out
    )
    table(runs[1:])
    assert not capsys.readouterr().out, "nobody asked for a comparison"


def test_sentences_are_paired_by_their_ids(
    evaluation: Make, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever the language says of how its sentences are undone."""
    control, other = evaluation("no_reverse", 5), evaluation("partial_reverse", 5)
    wrong = dataclasses.replace(
        perturb.LANGUAGES["partial_reverse"], invert=lambda tokens, markers: tokens[:1]
    )
    monkeypatch.setitem(perturb.LANGUAGES, "partial_reverse", wrong)
    count = len(other.test.ids)
    found = table([control, other])
    assert (found["sentences"] == count).all()
    assert "warning" not in capsys.readouterr().out
    few = control.test.ids.copy()
    few[: count // 2] += 10_000  # half of the sentences are not those of the language
    few = dataclasses.replace(control, test=dataclasses.replace(control.test, ids=few))
    found = table([few, other])
    assert (found["sentences"] == count - count // 2).all()
    assert (found["sentences_drawn"] == count).all()
    told = f"warning: partial_reverse - NoReverse: only {count - count // 2} of {count} test"
    assert capsys.readouterr().out.count(told) == 1
    expected = [
        np.nanmean((other.sentence_losses(m) - few.sentence_losses(m))[count // 2 :])
        for m in other.series.members
    ]
    assert found["difference"].tolist()[:2] == pytest.approx(expected)


def test_the_last_step_is_tested_with_holms_correction(evaluation: Make) -> None:
    languages = {"no_reverse": 5.0, "partial_reverse": 5.3, "full_reverse": 5.0}
    runs = [evaluation(name, mean, seed) for name, mean in languages.items() for seed in (1, 2, 3)]
    found = table(runs)
    assert found["p"].notna().tolist() == (found["step"] == 20).tolist(), "steps 10 and 20"
    for _, rows in found[found["step"] == 20].groupby("measure"):
        smaller, larger = sorted(rows["p"])
        expected = [min(1, 2 * smaller), min(1, max(2 * smaller, larger))]
        assert sorted(rows["p_holm"]) == pytest.approx(expected)
    corrected = differences.holm(np.array([0.04, np.nan, 0.01, 0.03]))
    np.testing.assert_allclose(corrected, [0.06, np.nan, 0.03, 0.06])
    assert differences.holm(np.array([0.6, 0.7])).tolist() == [1, 1]


@pytest.mark.parametrize(
    "changes", [{"corpus": "another"}, {"segmenter": "sentencex"}, {"drop_duplicates": True}]
)
def test_a_run_without_a_partner_is_named(
    changes: dict[str, object], evaluation: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [evaluation("no_reverse", 5, **changes), evaluation("partial_reverse", 5)]
    assert differences.pairs_of(runs) == []
    if changes.keys() & {"corpus", "segmenter"}:  # nor do they share a picture without a word
        labels = [label for label, _ in groups_of(runs)]
        for label, e in zip(labels, runs, strict=True):
            data = f"{e.test.language}-{e.test.split_sha256[:8]}"
            assert label == f"{e.label} ({e.series.name}, on {data})"
    assert "partial_reverse" in capsys.readouterr().out
    assert differences.pairs_of([evaluation("partial_reverse", 5)]) == []
    assert capsys.readouterr().out == "", "no control was asked for"


def test_only_runs_that_differ_in_their_seeds_are_averaged(
    evaluation: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [
        evaluation(language, 5, recipe=recipe, place=recipe)
        for language in ("no_reverse", "partial_reverse")
        for recipe in ("2 layers", "3 layers")
    ]
    found = table(runs)
    assert (found["n"] == 1).all()
    assert found["label"].nunique() == 2
    again = evaluation("no_reverse", 4, recipe="2 layers", place="again")
    assert len(differences.pairs_of([*runs, again])) == 1
    assert "2 runs of NoReverse have the same seeds" in capsys.readouterr().out


def test_runs_without_a_common_step_or_with_one_sentence_have_no_interval(
    evaluation: Make,
) -> None:
    runs = [evaluation("no_reverse", 5), evaluation("partial_reverse", 5, steps=(30,))]
    assert table(runs).empty
    (found,) = differences.summaries([np.array([[0.5]])])
    assert found["difference"] == 0.5
    assert np.isnan(found["low"]) and np.isnan(found["high"])
