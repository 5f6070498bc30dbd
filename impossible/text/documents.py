"""The documents of a corpus: each has one genre and is read a few lines at a time."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from impossible.settings import UserError
from impossible.text.token_files import ALL_GENRES

CHUNK = 1 << 22  # bytes of text handled in one go
# Of every twenty lines that are not blank, the one that a missing split takes.
PERIOD, _HELD_OUT = 20, {"val": 9, "test": 19}


class Part(NamedTuple):
    """Some lines of a document."""

    lines: list[str]  # stripped, blank ones as ""
    size: int  # what was read for them, in bytes of the document's size


@dataclass(frozen=True)
class Document:
    """A stretch of text of one genre."""

    genre: str
    size: int  # bytes, as they are stored
    parts: Callable[[], Iterator[Part]]
    # Of every twenty lines (or paragraphs) of the corpus, those that count; all, if it has splits.
    places: frozenset[int] | None = None


@dataclass(frozen=True)
class Source:
    """The description of a corpus for a model card."""

    name: str  # within a sentence
    description: str  # sentences of their own
    rights: str
    dataset: str | None = None  # its id on the Hub
    tags: tuple[str, ...] = ()
    is_published: bool = False  # whether it is the corpus of the published models


def require_names(genres: Iterable[str]) -> None:
    """Raise UserError if a genre of the test split has the name of all genres together."""
    if ALL_GENRES in genres:
        raise UserError(
            f"the test split has a genre named {ALL_GENRES!r}. In the tables of an evaluation, "
            "this is the name of all genres together. Rename the file of the genre (or its folder, "
            "if the file is named after a split)."
        )


def recurring(genre: str) -> UserError:
    """The error for a genre whose documents do not follow each other."""
    return UserError(
        f"the genre {genre!r} occurs twice, with another genre between. Rename the files of the "
        "corpus so that those of one genre follow each other."
    )


Splits = dict[str, list[Document]]  # the documents of each split, in order


def hold_out(missing: Sequence[str]) -> dict[str, frozenset[int]]:
    """Line numbers modulo PERIOD for missing splits and for train; {} if no split is missing."""
    if not missing:
        return {}
    places = {split: frozenset([_HELD_OUT[split]]) for split in missing}
    return places | {"train": frozenset(range(PERIOD)).difference(*places.values())}


def text_lines(text: str) -> list[str]:
    """The lines of a text, stripped, whichever of the three line ends it has."""
    text = text.replace("\r\n", "\n").replace("\r", "\n").removesuffix("\n")
    return [line.strip() for line in text.split("\n")]
