"""The token files `train.bin`, `val.bin` and `test.bin`, and `meta.json` with their hashes.

A `.bin` file is a flat array of uint16, little-endian, with no header: the tokens of each sentence
followed by the end-of-text token. A model reads it in blocks of `block_size` tokens; the last,
partial block is dropped. `test_ids.bin` (uint32) contains the number of each sentence of `test.bin`
within its genre. It is counted before any sentence is dropped, so it is the same in every language.
"""

import dataclasses
import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from impossible import files
from impossible.errors import UserError

SPLITS = ("train", "val", "test")
DTYPE = np.dtype("<u2")
META = "meta.json"
ALL_GENRES = "all"  # in tables, in place of a genre: all sentences together
TEST_IDS, _ID_DTYPE = "test_ids.bin", np.dtype("<u4")
_CHECK_CHUNK = 1 << 24  # tokens looked at in one go


@dataclass(frozen=True)
class Meta:
    """The content of meta.json, which describes the token files in its folder."""

    language: str  # a name from the table in perturb.py
    markers: dict[str, int]  # marker -> id
    vocab_size: int  # GPT-2's 50,257 and the markers
    eot_token: int  # follows each sentence
    corpus: str  # the setting of that name
    corpus_version: str  # what exactly was read: a commit, a release or a hash
    segmenter: str
    data_seed: int
    made_with: dict[str, str]  # package -> version, of those that decide on tokens
    # split -> tokens (end-of-text tokens included), sentences, dropped sentences, sha256;
    # and for test: genres, in the order of the file, with their sentences and tokens, and
    # ids_sha256, of test_ids.bin (older data lack it)
    splits: dict[str, dict[str, Any]]
    # of the words, for a *Hop language: its name, rule, model and versions
    annotator: dict[str, Any] = dataclasses.field(default_factory=dict)


def path_of(data_dir: Path, split: str) -> Path:
    """The token file of a split."""
    return data_dir / f"{split}.bin"


def unaffected_path(data_dir: Path) -> Path:
    """The file of the test sentences in which a *Hop language marks no verb."""
    return data_dir / "test_unaffected.bin"


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
    """Write test_ids.bin from ids (S,); its SHA-256, for meta.json."""
    data = ids.astype(_ID_DTYPE).tobytes()
    with files.atomic_write(data_dir / TEST_IDS) as file:
        file.write(data)
    return hashlib.sha256(data).hexdigest()


def read_test_ids(data_dir: Path, meta: Meta) -> np.ndarray:
    """The ids of the sentences of test.bin, (S,) uint32. Raises UserError if damaged or missing."""
    path, test = data_dir / TEST_IDS, meta.splits["test"]
    data = path.read_bytes() if path.is_file() else b""
    if hashlib.sha256(data).hexdigest() != test.get("ids_sha256"):
        raise UserError(
            f"{path} is missing, damaged or from an older version. It identifies the test "
            "sentences. Prepare the data again (prepare.py): the token files stay the same."
        )
    return np.frombuffer(data, _ID_DTYPE)


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
        needed = {"tokens", "sentences", "sha256"}
        if missing := [split for split in SPLITS if not needed <= meta.splits[split].keys()]:
            raise ValueError(f"{missing[0]} lacks one of {', '.join(sorted(needed))}")
        if "genres" not in meta.splits["test"]:
            raise ValueError("test lacks genres")
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f"{path} is damaged ({error!r}). Delete {data_dir} and prepare it again.")
    if language not in (None, meta.language):
        raise UserError(
            f"{data_dir} contains {meta.language}, but the settings say {language}. Set "
            "--data_dir= "
            f"or --language=, or prepare that language: python prepare.py --language={language}"
        )
    return meta


def _entries(data_dir: Path, meta: Meta) -> dict[Path, dict[str, Any]]:
    """The files of prepared data, each with its entry in meta.json."""
    found = {path_of(data_dir, split): meta.splits[split] for split in SPLITS}
    if "unaffected" in meta.splits["test"]:
        found[unaffected_path(data_dir)] = meta.splits["test"]["unaffected"]
    return found


def _check_size(path: Path, entry: dict[str, Any]) -> None:
    expected = entry["tokens"] * DTYPE.itemsize
    found = path.stat().st_size if path.is_file() else None
    if found != expected:
        what = "is missing" if found is None else f"has {found:,} bytes"
        raise UserError(
            f"{path} {what}; {META} says {expected:,} bytes. Prepare the data again (prepare.py)."
        )


def check_sizes(data_dir: Path, meta: Meta) -> None:
    """Raise UserError if a file is missing or does not have the size that meta.json records."""
    for path, entry in _entries(data_dir, meta).items():
        _check_size(path, entry)


def verify(data_dir: Path, meta: Meta) -> None:
    """Raise UserError if a file does not have the SHA-256 that meta.json records."""
    check_sizes(data_dir, meta)
    for path, entry in _entries(data_dir, meta).items():
        if (found := files.sha256(path)) != entry["sha256"]:
            raise UserError(
                f"{path} has SHA-256 {found}; {META} says {entry['sha256']}. Delete "
                f"{data_dir} and prepare the data again."
            )


def open_blocks(data_dir: Path, meta: Meta, split: str, block_size: int) -> np.ndarray:
    """The whole blocks of a split, memory-mapped, (n_blocks, block_size) uint16.

    Raises UserError if the file does not agree with meta.json, if an id is outside the vocabulary,
    or if the split is shorter than one block.
    """
    path = path_of(data_dir, split)
    _check_size(path, meta.splits[split])
    if meta.splits[split]["tokens"] < block_size:
        raise UserError(
            f"{path} has {meta.splits[split]['tokens']:,} tokens, fewer than one block of "
            f"{block_size}. Prepare a larger corpus, or set a smaller --block_size."
        )
    tokens = np.memmap(path, DTYPE, mode="r")
    for start in range(0, len(tokens), _CHECK_CHUNK):
        chunk = tokens[start : start + _CHECK_CHUNK]
        if chunk.max() >= meta.vocab_size:
            place = start + int(np.argmax(chunk >= meta.vocab_size))
            raise UserError(
                f"{path} holds the id {tokens[place]} at token {place:,}, beyond the vocabulary "
                f"of {meta.vocab_size} ({META}). Delete {data_dir} and prepare the data again."
            )
    n_blocks = len(tokens) // block_size
    return tokens[: n_blocks * block_size].reshape(n_blocks, block_size)
