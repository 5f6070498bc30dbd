"""How well a model predicts sentences: the loss of every token but a sentence's first.

Sentences are drawn from a test split as in Kallini et al. 2024 (experiment 1): so many of each
genre, without replacement. A sentence's perplexity is exp of the mean loss of its tokens 2 to n,
given those before them: it gets no token in front, and none behind.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

import tokens
from device import World
from errors import UserError
from loss import token_losses
from perturb import Sentences, from_lengths
from tokens import Meta

# Enough for products with the weights to be fast; on a CPU not so many that they leave its caches.
_BATCH_TOKENS = {"cpu": 512, "cuda": 16384}


@dataclass(frozen=True)
class TestSet:
    """Sentences drawn from a test split, genre by genre."""

    language: str  # a name from the table in perturb.py
    sentences: Sentences  # S of them, each of two tokens or more
    genres: list[str]
    genre: np.ndarray  # (S,) int64: the place of each sentence's genre in `genres`
    number: np.ndarray  # (S,) int64: which sentence of its genre each is, from 0
    seed: int

    @property
    def sha256(self) -> str:
        """A hash of all tokens and where sentences begin."""
        digest = hashlib.sha256(self.sentences.offsets.astype("<i8").tobytes())
        digest.update(self.sentences.tokens.astype("<u2").tobytes())
        return digest.hexdigest()


@dataclass(frozen=True)
class Scorer:
    """What is asked of a model: hidden states, and the head that makes logits of them."""

    body: Callable[[torch.Tensor], torch.Tensor]  # (B, T) int64 -> (B, T, C)
    head: torch.Tensor  # (V, C)
    context: int  # the most tokens that `body` reads

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.head.device


def draw(data_dir: Path, meta: Meta, per_genre: int, seed: int) -> TestSet:
    """Draw sentences from the test split of prepared data: all of a genre that has fewer.

    Raises UserError for a file that is not what meta.json says.
    """
    test = tokens.open_blocks(data_dir, meta, "test", 1)[:, 0]
    ends = np.flatnonzero(test == meta.eot_token)
    starts = np.append(0, ends[:-1] + 1)
    counts = {name: genre["sentences"] for name, genre in meta.splits["test"]["genres"].items()}
    if sum(counts.values()) != len(ends):
        raise UserError(
            f"{tokens.path_of(data_dir, 'test')} has {len(ends):,} sentences; {tokens.META} says "
            f"{sum(counts.values()):,}. Delete {data_dir} and prepare the data again."
        )
    rng = np.random.default_rng(seed)
    numbers = [np.sort(rng.permutation(count)[:per_genre]) for count in counts.values()]
    first = np.cumsum([0, *counts.values()])
    chosen = np.concatenate([n + f for n, f in zip(numbers, first, strict=False)])
    parts = [test[start:end] for start, end in zip(starts[chosen], ends[chosen], strict=True)]
    return TestSet(
        language=meta.language,
        sentences=from_lengths(np.concatenate(parts), np.array([len(part) for part in parts])),
        genres=list(counts),
        genre=np.repeat(np.arange(len(counts)), [len(n) for n in numbers]),
        number=np.concatenate(numbers),
        seed=seed,
    )


def losses(scorer: Scorer, sentences: Sentences, world: World) -> np.ndarray:
    """The loss of each token but the first of each sentence, in nats, (N - S,) float32.

    In the order of the sentences. NaN for all of a sentence that is longer than the model's
    context: nothing is cut. The processes share the work; all must call this, and all get the
    whole.
    """
    found = np.full(len(sentences.tokens) - len(sentences.lengths), np.nan, np.float32)
    batches = _batches(sentences.lengths, scorer)
    # The longest first, in turns: equal shares for all.
    mine = [_score(scorer, sentences.take(batch)) for batch in batches[world.rank :: world.size]]
    firsts = sentences.offsets[:-1] - np.arange(len(sentences.lengths))
    for rank, theirs in enumerate(world.gather(mine)):
        for batch, values in zip(batches[rank :: world.size], theirs, strict=True):
            ends = np.cumsum(sentences.lengths[batch] - 1)
            for sentence, part in zip(batch, np.split(values, ends[:-1]), strict=True):
                found[firsts[sentence] :][: len(part)] = part
    return found


def _batches(lengths: np.ndarray, scorer: Scorer) -> list[np.ndarray]:
    """The sentences that fit the context, (B,) int64 in each batch, the longest first.

    Next to each other they have nearly one length: what is padded is little.
    """
    budget = _BATCH_TOKENS.get(scorer.device.type, _BATCH_TOKENS["cpu"])
    left = np.argsort(-lengths, kind="stable")
    left = left[lengths[left] <= scorer.context]
    batches = []
    while len(left):
        size = max(1, budget // int(lengths[left[0]]))
        batches.append(left[:size])
        left = left[size:]
    return batches


@torch.inference_mode()
def _score(scorer: Scorer, batch: Sentences) -> np.ndarray:
    """The losses of the tokens of sentences but their first, one sentence after another, (N - B,).

    Padding comes after a sentence, where causal attention does not see it from.
    """
    lengths = torch.from_numpy(batch.lengths).to(scorer.device)
    is_token = torch.arange(int(lengths.max()), device=scorer.device) < lengths[:, None]  # (B, T)
    ids = torch.zeros(is_token.shape, dtype=torch.int64, device=scorer.device)
    ids[is_token] = torch.from_numpy(batch.tokens.astype(np.int64)).to(scorer.device)
    is_target = is_token[:, 1:]
    hidden = scorer.body(ids[:, :-1])  # (B, T - 1, C): the last token predicts nothing
    return token_losses(hidden[is_target], scorer.head, ids[:, 1:][is_target]).cpu().numpy()


def sentence_losses(found: np.ndarray, sentences: Sentences) -> np.ndarray:
    """The mean loss of each sentence, in nats, (S,) float64: the logarithm of its perplexity.

    found: as `losses` returns it.
    """
    firsts = sentences.offsets[:-1] - np.arange(len(sentences.lengths))
    sums = np.add.reduceat(found.astype(np.float64), firsts)
    return sums / (sentences.lengths - 1)
