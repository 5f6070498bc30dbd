"""A language is compared with its control on the same sentences, seed by seed."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
from conftest import succeed

from impossible.evaluation import differences, scoring
from impossible.evaluation.curves import groups_of
from impossible.evaluation.results import Evaluation
from impossible.evaluation.series import Member, Series
from impossible.settings import Evaluate
from impossible.text import token_files

Make = Callable[..., Evaluation]
LANGUAGES = ("no_reverse", "partial_reverse", "no_shuffle", "nondeterministic_shuffle")


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
        seed: str = "seed 1",
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
        series = Series(language, where, "", members, language, seed, test.split_sha256, recipe)
        rng = np.random.default_rng(len(language) + len(seed))
        count = len(test.sentences.tokens) - len(test.sentences.lengths)
        losses = {name: rng.normal(mean, 1, count).astype(np.float32) for name in names}
        return Evaluation(Evaluate(language=language), series, test, losses)

    return make


def test_one_seed_gives_the_mean_over_sentences_and_its_bootstrap_interval(
    evaluation: Make,
) -> None:
    control, other = evaluation("no_reverse", 5), evaluation("partial_reverse", 5.5)
    pairs = differences.pairs_of([other, control])
    found = differences.table(pairs)
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
        assert (row.n, row.sentences, row.unequal_sentences) == (1, len(expected), 0)
        assert np.isnan(row.p)
    (curve,) = differences.curves(found, {"NoReverse": 0, "partial_reverse": 1})
    assert curve.label == "partial_reverse - NoReverse"
    assert curve.style == 1, "the colour of the language in the picture of perplexities"
    assert curve.steps == [10, 20]


def test_several_seeds_are_paired(evaluation: Make, capsys: pytest.CaptureFixture[str]) -> None:
    seeds = [f"seed {'1' * n}" for n in range(1, 4)]
    runs = [
        evaluation(language, mean + len(seed), seed)
        for language, mean in (("no_reverse", 5), ("partial_reverse", 5.1))
        for seed in seeds
    ]
    alone = evaluation("partial_reverse", 9, "another seed")
    found = differences.table(differences.pairs_of([*runs, alone]))
    assert "(another seed) is left out of differences.csv: 0 runs" in capsys.readouterr().out
    row = found.iloc[0]
    means = np.array([np.nanmean(e.sentence_losses(e.series.members[0])) for e in runs]).reshape(
        2, 3
    )
    test = scipy.stats.ttest_rel(means[1], means[0])
    assert row.difference == pytest.approx((means[1] - means[0]).mean())
    assert row.p == pytest.approx(test.pvalue)
    assert (row.low, row.high) == pytest.approx(tuple(test.confidence_interval(0.95)))
    assert (row.n, row.seeds) == (3, "; ".join(seeds))


def test_a_language_that_cannot_be_undone_is_compared_by_the_tokens_of_each_sentence(
    evaluation: Make,
) -> None:
    runs = [evaluation("no_shuffle", 5), evaluation("nondeterministic_shuffle", 6)]
    (row, *_) = differences.table(differences.pairs_of(runs)).itertuples()
    assert (row.control, row.unequal_sentences) == ("no_shuffle", 0)


def test_sentences_that_are_not_equal_do_not_count(evaluation: Make) -> None:
    control, other = evaluation("no_reverse", 5), evaluation("partial_reverse", 5)
    tokens = control.test.sentences.tokens.copy()
    tokens[np.flatnonzero(tokens != 50257)[:1]] += 1  # in the first sentence
    sentences = control.test.sentences._replace(tokens=tokens)
    test = dataclasses.replace(control.test, sentences=sentences)
    control = dataclasses.replace(control, test=test)
    found = differences.table(differences.pairs_of([control, other]))
    assert (found["unequal_sentences"] == 1).all()
    assert found["sentences"].max() == len(other.test.ids) - 1


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
            assert label == f"{e.label} ({e.series.place}, on {e.test.data_dir})"
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
    found = differences.table(differences.pairs_of(runs))
    assert (found["n"] == 1).all()
    assert found["label"].nunique() == 2
    again = evaluation("no_reverse", 4, recipe="2 layers", place="again")
    assert len(differences.pairs_of([*runs, again])) == 1
    assert "2 runs of NoReverse have the same seeds" in capsys.readouterr().out


def test_runs_without_a_common_step_or_with_one_sentence_have_no_interval(
    evaluation: Make,
) -> None:
    runs = [evaluation("no_reverse", 5), evaluation("partial_reverse", 5, steps=(30,))]
    assert differences.table(differences.pairs_of(runs)).empty
    (found,) = differences.summaries([np.array([[0.5]])])
    assert found["difference"] == 0.5
    assert np.isnan(found["low"]) and np.isnan(found["high"])
