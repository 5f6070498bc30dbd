"""The token files `train.bin`, `val.bin` and `test.bin`, `meta.json`, and the order of blocks.

A `.bin` file is a flat array of uint16, little-endian, with no header: the tokens of each sentence
followed by the end-of-text token. A model reads it in blocks of `block_size` tokens; the last,
partial block is dropped. `test_ids.bin` (uint32) contains the number of each sentence of `test.bin`
within its genre. It is counted before any sentence is dropped, so it is the same in every language.
"""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from impossible import files
from impossible.settings import UserError

SPLITS = ("train", "val", "test")
DTYPE = np.dtype("<u2")
META = "meta.json"
TOKENIZER = ("vocab.json", "merges.txt")  # the files of a tokenizer, by transformers' names
ALL_GENRES = "all"  # in tables: all genres together, so no genre may have this name
TEST_IDS, _ID_DTYPE = "test_ids.bin", np.dtype("<u4")


@dataclass(frozen=True)
class Meta:
    """The content of meta.json, which describes the token files in its folder."""

    language: str  # a name from the table in perturb.py
    markers: dict[str, int]  # marker -> id
    vocab_size: int  # the tokenizer's bytes and merges, the end-of-text token and the markers
    eot_token: int  # follows each sentence
    corpus: str  # the setting `corpus`
    corpus_version: str  # identifies the text: a commit, a release or a hash
    segmenter: str
    data_seed: int
    made_with: dict[str, str]  # package -> version, for packages that affect the tokens
    # split -> tokens (end-of-text tokens included), sentences, dropped sentences, sha256;
    # and for test: genres, in the order of the file, with their sentences and tokens; ids_sha256,
    # the hash of test_ids.bin; and for a *Hop language unmarked, the number of sentences that are
    # left out because they have no marker
    splits: dict[str, dict[str, Any]]
    # for a *Hop language: the annotator's name, rule, model and versions
    annotator: dict[str, Any] = dataclasses.field(default_factory=dict)
    # empty for GPT-2's; else sha256, the hash of its tokens and, if prepare.py trained it: text,
    # vocab_size, made_with, bytes (that it was trained on) and corpus_bytes (of the train split)
    tokenizer: dict[str, Any] = dataclasses.field(default_factory=dict)
    text_language: str = "en"  # the natural language, by its shortest code


def path_of(data_dir: Path, split: str) -> Path:
    """The path of a split's token file."""
    return data_dir / f"{split}.bin"


def write_split(path: Path, chunks: Iterable[np.ndarray]) -> dict[str, Any]:
    """Write arrays of tokens (uint16), one after another, whole or not at all.

    Returns the number of tokens and the file's SHA-256, for meta.json.
    """
    digest, tokens = hashlib.sha256(), 0
    with files.atomic_write(path) as file:
        for chunk in chunks:
            data = chunk.astype(DTYPE, casting="safe", copy=False).tobytes()
            digest.update(data)
            file.write(data)
            tokens += len(chunk)
    return {"tokens": tokens, "sha256": digest.hexdigest()}


def write_test_ids(data_dir: Path, ids: np.ndarray) -> str:
    """Write test_ids.bin from ids (S,). Returns its SHA-256, for meta.json."""
    data = ids.astype(_ID_DTYPE).tobytes()
    with files.atomic_write(data_dir / TEST_IDS) as file:
        file.write(data)
    return hashlib.sha256(data).hexdigest()


def read_test_ids(data_dir: Path, meta: Meta) -> np.ndarray:
    """Read test_ids.bin, (S,) uint32. Raises UserError if the file is damaged or missing."""
    path = data_dir / TEST_IDS
    _require_same(path, meta.splits["test"]["ids_sha256"])
    return np.fromfile(path, _ID_DTYPE)


def write_meta(data_dir: Path, meta: Meta) -> None:
    """Write meta.json, which marks the files in its folder as complete."""
    files.write_json(data_dir / META, dataclasses.asdict(meta))


def read_meta(data_dir: Path, language: str | None = None) -> Meta:
    """Read meta.json. Raises UserError if it is missing, invalid or for another language."""
    path = data_dir / META
    if not path.is_file():
        raise UserError(
            f"no prepared data in {data_dir} (no {META}). Type: python prepare.py, with the "
            "same config file and --data_dir as here"
        )
    try:
        meta = Meta(**json.loads(path.read_text(encoding="utf-8")))
        for split in SPLITS:
            _ = [meta.splits[split][name] for name in ("tokens", "sentences", "sha256")]
        _ = [meta.splits["test"][name] for name in ("genres", "ids_sha256")]
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f"{path} is damaged ({error!r}). Delete {data_dir} and prepare it again.")
    if language not in (None, meta.language):
        raise UserError(
            f"{data_dir} contains {meta.language}, but the settings say {language}. Set "
            "--data_dir= or --language=, or prepare that language: python prepare.py "
            f"--language={language}"
        )
    return meta


def require_undamaged(data_dir: Path, meta: Meta, split: str) -> None:
    """Raise UserError unless a split's token file is the one that meta.json describes.

    Also raises UserError if a file of the tokenizer is missing.
    """
    _require_same(path_of(data_dir, split), meta.splits[split]["sha256"])
    for name in TOKENIZER if meta.tokenizer else ():  # else it is GPT-2's
        _require_same(data_dir / name)


def _require_same(path: Path, sha256: str | None = None) -> None:
    """Raise UserError if a file is missing, or if its SHA-256 is not the given one (None: any)."""
    if not path.is_file() or (sha256 is not None and files.sha256(path) != sha256):
        raise UserError(
            f"{path} is missing or damaged: it is not the file that {META} describes. Type: python "
            "prepare.py, with the same config file and --data_dir= as here. This command makes the "
            "same files again."
        )


def open_blocks(data_dir: Path, meta: Meta, split: str, block_size: int) -> np.ndarray:
    """The whole blocks of a split, memory-mapped, (n_blocks, block_size) uint16.

    Raises UserError if the file is not the one that meta.json describes, or if the split is shorter
    than one block.
    """
    require_undamaged(data_dir, meta, split)
    path, count = path_of(data_dir, split), meta.splits[split]["tokens"]
    if count < block_size:
        raise UserError(
            f"{path} has {count:,} tokens, fewer than one block of {block_size}. Prepare a larger "
            "corpus, or set a smaller --block_size."
        )
    tokens = np.memmap(path, DTYPE, mode="r")
    return tokens[: count // block_size * block_size].reshape(-1, block_size)


def step_blocks(n_blocks: int, blocks_per_step: int, seed: int, step: int) -> np.ndarray:
    """Indices of the blocks that step `step` (from 0) reads, (blocks_per_step,) int64.

    Each epoch is a random permutation of all blocks. The epochs form one endless sequence, from
    which each step takes the next `blocks_per_step` blocks, whatever the batch size and the number
    of processes.
    """
    positions = np.arange(step * blocks_per_step, (step + 1) * blocks_per_step)
    epochs, places = np.divmod(positions, n_blocks)
    blocks = np.empty(blocks_per_step, np.int64)
    for epoch in np.unique(epochs):
        here = epochs == epoch
        blocks[here] = _epoch_order(n_blocks, seed, int(epoch))[places[here]]
    return blocks


@functools.lru_cache(maxsize=2)
def _epoch_order(n_blocks: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(n_blocks)
