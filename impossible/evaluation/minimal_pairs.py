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
from impossible.errors import UserError
from impossible.evaluation import results, scoring
from impossible.evaluation.pair_files import Pair, read
from impossible.evaluation.results import Material, OnMaterial
from impossible.evaluation.series import Member, Series
from impossible.settings import Evaluate
from impossible.text.tokenizer import END_OF_TEXT_ID, Tokenizer
from impossible.text.words import by_spacy, hops
from impossible.text.words.verbs import annotated
from impossible.training.processes import World
from perturb import Sentences, from_lengths

_ALL = "all"  # in place of a paradigm: all pairs together


@dataclass(frozen=True)
class PairSet:
    """Pairs in one language."""

    language: str
    source: str
    pairs: list[Pair]  # K of them
    sentences: Sentences  # 2 K of them, each after <|endoftext|>: the good and the bad one in turn
    left_out: Counter[tuple[str, str]]  # by paradigm and field: pairs that cannot be compared


@functools.lru_cache
def perturbed(source: str, language: str, leading_space: bool = False) -> PairSet:
    """Both sentences of each pair of a source in a language, perturbed with the same draw.

    leading_space: encode each sentence after a space. (In training data, none begins with one.)

    Left out are pairs of which one sentence is dropped in that language; pairs of unequal length
    in tokens, if the language's rule depends on it; and pairs whose sentences become the same (as
    the *Hop languages replace verbs by lemmas).
    """
    pairs, rule = read(source), perturb.get(language)
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
    if rule.any_length:  # nothing is drawn
        rng = np.random.default_rng(rule.seed)
        both = [rule.perturb(sentences, markers, rng).take(kept) for sentences in both]
    else:
        seeds = [_seed(pairs[i], rule) for i in chosen]
        both = [_drawn(sentences, chosen, seeds, rule, markers) for sentences in both]
    parts = [np.split(s.tokens, s.offsets[1:-1]) for s in both] if len(chosen) else [[], []]
    return _different(source, language, [pairs[i] for i in chosen], *parts)


def _different(
    source: str,
    language: str,
    pairs: list[Pair],
    good: list[np.ndarray],
    bad: list[np.ndarray],
) -> PairSet:
    """The pairs whose sentences differ in their tokens. Raises UserError if there are none."""
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
    lost = Counter((p.paradigm, p.field) for p in read(source))
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
    annotator = by_spacy.Annotator()
    annotator.load()
    words = zip(annotator.annotate(texts), texts, strict=True)
    found = [annotated(words_of, text, annotator.name) for words_of, text in words]
    return hops.encoded(found, tokenizer, rule.hops)


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
        """Where the pairs come from."""
        return self.pairs.source

    def interval(self, member: Member) -> tuple[float, float]:
        """The ends of the 95% Wilson interval of the accuracy."""
        good, bad = self.log_probabilities(member)[self.is_common].T
        is_scored = ~np.isnan(good + bad)
        return _wilson(int((good > bad)[is_scored].sum()), int(is_scored.sum()))

    @property
    def is_common(self) -> np.ndarray:
        """Whether each pair is one of those that all series have, (K,) bool."""
        found = [self.common is None or key_of(pair) in self.common for pair in self.pairs.pairs]
        return np.array(found, bool)

    def accuracy(self, member: Member) -> float:
        """The share of pairs that a model gets right, of those that all series have."""
        return _accuracy(self.log_probabilities(member)[self.is_common])

    def log_probabilities(self, member: Member) -> np.ndarray:
        """Those of the good and the bad sentence of each pair, in nats, (K, 2) float64."""
        return _sums(self.losses[member.name], self.pairs.sentences)


def folder_of(settings: Evaluate, series: Series) -> Path:
    """The folder for the results of a series on the pairs."""
    return results.material_folder(settings, series, _name_of(settings))


def _name_of(settings: Evaluate) -> str:
    return f"pairs_{Path(settings.pairs).stem}{'_leading_space' * settings.leading_space}"


def key_of(pair: Pair) -> tuple[str, str]:
    """What is the same for a pair in all languages."""
    return pair.paradigm, pair.item


def on_common(evaluations: list["PairEvaluation"]) -> list["PairEvaluation"]:
    """The same evaluations, which know the pairs that all of them have, if they are several."""
    if len(evaluations) == 1:
        return evaluations
    kept = [set(map(key_of, e.pairs.pairs)) for e in evaluations]
    common = frozenset(set.intersection(*kept))
    of_all = len(read(evaluations[0].settings.pairs))
    print(f"{len(common):,} of {of_all:,} pairs are evaluated in all languages (see left_out)")
    return [dataclasses.replace(e, common=common) for e in evaluations]


def evaluate(
    settings: Evaluate, series: Series, world: World, device: torch.device
) -> PairEvaluation:
    """Score the pairs with all models of a series; all processes must call it."""
    language = results.test_language(settings)
    made = perturbed(settings.pairs, language, settings.leading_space)
    evaluation = PairEvaluation(settings, series, _name_of(settings), made, {})
    found = results.score(
        series,
        Material(evaluation.title, made.language, made.sentences),
        evaluation.folder,
        lambda losses: f"{_accuracy(_sums(losses, made.sentences)):.1%} of pairs right",
        world,
        device,
    )
    return dataclasses.replace(evaluation, losses=found)


def _sums(losses: np.ndarray, sentences: Sentences) -> np.ndarray:
    means = scoring.sentence_losses(losses, sentences)
    return -(means * (sentences.lengths - 1)).reshape(-1, 2)


def _accuracy(log_probabilities: np.ndarray) -> float:
    good, bad = log_probabilities[~np.isnan(log_probabilities).any(axis=1)].T
    return float((good > bad).mean()) if len(good) else np.nan


# Tables and curves


def table(e: PairEvaluation) -> pd.DataFrame:
    """A row for each checkpoint and paradigm, and one for all pairs."""
    paradigms = {(p.paradigm, p.field): [] for p in e.pairs.pairs} | {
        key: [] for key in e.pairs.left_out
    }
    for i, pair in enumerate(e.pairs.pairs):
        paradigms[pair.paradigm, pair.field].append(i)
    rows = []
    for member in e.series.members:
        found = e.log_probabilities(member)
        is_scored = ~np.isnan(found).any(axis=1)
        is_right = found[:, 0] > found[:, 1]
        of_all = is_scored & e.is_common
        everything = {(_ALL, ""): list(range(len(found)))}
        for (paradigm, field), places in (*sorted(paradigms.items()), *everything.items()):
            scored = np.array(places, np.int64)[is_scored[places]]
            right, count = int(is_right[scored].sum()), len(scored)
            lost = e.pairs.left_out
            left_out = lost.total() if paradigm == _ALL else lost[paradigm, field]
            low, high = _wilson(right, count)
            rows.append(
                {
                    **e.columns,
                    "test_language": e.pairs.language,
                    "pairs_from": e.pairs.source,
                    "checkpoint": member.name,
                    "step": member.step,
                    "paradigm": paradigm,
                    "field": field,
                    "accuracy": right / count if count else np.nan,
                    "low": low,
                    "high": high,
                    "pairs": count,
                    "left_out": left_out + len(places) - count,
                    **(_on_common(is_right, of_all, places) if e.common is not None else {}),
                }
            )
    return pd.DataFrame(rows).astype({"step": "Int64"})


def _wilson(right: int, count: int) -> tuple[float, float]:
    from scipy.stats import binomtest

    if not count:
        return np.nan, np.nan
    found = binomtest(right, count).proportion_ci(method="wilson")
    return found.low, found.high


def _on_common(is_right: np.ndarray, of_all: np.ndarray, places: list[int]) -> dict[str, float]:
    chosen = np.array(places, np.int64)[of_all[places]]
    accuracy = float(is_right[chosen].mean()) if len(chosen) else np.nan
    return {"accuracy_common": accuracy, "pairs_common": len(chosen)}


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
        values = {"log_probability_good": good, "log_probability_bad": bad, "is_right": good > bad}
        about = e.columns | {"test_language": e.pairs.language, "checkpoint": member.name}
        tables.append(common.assign(**about, step=member.step, **values))
    return pd.concat(tables, ignore_index=True).astype({"step": "Int64"})
