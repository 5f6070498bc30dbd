"""Annotated sentences from files in CoNLL-U."""

import gzip
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from impossible.settings import UserError
from impossible.text import folder as folders
from impossible.text.documents import require_names
from impossible.text.token_files import SPLITS
from impossible.text.words.verbs import Annotated, Word, annotated

_ENDINGS = (".conllu", ".conllu.gz")
_SYMBOLS = ("PUNCT", "SYM")  # the parts of speech of a word that is an underscore


def files_of(folder: Path) -> dict[str, dict[str, Path]]:
    """The files of each split by genre, in order. Raises UserError if a split has none."""
    if not folder.is_dir():
        raise UserError(
            f"no folder {str(folder)!r}. Set --annotations= to a folder of annotations."
        )
    places = folders.places_of(folder)
    found: dict[str, dict[str, Path]] = {}
    for split in SPLITS:
        paths = sorted(places[split].iterdir()) if places[split] else []
        found[split] = {}
        for path in paths:
            if not (genre := _genre(path)):
                continue
            if genre in found[split]:
                raise UserError(
                    f"{path} and {found[split][genre].name} are both of the genre {genre!r}. Keep "
                    "only one of the two."
                )
            found[split][genre] = path
        if not found[split]:
            raise UserError(
                f"{places[split] or folder} holds no annotations for {split}. Expected folders "
                f"100M/, dev/ and test/ (as of BabyLM) in {folder}, with files GENRE.conllu or "
                "GENRE.conllu.gz."
            )
    require_names(found["test"])
    return found


def _genre(path: Path) -> str:
    """The genre of a file of annotations; empty for any other file."""
    endings = (ending for ending in _ENDINGS if path.name.endswith(ending))
    return "" if path.name.startswith(".") else path.name.removesuffix(next(endings, path.name))


def sentences(path: Path) -> Iterator[Annotated]:
    """The sentences of a file. Raises UserError, with the line, for an error in it."""
    opened = gzip.open if path.suffix == ".gz" else open
    try:
        with opened(path, "rt", encoding="utf-8-sig") as file:
            yield from _from_conllu(path, file)
    except (UnicodeDecodeError, gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UserError(f"{path} is damaged ({error}). Expected text in UTF-8: make it again.")


def _from_conllu(path: Path, file: IO[str]) -> Iterator[Annotated]:
    words: list[Word] = []
    text: str | None = None
    first = 0
    for number, line in enumerate(file, 1):
        line = line.rstrip("\r\n")
        if match := re.match(r"#\s*text\s*=\s?", line):
            text = line[match.end() :]
        elif line and not line.startswith("#"):
            words += _word(line, f"{path}, line {number}", len(words) + 1)
            first = first or number
        elif not line and words:
            yield annotated(words, text, f"{path}, line {first}")
            words, text, first = [], None, 0
    if words:
        yield annotated(words, text, f"{path}, line {first}")


def _word(line: str, where: str, expected: int) -> list[Word]:
    """The word of a line of CoNLL-U; none for a range (1-2) or an empty node (8.1).

    expected: the number of the word in its sentence. Raises UserError.
    """
    columns = line.split("\t")
    if len(columns) != 10:
        raise UserError(
            f"{where}: {len(columns)} columns found, 10 expected, separated by tabs (CoNLL-U)."
        )
    place, text, lemma, kind, feats = (columns[i] for i in (0, 1, 2, 3, 5))
    if re.fullmatch(r"\d+[-.]\d+", place):
        return []
    if place != str(expected) or not text.strip():
        raise UserError(
            f"{where}: the word {text!r} has the number {place!r}. Expected a word with the number "
            f"{expected}: words are numbered from 1, and a blank line ends each sentence."
        )
    if text == "_" and kind not in _SYMBOLS:
        raise UserError(
            f"{where}: the word is '_', as in treebanks that are published without their text. "
            "Put the words in, or remove the sentence. (A word that is an underscore has the part "
            f"of speech {' or '.join(_SYMBOLS)}; found {kind!r}.)"
        )
    is_lemma = lemma != "_" or text == "_"
    return [Word(text, lemma if is_lemma else None, None if feats == "_" else feats)]
