"""Annotated sentences from files in CoNLL-U, in place of a corpus and spaCy."""

import itertools
import re
from collections.abc import Iterator
from pathlib import Path

from impossible.settings import UserError
from impossible.text.corpus import Part, files_of_splits, hash_of_splits, open_text, require_names
from impossible.text.verbs import Annotated, Word, annotated, with_dependents

_SYMBOLS = ("PUNCT", "SYM")  # the parts of speech of a word that is an underscore
_PART = 1 << 13  # sentences handled in one go


def version(folder: Path) -> str:
    """A line that identifies the files by a hash. Raises UserError if a split has no file."""
    return f"annotated sentences, sha256 {hash_of_splits(_paths(folder))}"


def read(folder: Path, split: str, *, heads: bool = False) -> Iterator[Part]:
    """Yield the annotated sentences of a split in order, as the lines of parts.

    heads: whether each word must have a head. Raises UserError if one has none.
    """
    for path in _paths(folder)[split]:
        sentences = _sentences(path, heads)
        part = list(itertools.islice(sentences, _PART))
        if not part:
            raise UserError(f"{path} holds no sentence. Expected CoNLL-U.")
        while part:
            yield Part(_genre(path), part)
            part = list(itertools.islice(sentences, _PART))


def _genre(path: Path) -> str:
    return Path(path.name.removesuffix(".gz")).stem


def _paths(folder: Path) -> dict[str, list[Path]]:
    """The files of each split, in order. Raises UserError if a split has no file."""
    splits, _ = files_of_splits(folder, (".conllu",))
    if not splits:
        raise UserError(
            f"{str(folder)!r} holds no annotations. Set --annotations= to a folder that holds the "
            "folders of BabyLM (100M, dev, test), with files GENRE.conllu or GENRE.conllu.gz."
        )
    require_names(map(_genre, splits["test"]))
    return splits


def _sentences(path: Path, heads: bool) -> Iterator[Annotated]:
    """Yield the sentences of a file. Raises UserError, with the line, for invalid CoNLL-U."""
    words: list[Word] = []
    text: str | None = None
    first = 0  # line of the first word of the sentence
    with open_text(path) as (file, _):
        for number, line in enumerate(itertools.chain(file, [""]), 1):
            line = line.rstrip("\n")
            if match := re.match(r"#\s*text\s*=\s?", line):
                text = line[match.end() :]
            elif line and not line.startswith("#"):
                words += _word(line, f"{path}, line {number}", len(words) + 1)
                first = first or number
            elif not line and words:
                where = f"{path}, line {first}"
                if heads:
                    _require_heads(words, where)
                yield annotated(words, text, where)
                words, text, first = [], None, 0


def _require_heads(words: list[Word], where: str) -> None:
    """Raise UserError, beginning with `where`, if heads do not lead from each word to a root."""
    tree = with_dependents(0, range(1, len(words) + 1), [word.head for word in words])
    for number, word in enumerate(words, 1):
        if number not in tree or not word.relation:
            raise UserError(
                f"{where}: word {number} of the sentence, {word.text!r}, has the head {word.head} "
                f"and the relation {word.relation}. Expected a relation, and heads that lead to a "
                "root (0): PhraseHop needs a tree in columns 7 and 8. Parse the file, or leave "
                "PhraseHop out."
            )


def _word(line: str, where: str, expected: int) -> list[Word]:
    """The word of a line of CoNLL-U; none for a range (1-2) or an empty node (8.1).

    expected: the number of the word in its sentence. Raises UserError, beginning with `where`.
    """
    columns = line.split("\t")
    if len(columns) != 10:
        raise UserError(
            f"{where}: {len(columns)} columns found, 10 expected, separated by tabs (CoNLL-U)."
        )
    number, text, lemma, kind, _, feats, head, relation, *_ = columns
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
    feats, relation = (None if value == "_" else value for value in (feats, relation))
    head = int(head) if head.isdecimal() else None
    return [Word(text, lemma if is_lemma else None, feats, head, relation)]
