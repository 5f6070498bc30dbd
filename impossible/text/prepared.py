"""Whether data are prepared already: compares the identity of the tokens with meta.json."""

import importlib.metadata
from pathlib import Path
from typing import Any

import numpy as np

from impossible import files
from impossible.settings import Settings, UserError
from impossible.text import corpus, documents, folder, token_files
from impossible.text.documents import Splits
from impossible.text.tokenizer import END_OF_TEXT_ID, Tokenizer
from impossible.text.words import annotations
from perturb import Language


def identity_of(
    settings: Settings,
    language: Language,
    tokenizer: Tokenizer,
    versions: dict[tuple[str, ...], str],
) -> dict[str, Any]:
    """The fields of meta.json that determine the tokens and are known before reading text.

    versions: those of corpora that are known already; a new one is added. Raises UserError for a
    language with more tokens than token files can hold.
    """
    limit = np.iinfo(token_files.DTYPE).max + 1
    if tokenizer.vocab_size > limit:
        raise UserError(
            f"language {settings.language!r} has a vocabulary of {tokenizer.vocab_size:,}; token "
            f"files hold uint16, so at most {limit:,}. Give it fewer markers in perturb.py."
        )
    what = (settings.corpus, settings.sotu_years, settings.text_column, settings.invalid_utf8)
    key = (*what, settings.annotations)
    if key not in versions:
        versions[key] = corpus_version(settings)
    packages = ("numpy", "sentencex", "tiktoken")
    identity = {
        "language": settings.language,
        "markers": tokenizer.markers,
        "vocab_size": tokenizer.vocab_size,
        "eot_token": END_OF_TEXT_ID,
        "corpus": corpus_name(settings),
        "corpus_version": versions[key],
        "segmenter": "annotations" if settings.annotations else settings.segmenter,
        "data_seed": settings.data_seed,
        "made_with": {name: importlib.metadata.version(name) for name in packages},
    }
    if language.hops:
        folder = annotations_of(settings, identity)
        identity["annotator"] = annotations.identity_of(settings, folder)
    return identity


def source_of(identity: dict[str, Any]) -> tuple[str, ...]:
    """The same for data that are prepared from the same sentences."""
    names = ("corpus", "corpus_version", "segmenter", "annotator")
    return tuple(str(identity.get(name)) for name in names)


def annotations_of(settings: Settings, identity: dict[str, Any]) -> Path:
    """The folder of the annotated words of a corpus."""
    return annotations.folder_of(settings, identity["corpus"], identity["corpus_version"])


def annotate(settings: Settings, identity: dict[str, Any], splits: Splits) -> Path:
    """Annotate the words of a corpus, unless that is done. Returns the folder."""
    folder, version = annotations_of(settings, identity), identity["corpus_version"]
    annotations.make(
        settings, folder, identity, splits, lambda: require_unchanged(settings, version)
    )
    return folder


def open_documents(settings: Settings, is_annotated: bool) -> Splits:
    """The documents of the corpus; none if annotations in files take their place.

    Raises UserError.
    """
    if is_annotated and settings.annotations:
        return {}
    splits = corpus.open_corpus(
        corpus_name(settings),
        settings.sotu_years,
        settings.text_column,
        may_replace=settings.invalid_utf8 == "replace",
    )
    documents.require_names(document.genre for document in splits["test"])
    return splits


def corpus_name(settings: Settings) -> str:
    """The name of the corpus, or the folder of the annotations that take its place."""
    if settings.annotations:
        return str(files.require_utf8(Path(settings.annotations).expanduser().absolute()))
    return corpus.normal_name(settings.corpus)


def corpus_version(settings: Settings) -> str:
    """The exact identity of the corpus now, and how it is read."""
    if settings.annotations:
        found = annotations.from_files.files_of(Path(settings.annotations))
        paths = {split: list(genres.values()) for split, genres in found.items()}
        return f"annotated sentences, sha256 {folder.content_hash(paths)}"
    name = corpus_name(settings)
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
        token_files.check_sizes(data_dir, meta)
        token_files.read_test_ids(data_dir, meta)
    except UserError as error:
        print(f"{error} Doing so now.")
        return False
    return True


def require_unchanged(settings: Settings, version: str) -> None:
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
