"""Entropies of n-gram models, compared with known entropies and with a plain implementation."""

import math
from collections import Counter, defaultdict

import numpy as np
import pytest

from impossible.evaluation import ngrams

END, VOCAB = 50256, 50257


def sampled(transitions: np.ndarray, count: int, seed: int) -> np.ndarray:
    """A Markov chain as token ids; its first state is the end of a sentence."""
    rng, sums = np.random.default_rng(seed), transitions.cumsum(axis=1)
    draws, state, states = rng.random(count), 0, []
    for draw in draws:
        state = min(int(np.searchsorted(sums[state], draw)), len(sums) - 1)
        states.append(state)
    return np.array([END, *range(1, len(sums))], np.uint16)[states]


def test_independent_tokens_have_the_entropy_of_their_distribution() -> None:
    p = np.arange(1, 21) / np.arange(1, 21).sum()
    tokens = sampled(np.tile(p, (20, 1)), 300_000, 0)
    entropies = ngrams.entropies(tokens[:250_000], tokens[250_000:], VOCAB, END)
    expected = -(p * np.log2(p)).sum()
    assert entropies[1].all == pytest.approx(expected, abs=0.01)
    assert entropies[2].all == pytest.approx(expected, abs=0.01)
    assert entropies[2].local == pytest.approx(expected, abs=0.01)


def test_a_markov_chain_has_its_entropy_rate_from_two_tokens_on() -> None:
    transitions = np.random.default_rng(1).dirichlet(np.full(12, 0.3), 12) * 0.97 + 0.03 / 12
    stationary = np.linalg.matrix_power(transitions, 1000)[0]
    single = -(stationary * np.log2(stationary)).sum()
    rate = -(stationary[:, None] * transitions * np.log2(transitions)).sum()
    tokens = sampled(transitions, 400_000, 2)
    entropies = ngrams.entropies(tokens[:350_000], tokens[350_000:], VOCAB, END)
    assert entropies[1].all == pytest.approx(single, abs=0.02)
    assert entropies[2].all == pytest.approx(rate, abs=0.02)
    assert entropies[3].local == pytest.approx(rate, abs=0.04)
    assert single - rate > 0.5


class Plain:
    """A model of order n by dicts, on sentences that begin with "B"."""

    def __init__(self, sentences: list[list[object]], n: int) -> None:
        raw = [Counter() for _ in range(n + 1)]
        for s in sentences:
            for k in range(1, n + 1):
                raw[k].update(tuple(s[i : i + k]) for i in range(len(s) - k + 1))
        del raw[1]["B",]
        self.counts = [*raw[:n], raw[n]]
        for k in range(1, n):
            before = Counter(gram[1:] for gram in raw[k + 1])
            self.counts[k] = {g: c if g[0] == "B" else before[g] for g, c in raw[k].items()}
        self.discounts = [self.discounts_of(list(dict(c).values())) for c in self.counts]
        self.totals, self.freed = ([defaultdict(float) for _ in range(n + 1)] for _ in range(2))
        for k in range(1, n + 1):
            for gram, count in self.counts[k].items():
                self.totals[k][gram[:-1]] += count
                self.freed[k][gram[:-1]] += self.discounts[k][min(count, 3)]

    @staticmethod
    def discounts_of(counts: list[int]) -> list[float]:
        n = Counter(counts)
        if all(n[i] for i in range(1, 5)):
            y = n[1] / (n[1] + 2 * n[2])
            discounts = [i - (i + 1) * y * n[i + 1] / n[i] for i in (1, 2, 3)]
            if all(0 <= d <= i for i, d in enumerate(discounts, 1)):
                return [0, *discounts]
        return [0, 0.5, 1, 1.5]

    def p(self, token: object, context: tuple[object, ...]) -> float:
        k = len(context) + 1
        lower = self.p(token, context[1:]) if context else 1 / VOCAB
        if not (total := self.totals[k].get(context)):
            return lower
        count = self.counts[k].get((*context, token), 0)
        discount = self.discounts[k][min(count, 3)]
        return (count - discount + self.freed[k][context] * lower) / total


def split(tokens: np.ndarray) -> list[list[object]]:
    ends = np.flatnonzero(tokens == END) + 1
    return [["B", *part.tolist()] for part in np.split(tokens, ends) if len(part)]


@pytest.mark.parametrize(("count", "kinds"), [(3000, 300), (2000, 20), (800, 800)])
def test_it_is_modified_kneser_ney(count: int, kinds: int) -> None:
    rng = np.random.default_rng(kinds)
    p = 1 / np.arange(1, kinds + 1)
    tokens = rng.choice(kinds, count, p=p / p.sum()).astype(np.uint16)
    for i in range(2, count):  # longer n-grams come again too
        if rng.random() < 0.4:
            tokens[i] = (int(tokens[i - 1]) * 7 + int(tokens[i - 2])) % kinds
    tokens[rng.random(count) < 0.08] = END
    train, test = tokens[: count * 3 // 4], tokens[count * 3 // 4 :]
    entropies = ngrams.entropies(train, test, VOCAB, END)
    for n, (every, local) in entropies.items():
        model, bits, local_bits = Plain(split(train), n), [], []
        for s in split(test):
            for i in range(1, len(s)):
                bits.append(-math.log2(model.p(s[i], tuple(s[max(0, i - n + 1) : i]))))
                if i >= n:
                    local_bits.append(bits[-1])
        assert every == pytest.approx(np.mean(bits), rel=1e-9), n
        assert local == pytest.approx(np.mean(local_bits), rel=1e-9), n


def test_a_split_without_a_long_sentence_has_no_entropy_of_long_ones() -> None:
    train = np.array([1, 2, END] * 50, np.uint16)
    entropies = ngrams.entropies(train, train[:9], VOCAB, END)
    assert entropies[3].local > 0
    assert math.isnan(entropies[5].local)
    assert not math.isnan(entropies[5].all)
