"""Annotated sentences from files: CoNLL-U, or the JSON of the published annotation script."""

import gzip
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from impossible.errors import UserError
from impossible.text import folder as folders
from impossible.text.documents import require_genre
from impossible.text.token_files import SPLITS
from impossible.text.words.verbs import Annotated, Word, annotated

_JSON = "_parsed.json"
_CONLLU = (".conllu", ".conllu.gz")


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
            require_genre(genre, str(path))
            if genre in found[split]:
                raise UserError(
                    f"{path} and {found[split][genre].name} are both of the genre {genre!r}. Keep "
                    "only one of the two."
                )
            found[split][genre] = path
        if not found[split]:
            raise UserError(
                f"{places[split] or folder} holds no annotations for {split}. Expected folders "
                f"100M/, dev/ and test/ (as of BabyLM) in {folder}, with files GENRE.conllu, "
                f"GENRE.conllu.gz or GENRE{_JSON}."
            )
    return found


def _genre(path: Path) -> str:
    """The genre of a file of annotations; empty for any other file."""
    endings = (ending for ending in (_JSON, *_CONLLU) if path.name.endswith(ending))
    return "" if path.name.startswith(".") else path.name.removesuffix(next(endings, path.name))


def sentences(path: Path) -> Iterator[Annotated]:
    """The sentences of a file. Raises UserError, with the place, for what is not right in it."""
    try:
        if path.name.endswith(_JSON):
            with open(path, "rb") as file:
                yield from _from_json(path, file)
        else:
            opened = gzip.open if path.suffix == ".gz" else open
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
            words += _word(line, f"{path}, line {number}")
            first = first or number
        elif not line and words:
            yield annotated(words, text, f"{path}, line {first}")
            words, text, first = [], None, 0
    if words:
        yield annotated(words, text, f"{path}, line {first}")


def _word(line: str, where: str) -> list[Word]:
    """The word of a line of CoNLL-U; none for a range (1-2) or an empty node (8.1)."""
    columns = line.split("\t")
    if len(columns) != 10:
        raise UserError(
            f"{where}: {len(columns)} columns found, 10 expected, separated by tabs (CoNLL-U)."
        )
    place, text, lemma, feats = (columns[i] for i in (0, 1, 2, 5))
    if re.fullmatch(r"\d+[-.]\d+", place):
        return []
    if not place.isdecimal() or not text.strip():
        raise UserError(
            f"{where}: the word {text!r} has the number {place!r}. Expected a word, and its number "
            "in the sentence."
        )
    is_lemma = lemma != "_" or text == "_"
    return [Word(text, lemma if is_lemma else None, None if feats == "_" else feats)]


def _require_text(words: list[Word]) -> None:
    """Raise TypeError unless a word's parts are texts (lemma and features: or null)."""
    for word in words:
        for value, kinds in zip(word, (str, str | None, str | None), strict=True):
            if not isinstance(value, kinds):
                raise TypeError(f"{value!r} is not a text")


def _from_json(path: Path, file: IO[bytes]) -> Iterator[Annotated]:
    """The file is read as a stream: one genre of BabyLM has gigabytes."""
    try:
        import ijson
    except ImportError:
        raise UserError(f"{path}: ijson is needed to read it. Type: make install-hop")
    number = parses = 0
    try:
        for number, sentence in enumerate(ijson.items(file, "item.sent_annotations.item"), 1):
            found = sentence["word_annotations"]
            words = [Word(word["text"], word["lemma"], word["feats"]) for word in found]
            _require_text(words)
            yield annotated(words, sentence["sent_text"], f"{path}, sentence {number:,}")
            parses += sentence.get("constituency_parse", "") is None
    except ijson.JSONError as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"{path} is not valid JSON after sentence {number:,}: {reason}. Make the file again."
        )
    except (KeyError, TypeError) as error:
        raise UserError(
            f"{path}, sentence {number:,}: {error!r}. Expected sent_text and word_annotations with "
            "text, lemma and feats, as the published tag.py writes them."
        )
    if parses:
        print(f"{path}: {parses:,} sentences have no parse; they are treated like the others")
