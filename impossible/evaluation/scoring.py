"""How well a model predicts sentences: the loss of every token except the first of a sentence.

Sentences are sampled from a test split as in Kallini et al. 2024 (experiment 1): a fixed number
from each genre, without replacement. The perplexity of a sentence is exp(mean loss of its tokens 2
to n, given the tokens before them). No special token is added before or after the sentence.
"""

import bisect
import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

import perturb
from impossible.distributed import World
from impossible.settings import UserError
from impossible.text import token_files
from impossible.text.arrays import Sentences, from_lengths
from impossible.text.corpus import require_names
from impossible.text.token_files import Meta

# Raised when the same model and sentences give other numbers: older scores are then computed anew.
VERSION = 1
# Tokens of a batch: enough for products with the weights to be fast, and not so many that a CPU's
# caches do not hold them.
_BATCH_TOKENS, _BATCH_TOKENS_CUDA = 1024, 16384
_SCORED_ROWS = 512  # rows whose logits exist at one time
_ROW = 128  # tokens in a row of several sentences, if none is longer


@dataclass(frozen=True)
class TestSet:
    """Sentences drawn from a test split, genre by genre."""

    language: str  # a name from the table in perturb.py
    sentences: Sentences  # S of them, each of two tokens or more
    genres: list[str]
    genre: np.ndarray  # (S,) int64: the place of each sentence's genre in `genres`
    ids: np.ndarray  # (S,) uint32: which sentence of its genre each is, in the corpus, from 0
    seed: int
    data_dir: str
    corpus: str  # as meta.json says it (corpus_version)
    segmenter: str
    split_sha256: str  # of the whole test split
    markers: list[int]  # the ids of the language's markers
    duplicates: np.ndarray  # (genres,) int64: drawn sentences whose original was drawn before
    drop_duplicates: bool  # whether those are left out

    @property
    def keys(self) -> list[tuple[str, int]]:
        """The genre and the number of each sentence: the same in all languages of a corpus."""
        names = [self.genres[genre] for genre in self.genre]
        return list(zip(names, self.ids.tolist(), strict=True))

    @property
    def columns(self) -> dict[str, str | int | bool]:
        """The columns that identify the test data in every table."""
        return {
            "test_language": self.language,
            "test_corpus": self.corpus,
            "test_segmenter": self.segmenter,
            "test_hash": self.split_sha256[:8],
            "sample_seed": self.seed,
            "drop_duplicates": self.drop_duplicates,
        }

    def tokens_of(self, places: np.ndarray) -> list[np.ndarray]:
        """The tokens of the sentences at these places."""
        offsets = self.sentences.offsets
        return [self.sentences.tokens[offsets[i] : offsets[i + 1]] for i in places]


@dataclass(frozen=True)
class Scorer:
    """The interface of a model: hidden states, and the head that turns them into logits."""

    # Tokens and their positions (B, T) int64, and the mask of attention (B, 1, T, T) float32, which
    # is 0 where a token sees another and -inf elsewhere -> hidden states (B, T, C)
    body: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
    head: torch.Tensor  # (V, C)
    context: int  # the most tokens that a sentence may have

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.head.device


def sha256_of(sentences: Sentences, more: bytes = b"") -> str:
    """A hash of all tokens and of where sentences begin, and of something more."""
    digest = hashlib.sha256(sentences.offsets.astype("<i8").tobytes())
    digest.update(sentences.tokens.astype("<u2").tobytes() + more)
    return digest.hexdigest()


def draw(
    data_dir: Path,
    meta: Meta,
    per_genre: int,
    seed: int,
    drop_duplicates: bool = False,
    marked_only: bool = False,
) -> TestSet:
    """Sample sentences from the test split of prepared data (all if a genre has too few).

    drop_duplicates: leave out those whose original was drawn before. marked_only: sample from those
    with a marker. Raises UserError for a file that is not what meta.json says.
    """
    test, starts, ends = _sentences_of(data_dir, meta)
    markers = list(meta.markers.values())
    before = np.concatenate([[0], np.cumsum(np.isin(test, markers))])
    may_be = (before[ends] > before[starts]) | (not marked_only)
    counts = [genre["sentences"] for genre in meta.splits["test"]["genres"].values()]
    chosen = _sampled(may_be, counts, per_genre, seed)
    genre = np.repeat(np.arange(len(counts)), list(map(len, chosen)))
    chosen = np.concatenate(chosen)
    parts = [test[start:end] for start, end in zip(starts[chosen], ends[chosen], strict=True)]
    is_repeated = _repeated(_originals(meta.language, parts, markers))
    kept = np.flatnonzero(~(is_repeated & drop_duplicates))
    parts = [parts[i] for i in kept]
    return TestSet(
        language=meta.language,
        sentences=from_lengths(np.concatenate(parts), np.array([len(part) for part in parts])),
        genres=list(meta.splits["test"]["genres"]),
        genre=genre[kept],
        ids=token_files.read_test_ids(data_dir, meta)[chosen[kept]],
        seed=seed,
        markers=markers,
        duplicates=np.bincount(genre[is_repeated], minlength=len(counts)),
        drop_duplicates=drop_duplicates,
        data_dir=str(data_dir),
        corpus=meta.corpus_version,
        segmenter=meta.segmenter,
        split_sha256=meta.splits["test"]["sha256"],
    )


def _sentences_of(data_dir: Path, meta: Meta) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The tokens of the test split, and where each sentence begins and ends. Raises UserError."""
    require_names(meta.splits["test"]["genres"])
    test = token_files.open_blocks(data_dir, meta, "test", 1)[:, 0]
    ends = np.flatnonzero(test == meta.eot_token)
    count = sum(genre["sentences"] for genre in meta.splits["test"]["genres"].values())
    if count != len(ends):
        raise UserError(
            f"{token_files.path_of(data_dir, 'test')} has {len(ends):,} sentences; "
            f"{token_files.META} says {count:,}. Delete {data_dir} and prepare the data again."
        )
    return test, np.append(0, ends[:-1] + 1), ends


def _sampled(may_be: np.ndarray, counts: list[int], per_genre: int, seed: int) -> list[np.ndarray]:
    """The sampled sentences of each genre, in order. may_be: (S,) bool, those to sample from."""
    rng, found = np.random.default_rng(seed), []
    for of_genre in np.split(np.arange(len(may_be)), np.cumsum(counts)[:-1]):
        candidates = of_genre[may_be[of_genre]]
        found.append(candidates[np.sort(rng.permutation(len(candidates))[:per_genre])])
    return found


def _repeated(keys: Iterable[bytes]) -> np.ndarray:
    """Whether each key has come before, (n,) bool."""
    seen: set[bytes] = set()
    return np.array([key in seen or seen.add(key) is not None for key in keys], bool)


def _originals(
    language: str, sentences: Iterable[np.ndarray], markers: list[int]
) -> Iterator[bytes]:
    """What identifies the original of each perturbed sentence: its tokens in their order.

    For a language that cannot be undone, the tokens are in the order of their ids.
    """
    known = perturb.get(language)
    for tokens in sentences:
        if known.invert:
            yield known.undo(tokens, markers).tobytes()
        else:
            yield np.sort(tokens[~np.isin(tokens, markers)]).tobytes()


def losses(
    scorer: Scorer,
    sentences: Sentences,
    world: World,
    last_instead: np.ndarray | None = None,
    whole_lengths: np.ndarray | None = None,
) -> np.ndarray:
    """The loss of each token but the first of each sentence, in nats, (N - S,) float32.

    The losses are in the order of the sentences. If a sentence is longer than the model's context,
    its losses are NaN; sentences are never truncated. last_instead: (S,) tokens, whose losses in
    place of the last token of each sentence come after the others, (N,) in all. whole_lengths:
    (S,), if `sentences` are only the beginnings of sentences: the tokens of the whole ones, which
    must fit the context. The processes share the work: all must call this function, and all get
    the complete result.
    """
    whole_lengths = sentences.lengths if whole_lengths is None else whole_lengths
    count = len(sentences.tokens) - len(sentences.lengths)
    extra = 0 if last_instead is None else len(last_instead)
    found = np.full(count + extra, np.nan, np.float32)
    batches = _batches(sentences.lengths, whole_lengths <= scorer.context, scorer)
    # The longest first, in turns: equal shares for all.
    own = batches[world.rank :: world.size]
    progress = tqdm(own, "scoring", disable=None if world.is_first else True, leave=False)
    mine = [_score(scorer, sentences, batch, last_instead) for batch in progress]
    firsts = _firsts(sentences)
    for rank, theirs in enumerate(world.gather(mine)):
        for batch, values in zip(batches[rank :: world.size], theirs, strict=True):
            members = np.concatenate(batch)
            ends = np.cumsum(sentences.lengths[members] - 1)
            parts = np.split(values[: ends[-1]], ends[:-1])
            for sentence, part in zip(members, parts, strict=True):
                found[firsts[sentence] :][: len(part)] = part
            if extra:
                found[count + members] = values[ends[-1] :]
    return found


def _batches(lengths: np.ndarray, fits: np.ndarray, scorer: Scorer) -> list[list[np.ndarray]]:
    """The sentences that fit the context, as batches of rows of sentences, the longest first.

    lengths: (S,). fits: whether each sentence fits, (S,) bool.

    The rows of a batch have room for its longest sentence, or for _ROW tokens. Each row is filled
    with the longest remaining sentences that fit, so there is hardly any padding.
    """
    budget = _BATCH_TOKENS_CUDA if scorer.device.type == "cuda" else _BATCH_TOKENS
    inputs = lengths - 1  # the last token of a sentence predicts nothing
    left = [i for i in np.argsort(lengths, kind="stable").tolist() if fits[i]]
    batches = []
    while left:
        width = max(int(inputs[left[-1]]), _ROW)
        rows: list[np.ndarray] = []
        while left and len(rows) < max(1, budget // width):
            row, room = [], width
            while fitting := bisect.bisect_right(left, room, key=lambda i: inputs[i]):
                row.append(left.pop(fitting - 1))
                room -= inputs[row[-1]]
            rows.append(np.array(row))
        batches.append(rows)
    return batches


@torch.inference_mode()
def _score(
    scorer: Scorer,
    sentences: Sentences,
    rows: list[np.ndarray],
    last_instead: np.ndarray | None,
) -> np.ndarray:
    """The losses of the tokens of sentences but their first, one sentence after another, (N - S,).

    They are followed by those of `last_instead`, (S,), if it is given. rows: the sentences in each
    row of the batch. A token attends only to earlier tokens of its own sentence, and positions
    count from the start of the sentence: other sentences in the row have no effect.
    """
    batch = sentences.take(np.concatenate(rows))
    inputs = batch.lengths - 1
    sentence = np.repeat(np.arange(len(inputs)), inputs)
    position = np.arange(len(sentence)) - _firsts(batch)[sentence]
    index = batch.offsets[sentence] + position  # in batch.tokens
    filled = np.array([(sentences.lengths[row] - 1).sum() for row in rows])
    is_token = np.arange(filled.max()) < filled[:, None]  # (B, T)

    def in_rows(values: np.ndarray) -> torch.Tensor:  # (N - S,) -> (B, T)
        grid = np.zeros(is_token.shape, np.int64)
        grid[is_token] = values
        return torch.from_numpy(grid).to(scorer.device)

    owner = in_rows(sentence + 1)  # 0: padding, which sees itself, so that its softmax is a number
    sees = (owner[:, :, None] == owner[:, None, :]).tril()
    mask = torch.zeros(sees.shape, device=scorer.device).masked_fill(~sees, -torch.inf)
    hidden = scorer.body(in_rows(batch.tokens[index]), in_rows(position), mask[:, None])
    targets = torch.from_numpy(batch.tokens[index + 1].astype(np.int64)).to(scorer.device)
    is_token = torch.from_numpy(is_token).to(scorer.device)
    hidden = hidden[is_token]  # (N - S, C)
    if last_instead is not None:
        others = last_instead[np.concatenate(rows)].astype(np.int64)
        hidden = torch.cat([hidden, hidden[np.cumsum(inputs) - 1]])
        targets = torch.cat([targets, torch.from_numpy(others).to(scorer.device)])
    return token_losses(hidden, scorer.head, targets).cpu().numpy()


def sentence_losses(
    found: np.ndarray, sentences: Sentences, unscored: Sequence[int] = ()
) -> np.ndarray:
    """The mean loss of each sentence, in nats, (S,) float64: the logarithm of its perplexity.

    found: as `losses` returns it (the losses of `last_instead` are ignored). unscored: ids of
    tokens (markers) that are read but whose own losses do not count; a sentence of which nothing
    else is left gets NaN.
    """
    is_first = np.zeros(len(sentences.tokens), bool)
    is_first[sentences.offsets[:-1]] = True
    is_counted = ~np.isin(sentences.tokens[~is_first], unscored)
    found = found[: len(is_counted)].astype(np.float64)
    counted = np.where(is_counted, found, 0.0 * found)  # NaN stays NaN
    sums, counts = (np.add.reduceat(a, _firsts(sentences)) for a in (counted, is_counted * 1))
    with np.errstate(invalid="ignore"):
        return sums / counts


def _firsts(sentences: Sentences) -> np.ndarray:
    """Where the losses of each sentence begin, (S,); n tokens have n - 1 losses."""
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
