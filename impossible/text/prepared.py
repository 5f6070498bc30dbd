"""Whether data are prepared already: compares the identity of the tokens with meta.json."""

import importlib.metadata
from pathlib import Path
from typing import Any

import numpy as np

from impossible.errors import UserError
from impossible.settings import Prepare
from impossible.text import corpus, token_files
from impossible.text.tokenizer import END_OF_TEXT_ID, Tokenizer


def identity_of(settings: Prepare, tokenizer: Tokenizer) -> dict[str, Any]:
    """The fields of meta.json that determine the tokens and are known before reading text.

    Raises UserError for a language with more tokens than token files can hold.
    """
    limit = np.iinfo(token_files.DTYPE).max + 1
    if tokenizer.vocab_size > limit:
        raise UserError(
            f"language {settings.language!r} has a vocabulary of {tokenizer.vocab_size:,}; token "
            f"files hold uint16, so at most {limit:,}. Give it fewer markers in perturb.py."
        )
    packages = ("numpy", "sentencex", "tiktoken")
    return {
        "language": settings.language,
        "markers": tokenizer.markers,
        "vocab_size": tokenizer.vocab_size,
        "eot_token": END_OF_TEXT_ID,
        "corpus": corpus.normal_name(settings.corpus),
        "corpus_version": corpus_version(settings),
        "segmenter": settings.segmenter,
        "data_seed": settings.data_seed,
        "made_with": {name: importlib.metadata.version(name) for name in packages},
    }


def corpus_version(settings: Prepare) -> str:
    """The exact identity of the corpus now, and how it is read."""
    name = corpus.normal_name(settings.corpus)
    version = corpus.version(name, settings.sotu_years, settings.text_column)
    replaced = ", what is not UTF-8 replaced" if settings.invalid_utf8 == "replace" else ""
    return version + replaced


def is_done(data_dir: Path, identity: dict[str, Any]) -> bool:
    """Whether data_dir holds these very token files. Raises UserError if it holds others."""
    if not (data_dir / token_files.META).exists():
        return False
    meta = token_files.read_meta(data_dir)
    differences = [
        f"{key}: {getattr(meta, key)!r} there, {value!r} now"
        for key, value in identity.items()
        if key != "corpus" and getattr(meta, key) != value  # corpus_version says what was read
    ]
    if differences:
        raise UserError(
            f"{data_dir} contains data that were prepared with other settings "
            f"({'; '.join(differences)}). Choose another folder with --data_dir=, or delete "
            "this one."
        )
    try:
        for split in token_files.SPLITS:
            token_files.check_file(data_dir, meta, split)
        token_files.read_test_ids(data_dir, meta)
    except UserError as error:
        print(f"{error} Doing so now.")
        return False
    return True


def require_unchanged(settings: Prepare, version: str) -> None:
    """Raise UserError if the corpus is not what it was when it was opened."""
    try:
        has_changed = corpus_version(settings) != version
    except UserError:  # a file that is gone
        has_changed = True
    if has_changed:
        raise UserError(
            f"the text in {settings.corpus} changed while it was being read. Wait until no "
            "other program writes to it, and run the same command again."
        )
