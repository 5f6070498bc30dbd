"""The losses of a model on token sequences: one for every token except the first.

A model reads each sequence by itself: no special token is added before or after it.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm

from impossible.distributed import World
from impossible.text.arrays import Sentences, from_lengths, span_positions
from impossible.text.tokenizer import Tokenizer

# To be increased when the same model and sequences give other losses: saved ones are then ignored.
VERSION = 2
# Tokens of a batch: enough for fast products with the weights, and few enough for a CPU's caches.
_BATCH_TOKENS, _BATCH_TOKENS_CUDA = 1024, 16384
_SCORED_ROWS = 512  # rows whose logits exist at one time


@dataclass(frozen=True, eq=False)
class Sequences:
    """The token sequences of an evaluation, and columns that describe them."""

    language: str  # a name from the table in perturb.py
    tokenizer: Tokenizer  # of the tokens, with the markers of the language
    sentences: Sentences  # S of them, each of two tokens or more
    columns: pd.DataFrame  # a row for each sequence, or each unit (such as a word) of a measure
    about: dict[str, Any] = field(default_factory=dict)  # columns of every table, each one value
    counts: dict[Any, int] = field(default_factory=dict)  # of each genre or paradigm: duplicates,
    # or pairs that are left out
    whole_lengths: np.ndarray | None = None  # (S,), if `sentences` are beginnings of longer ones
    # Computes further losses of a model as a flat array, which is appended to the others.
    further_losses: Callable[["Scorer", "Sequences", World], np.ndarray] | None = None
    notes: tuple[str, ...] = ()  # lines to print about the sequences
    totals: dict[str, float] = field(default_factory=dict)  # columns of the row for all genres

    @property
    def parts(self) -> list[np.ndarray]:
        """The tokens of each sequence."""
        return np.split(self.sentences.tokens, self.sentences.offsets[1:-1])

    @property
    def lengths(self) -> np.ndarray:
        """The lengths that must fit a model's context: those of whole sentences, (S,)."""
        return self.sentences.lengths if self.whole_lengths is None else self.whole_lengths

    @property
    def sha256(self) -> str:
        """The SHA-256 of the tokens that are scored and of all lengths."""
        offsets, tokens, _ = self.sentences
        arrays = [(offsets, "<i8"), (tokens, "<u2"), (self.whole_lengths, "<i8")]
        data = [array.astype(kind).tobytes() for array, kind in arrays if array is not None]
        return hashlib.sha256(b"".join(data)).hexdigest()


def sentences_of(parts: list[np.ndarray]) -> Sentences:
    """Sentences from the tokens of each."""
    lengths = np.array([len(part) for part in parts], np.int64)
    return from_lengths(np.concatenate(parts).astype(np.uint16), lengths)


@dataclass(frozen=True)
class Scorer:
    """The interface of a model: hidden states, and the head that turns them into logits."""

    body: Callable[[torch.Tensor], torch.Tensor]  # tokens (B, T) int64 -> hidden states (B, T, C)
    head: torch.Tensor  # (V, C)
    context: int  # the most tokens that a sentence may have
    blocks: Sequence[torch.nn.Module] = ()  # each returns hidden states (B, T, C)

    @property
    def device(self) -> torch.device:
        """The device of the model."""
        return self.head.device


def losses(scorer: Scorer, sequences: Sequences, world: World) -> np.ndarray:
    """The loss of each token but the first of each sentence, in nats, (N - S,) float32.

    The losses are in the order of the sentences. If a (whole) sentence is longer than the model's
    context, its losses are NaN; sentences are never truncated. The `further_losses` come after the
    others. The processes share the work: all must call this function, and all get the complete
    result.
    """
    parts, lengths = sequences.parts, sequences.sentences.lengths
    batches = _batches(lengths, sequences.lengths <= scorer.context, scorer.device)
    # Batches, the longest first, are dealt out in turn, so that all processes get equal shares.
    own = batches[world.rank :: world.size]
    progress = tqdm(own, "scoring", disable=None if world.is_first else True, leave=False)
    scored = [_score(scorer, [parts[i] for i in batch]) for batch in progress]
    result = np.full(lengths.sum() - len(lengths), np.nan, np.float32)
    firsts = _firsts(sequences.sentences)
    for rank, of_rank in enumerate(world.gather(scored)):
        for batch, values in zip(batches[rank :: world.size], of_rank, strict=True):
            result[span_positions(firsts[batch], lengths[batch] - 1)] = values
    further = sequences.further_losses
    return np.append(result, further(scorer, sequences, world)) if further else result


def _batches(lengths: np.ndarray, fits: np.ndarray, device: torch.device) -> list[np.ndarray]:
    """The numbers of the sentences in each batch, the longest sentences first.

    lengths: (S,). fits: whether each sentence fits the context, (S,) bool; the others are left out.
    Sentences of similar length share a batch, so that little of it is padding. With its padding, it
    has up to _BATCH_TOKENS tokens, or one sentence.
    """
    budget = _BATCH_TOKENS_CUDA if device.type == "cuda" else _BATCH_TOKENS
    order, batches = np.argsort(-lengths, kind="stable"), []
    order = order[fits[order]]
    while len(order):
        # The last token of a sentence predicts nothing.
        size = max(1, budget // int(lengths[order[0]] - 1))
        batches.append(order[:size])
        order = order[size:]
    return batches


@torch.inference_mode()
def _score(scorer: Scorer, parts: list[np.ndarray]) -> np.ndarray:
    """The losses of all tokens except each sentence's first, sentence by sentence, (N - S,).

    parts: the tokens of each sentence. Each sentence has a row of its own, padded on the right:
    attention is causal, so no token sees the padding.
    """
    rows = [torch.from_numpy(part.astype(np.int64)) for part in parts]
    tokens = pad_sequence(rows, batch_first=True, padding_value=-1).to(scorer.device)  # (S, T)
    targets = tokens[:, 1:]
    is_target = targets >= 0
    hidden = scorer.body(tokens[:, :-1].clamp(min=0))[is_target]  # (N - S, C)
    return token_losses(hidden, scorer.head, targets[is_target]).cpu().numpy()


def sentence_losses(
    sequences: Sequences, of_tokens: np.ndarray, with_markers: bool = True
) -> np.ndarray:
    """The mean loss of each sentence, in nats, (S,) float64: the logarithm of its perplexity.

    It is NaN for a sentence that is too long for the model. of_tokens: as `losses` returns it (the
    `further_losses` are ignored). with_markers: whether the losses of markers count. If
    not, markers are still part of the context, and a sentence without other losses gets NaN.
    """
    sentences = sequences.sentences
    is_first = np.zeros(len(sentences.tokens), bool)
    is_first[sentences.offsets[:-1]] = True
    is_marker = sentences.tokens[~is_first] > sequences.tokenizer.end_of_text
    is_counted = ~is_marker | with_markers
    values = of_tokens[: len(is_counted)].astype(np.float64)
    counted = np.where(is_counted, values, 0.0 * values)  # NaN stays NaN
    sums, counts = (np.add.reduceat(a, _firsts(sentences)) for a in (counted, is_counted * 1))
    with np.errstate(invalid="ignore"):
        return sums / counts


def _firsts(sentences: Sentences) -> np.ndarray:
    """The index of the first loss of each sentence, (S,); n tokens have n - 1 losses."""
    return sentences.offsets[:-1] - np.arange(len(sentences.lengths))


def token_losses(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """The cross-entropy of each row in nats, (N,) float32, computed in chunks of rows.

    hidden: (N, C). weight: (V, C). targets: (N,) int64.
    """
    parts = zip(hidden.split(_SCORED_ROWS), targets.split(_SCORED_ROWS), strict=True)
    return torch.cat([F.cross_entropy(_logits(x, weight), y, reduction="none") for x, y in parts])


def _logits(rows: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """rows (n, C) times weight (V, C): (n, V).

    On a CPU, this is computed as an equivalent 1-point convolution. With two or more threads, torch
    runs the convolution in oneDNN but an fp32 matrix product in MKL, which takes 1.6 times as long
    on an AMD EPYC.
    """
    if not (weight.is_cpu and torch.backends.mkldnn.is_available()):
        return rows @ weight.T
    image = rows[None, :, None].permute(0, 3, 1, 2)  # (1, C, n, 1), channels last
    return F.conv2d(image, weight[:, :, None, None])[0, :, :, 0].T
