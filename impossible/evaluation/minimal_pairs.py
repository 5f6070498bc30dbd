"""Minimal pairs in an impossible language: does a model prefer the grammatical sentence?

Both sentences of a pair are perturbed with the same random draw, so that they differ in nothing but
what makes one ungrammatical. The first token is predicted from <|endoftext|>, and a pair counts as
right if the log-probabilities of the grammatical sentence have the higher sum.
"""

import dataclasses
import functools
import zlib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch

import perturb
from impossible.distributed import World
from impossible.evaluation import results, scoring
from impossible.evaluation.pair_files import Pair, folder_name, read
from impossible.evaluation.results import Material, OnMaterial
from impossible.evaluation.series import Member, Series
from impossible.settings import Settings, UserError
from impossible.text import annotate
from impossible.text.arrays import Sentences, from_lengths
from impossible.text.token_files import ALL_GENRES as TOTAL
from impossible.text.tokenizer import END_OF_TEXT_ID, Tokenizer
from impossible.text.verbs import annotated, encoded


@dataclass(frozen=True)
class PairSet:
    """Pairs in one language."""

    language: str
    source: str
    pairs: list[Pair]  # K of them
    sentences: Sentences  # 2 K of them, each after <|endoftext|>: the good and the bad one in turn
    left_out: Counter[tuple[str, str]]  # by paradigm and field: pairs that cannot be compared


@functools.lru_cache
def perturbed(source: str, language: str, leading_space: bool = False, name: str = "") -> PairSet:
    """Both sentences of each pair of a source in a language, perturbed with the same draw.

    leading_space: encode each sentence after a space. (In training data, none begins with one.)
    name: as of `folder_name`, so that files that have changed are read again.

    Left out are pairs of which one sentence is dropped in that language; pairs of unequal length
    in tokens, if the language's rule depends on it; and pairs whose sentences become the same (as
    the *Hop languages replace verbs by lemmas).
    """
    pairs, rule = read(source, name), perturb.get(language)
    tokenizer = Tokenizer(rule.markers)
    if leading_space and rule.hops:
        raise UserError("the *Hop languages join words anew: leave --leading_space out.")
    space = " " if leading_space else ""
    texts = [[space + pair.good for pair in pairs], [space + pair.bad for pair in pairs]]
    both = [_encoded(t, rule, tokenizer) for t in texts]
    kept = rule.keeps(both[0]) & rule.keeps(both[1])
    if not rule.any_length:
        kept &= both[0].lengths == both[1].lengths
    chosen, markers = np.flatnonzero(kept), list(tokenizer.markers.values())
    seeds = [_seed(pairs[i], rule) for i in chosen]
    both = [_drawn(sentences, chosen, seeds, rule, markers) for sentences in both]
    parts = [np.split(s.tokens, s.offsets[1:-1]) for s in both] if len(chosen) else [[], []]
    lost = Counter((p.paradigm, p.field) for p in pairs)
    return _different(source, language, lost, [pairs[i] for i in chosen], *parts)


def _different(
    source: str,
    language: str,
    lost: Counter[tuple[str, str]],
    pairs: list[Pair],
    good: list[np.ndarray],
    bad: list[np.ndarray],
) -> PairSet:
    """The pairs whose sentences differ in their tokens. Raises UserError if there are none.

    lost: the number of pairs of each paradigm and field before any was left out.
    """
    differ = [not np.array_equal(a, b) for a, b in zip(good, bad, strict=True)]
    rows = [
        np.append(END_OF_TEXT_ID, tokens)
        for a, b, is_pair in zip(good, bad, differ, strict=True)
        if is_pair
        for tokens in (a, b)
    ]
    if not rows:
        title = perturb.get(language).title
        raise UserError(f"no pair of {source} can be compared in {title}.")
    kept = [pair for pair, is_pair in zip(pairs, differ, strict=True) if is_pair]
    lost.subtract((p.paradigm, p.field) for p in kept)
    sentences = from_lengths(np.concatenate(rows), np.array([len(row) for row in rows]))
    return PairSet(language, source, kept, sentences, lost)


def _seed(pair: Pair, rule: perturb.Language) -> list[int]:
    """The seed of a pair's draw, which is the same whatever other pairs there are."""
    return [rule.seed, zlib.crc32(f"{pair.paradigm} {pair.item}".encode())]


def _drawn(
    sentences: Sentences,
    chosen: np.ndarray,
    seeds: list[list[int]],
    rule: perturb.Language,
    markers: list[int],
) -> Sentences:
    """The chosen sentences, each perturbed with a generator of its own."""
    parts = [
        rule.perturb(sentences.part(i, i + 1), markers, np.random.default_rng(seed)).tokens
        for i, seed in zip(chosen.tolist(), seeds, strict=True)
    ]
    lengths = np.array(list(map(len, parts)), np.int64)
    return from_lengths(np.concatenate([np.empty(0, np.uint16), *parts]), lengths)


def _encoded(texts: list[str], rule: perturb.Language, tokenizer: Tokenizer) -> Sentences:
    if not rule.hops:
        return from_lengths(*tokenizer.encode(texts))
    words = zip(annotate.words_of(texts), texts, strict=True)
    sentences = [annotated(words_of, text, annotate.NAME) for words_of, text in words]
    return encoded(sentences, tokenizer, rule.hops)


# Scoring


@dataclass(frozen=True)
class PairEvaluation(OnMaterial):
    """A series of models on minimal pairs."""

    pairs: PairSet
    losses: dict[str, np.ndarray]  # member -> as scoring.losses returns them
    common: frozenset[tuple[str, str]] | None = None  # of several series: the pairs that all have

    @functools.cached_property
    def test_id(self) -> str:
        """What is the same for the same pairs in the same language."""
        return scoring.sha256_of(self.pairs.sentences)

    @property
    def test_place(self) -> str:
        """The name of the pairs: that of their file or folder, and a hash of the content."""
        return folder_name("pairs", self.pairs.source).removeprefix("pairs_")

    def interval(self, member: Member) -> tuple[float, float]:
        """The ends of the 95% Wilson interval of the accuracy."""
        right = _right(self.log_probabilities(member))[self.is_common]
        return _wilson(int(right.sum()), int(right.count()))

    @property
    def is_common(self) -> np.ndarray:
        """Whether each pair is one of those that all series have, (K,) bool."""
        found = [self.common is None or key_of(pair) in self.common for pair in self.pairs.pairs]
        return np.array(found, bool)

    def accuracy(self, member: Member) -> float:
        """The share of pairs that a model gets right, of those that all series have."""
        return float(_right(self.log_probabilities(member))[self.is_common].mean())

    def log_probabilities(self, member: Member) -> np.ndarray:
        """Those of the good and the bad sentence of each pair, in nats, (K, 2) float64."""
        return _sums(self.losses[member.name], self.pairs.sentences)


def folder_of(settings: Settings, series: Series) -> Path:
    """The folder for the results of a series on the pairs."""
    return results.material_folder(settings, series, name_of(settings))


def name_of(settings: Settings) -> str:
    """The name of the folders for the results on these sentences."""
    return folder_name("pairs", settings.pairs, settings.leading_space)


def key_of(pair: Pair) -> tuple[str, str]:
    """What is the same for a pair in all languages."""
    return pair.paradigm, pair.item


def on_common(evaluations: list["PairEvaluation"]) -> list["PairEvaluation"]:
    """The same evaluations, which know the pairs that all of them have, if they are several."""
    if len(evaluations) == 1:
        return evaluations
    kept = [set(map(key_of, e.pairs.pairs)) for e in evaluations]
    common = frozenset(set.intersection(*kept))
    of_all = len(evaluations[0].pairs.pairs) + evaluations[0].pairs.left_out.total()
    print(f"{len(common):,} of {of_all:,} pairs are evaluated in all languages (see left_out)")
    return [dataclasses.replace(e, common=common) for e in evaluations]


def evaluate(
    settings: Settings, series: Series, world: World, device: torch.device
) -> PairEvaluation:
    """Score the pairs with all models of a series; all processes must call it."""
    language = results.test_language(settings)
    name = name_of(settings)
    made = perturbed(settings.pairs, language, settings.leading_space, name)
    evaluation = PairEvaluation(settings, series, name, made, {})
    found = results.score(
        series,
        Material(evaluation.title, made.language, made.sentences),
        evaluation.folder,
        lambda losses: _result(made.pairs, _sums(losses, made.sentences)),
        world,
        device,
    )
    return dataclasses.replace(evaluation, losses=found)


def _sums(losses: np.ndarray, sentences: Sentences) -> np.ndarray:
    means = scoring.sentence_losses(losses, sentences)
    return -(means * (sentences.lengths - 1)).reshape(-1, 2)


def _result(pairs: list[Pair], log_probabilities: np.ndarray) -> str:
    """The accuracy of a model, for people."""
    right = _right(log_probabilities)
    return (
        f"{right.mean():.1%} of pairs right (mean over paradigms: "
        f"{_over_paradigms(pairs, right):.1%})"
    )


def _over_paradigms(pairs: list[Pair], right: pd.Series) -> float:
    """The mean of the accuracies of all paradigms, as BLiMP reports it. right: as of `_right`."""
    return float(right.groupby(np.array([pair.paradigm for pair in pairs])).mean().mean())


def _right(log_probabilities: np.ndarray) -> pd.Series:
    """Of each pair, 1 if it is right, 0 if it is wrong, and NaN if it is not scored, (K,)."""
    good, bad = log_probabilities.T
    return pd.Series(good > bad, dtype=float).where(~np.isnan(good + bad))


# Tables and curves


def table(e: PairEvaluation) -> pd.DataFrame:
    """A row for each checkpoint and paradigm, and one for all pairs.

    In the latter, `accuracy` is the mean over pairs, `accuracy_over_paradigms` that over paradigms.
    """
    paradigms: dict[tuple[str, str], list[int]] = {key: [] for key in e.pairs.left_out}
    for i, pair in enumerate(e.pairs.pairs):
        paradigms.setdefault((pair.paradigm, pair.field), []).append(i)
    groups = [*sorted(paradigms.items()), ((TOTAL, ""), list(range(len(e.pairs.pairs))))]
    about = {**e.columns, "test_language": e.pairs.language, "pairs_from": e.test_place}
    rows = []
    for member in e.series.members:
        right = _right(e.log_probabilities(member))
        common = right.where(e.is_common)
        named = about | {"checkpoint": member.name, "step": member.step}
        for (paradigm, field), places in groups:
            row = {"paradigm": paradigm, "field": field, **_accuracy(right[places])}
            left_out = e.pairs.left_out
            unread = left_out.total() if paradigm == TOTAL else left_out[paradigm, field]
            row["left_out"] = unread + len(places) - row["pairs"]
            if e.common is not None:
                row["accuracy_common"] = common[places].mean()
                row["pairs_common"] = int(common[places].count())
            rows.append(named | row)
        rows[-1]["accuracy_over_paradigms"] = _over_paradigms(e.pairs.pairs, right)
        if e.common is not None:
            rows[-1]["accuracy_common_over_paradigms"] = _over_paradigms(e.pairs.pairs, common)
    return pd.DataFrame(rows).astype({"step": "Int64"})


def _accuracy(right: pd.Series) -> dict[str, float | int]:
    """The share of right pairs, its 95% Wilson interval, and the number of scored pairs."""
    low, high = _wilson(int(right.sum()), int(right.count()))
    return {"accuracy": right.mean(), "low": low, "high": high, "pairs": int(right.count())}


def _wilson(right: int, count: int) -> tuple[float, float]:
    from scipy.stats import binomtest

    if not count:
        return np.nan, np.nan
    found = binomtest(right, count).proportion_ci(method="wilson")
    return found.low, found.high


def items(e: PairEvaluation) -> pd.DataFrame:
    """A row for each pair and checkpoint, with the log-probabilities of its two sentences."""
    tokenizer = Tokenizer(perturb.get(e.pairs.language).markers)
    parts = np.split(e.pairs.sentences.tokens, e.pairs.sentences.offsets[1:-1])
    texts = [tokenizer.decode(part[1:]) for part in parts]
    common = pd.DataFrame(e.pairs.pairs).assign(
        perturbed_good=texts[::2], perturbed_bad=texts[1::2]
    )
    tables = []
    for member in e.series.members:
        good, bad = e.log_probabilities(member).T
        is_right = _right(e.log_probabilities(member))  # empty in csv if it is not scored
        values = {"log_probability_good": good, "log_probability_bad": bad, "is_right": is_right}
        about = e.columns | {"test_language": e.pairs.language, "checkpoint": member.name}
        tables.append(common.assign(**about, step=member.step, **values))
    return pd.concat(tables, ignore_index=True).astype({"step": "Int64", "is_right": "Int64"})
