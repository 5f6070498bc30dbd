"""Annotated sentences from files in CoNLL-U, in place of a corpus and spaCy."""

import gzip
import itertools
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from impossible.settings import UserError
from impossible.text.corpus import Part, content_hash, require_names, split_folders
from impossible.text.verbs import Annotated, Word, annotated

_ENDING = re.compile(r"\.conllu(\.gz)?$")
_SYMBOLS = ("PUNCT", "SYM")  # the parts of speech of a word that is an underscore
_PART = 1 << 13  # sentences handled in one go


def version(folder: Path) -> str:
    """A hash of the files of all splits, with a label. Raises UserError if a split has none."""
    splits = {split: list(paths.values()) for split, paths in _paths(folder).items()}
    return f"annotated sentences, sha256 {content_hash(splits)}"


def read(folder: Path, split: str) -> Iterator[Part]:
    """The sentences of a split in order, some at a time, as the lines of parts."""
    for genre, path in _paths(folder)[split].items():
        sentences = _sentences(path)
        if not (part := list(itertools.islice(sentences, _PART))):
            raise UserError(f"{path} holds no sentence. Expected CoNLL-U.")
        while part:
            yield Part(genre, part)
            part = list(itertools.islice(sentences, _PART))


def _paths(folder: Path) -> dict[str, dict[str, Path]]:
    """The files of each split by genre, in order. Raises UserError if a split has none."""
    if not folder.is_dir():
        raise UserError(
            f"no folder {str(folder)!r}. Set --annotations= to a folder of annotations."
        )
    splits: dict[str, dict[str, Path]] = {}
    for split, place in split_folders(folder).items():
        splits[split] = {}
        for path in sorted(place.iterdir()) if place else []:
            genre, count = _ENDING.subn("", path.name)
            if not count or path.name.startswith("."):
                continue
            if genre in splits[split]:
                raise UserError(
                    f"{path} and {splits[split][genre].name} are both of the genre {genre!r}. Keep "
                    "only one of the two."
                )
            splits[split][genre] = path
        if not splits[split]:
            raise UserError(
                f"{place or folder} holds no annotations for {split}. Expected folders 100M/, dev/ "
                f"and test/ (as of BabyLM) in {folder}, with files GENRE.conllu or GENRE.conllu.gz."
            )
    require_names(splits["test"])
    return splits


def _sentences(path: Path) -> Iterator[Annotated]:
    """The sentences of a file. Raises UserError, with the line, for an error in it."""
    opened = gzip.open if path.suffix == ".gz" else open
    try:
        with opened(path, "rt", encoding="utf-8-sig") as file:
            yield from _parsed(path, file)
    except (UnicodeDecodeError, gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UserError(f"{path} is damaged ({error}). Expected text in UTF-8: make it again.")


def _parsed(path: Path, file: IO[str]) -> Iterator[Annotated]:
    words: list[Word] = []
    text: str | None = None
    first = 0
    for number, line in enumerate(itertools.chain(file, [""]), 1):
        line = line.rstrip("\r\n")
        if match := re.match(r"#\s*text\s*=\s?", line):
            text = line[match.end() :]
        elif line and not line.startswith("#"):
            words += _word(line, f"{path}, line {number}", len(words) + 1)
            first = first or number
        elif not line and words:
            yield annotated(words, text, f"{path}, line {first}")
            words, text, first = [], None, 0


def _word(line: str, where: str, expected: int) -> list[Word]:
    """The word of a line of CoNLL-U; none for a range (1-2) or an empty node (8.1).

    expected: the number of the word in its sentence. Raises UserError.
    """
    columns = line.split("\t")
    if len(columns) != 10:
        raise UserError(
            f"{where}: {len(columns)} columns found, 10 expected, separated by tabs (CoNLL-U)."
        )
    number, text, lemma, kind, feats = (columns[i] for i in (0, 1, 2, 3, 5))
    if re.fullmatch(r"\d+[-.]\d+", number):
        return []
    if number != str(expected) or not text.strip():
        raise UserError(
            f"{where}: the word {text!r} has the number {number!r}. Expected a word with the "
            f"number {expected}: words are numbered from 1, and a blank line ends each sentence."
        )
    if text == "_" and kind not in _SYMBOLS:
        raise UserError(
            f"{where}: the word is '_', as in treebanks that are published without their text. "
            "Put the words in, or remove the sentence. (A word that is an underscore has the part "
            f"of speech {' or '.join(_SYMBOLS)}; found {kind!r}.)"
        )
    is_lemma = lemma != "_" or text == "_"
    return [Word(text, lemma if is_lemma else None, None if feats == "_" else feats)]
