"""The original sentences of a split as tokens, which several languages can share."""

import itertools
import os
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, TypeVar

import numpy as np
from tqdm import tqdm

from impossible.settings import Settings, UserError
from impossible.text import corpus
from impossible.text.arrays import Sentences, from_lengths, joined
from impossible.text.corpus import Part, Split
from impossible.text.tokenizer import Tokenizer

T, R = TypeVar("T"), TypeVar("R")
# sentencex 1.0.32 fails at some of these spaces ("A\u00a0."), so it gets plain ones.
_SPACE_BEYOND_ASCII = re.compile(r"[^\S\x00-\x7f]")


class Text(NamedTuple):
    """The sentences of a split, genre by genre."""

    sentences: Sentences  # S of them, none dropped
    words: np.ndarray  # (S,) float64: number of words: by white space, or by bytes
    genres: dict[str, int]  # name -> number of sentences, in order
    replaced: int  # number of bytes that are not UTF-8 and became U+FFFD

    @property
    def genre(self) -> np.ndarray:
        """The index of each sentence's genre in `genres`, (S,) int64."""
        return np.repeat(np.arange(len(self.genres)), list(self.genres.values()))

    @property
    def ids(self) -> np.ndarray:
        """The number of each sentence within its genre, from 0, (S,) int64."""
        counts = list(self.genres.values())
        return np.concatenate([np.arange(count) for count in [0, *counts]])

    def by_genre(self, genre: np.ndarray, lengths: np.ndarray) -> dict[str, dict[str, int]]:
        """The numbers of sentences and tokens (with end-of-text) in each genre, for meta.json.

        genre, lengths: the genre and the tokens of each sentence to count, (n,).
        """
        places = {name: genre == place for place, name in enumerate(self.genres)}
        return {
            name: {"sentences": int(of_genre.sum()), "tokens": int((lengths[of_genre] + 1).sum())}
            for name, of_genre in places.items()
        }


# A part of a text, its S sentences, and the number of words in each, (S,) float64.
EncodedPart = tuple[Part, Sentences, np.ndarray]


def read(split: Split, settings: Settings, tokenizer: Tokenizer, space: str = "") -> Text:
    """The sentences of a split, found and encoded in several threads, with a progress bar.

    space: text to encode before each sentence. Raises UserError for text that cannot be read.
    """
    size = corpus.bytes_per_word(settings)

    def encode(part: Part) -> EncodedPart:
        texts = segmented(part.lines, settings.segmenter, settings.text_language)
        counts = (len(text.encode()) / size if size else len(text.split()) for text in texts)
        words = np.fromiter(counts, np.float64, len(texts))
        return part, from_lengths(*tokenizer.encode([space + text for text in texts])), words

    workers = settings.workers or cores()
    with ThreadPoolExecutor(workers) as pool:
        parts = in_order(split.parts(), lambda part: pool.submit(encode, part).result, workers)
        return collected(parts, split.size, [document.genre for document in split.documents])


def collected(parts: Iterable[EncodedPart], size: int = 0, genres: Iterable[str] = ()) -> Text:
    """Join the parts of a text, in order.

    size: bytes of all parts, for a progress bar. genres: names to list even if they have no
    sentence. Raises UserError for a genre whose parts do not follow each other.
    """
    counts, sentences, words, replaced = dict.fromkeys(genres, 0), [], [], 0
    last = ""
    with tqdm(total=size, unit="B", unit_scale=True, disable=None if size else True) as progress:
        for part, of_part, words_of_part in parts:
            if part.genre != last and counts.get(part.genre):
                raise UserError(
                    f"the genre {part.genre!r} occurs twice, with another genre between. Rename "
                    "the files of the corpus so that those of one genre follow each other."
                )
            last = part.genre
            counts[last] = counts.get(last, 0) + len(words_of_part)
            sentences.append(of_part)
            words.append(words_of_part)
            replaced += part.replaced
            progress.update(part.size)
    words = np.concatenate([np.empty(0), *words])
    return Text(joined(sentences), words, counts, replaced)


def in_order(items: Iterable[T], begin: Callable[[T], Callable[[], R]], most: int) -> Iterator[R]:
    """Yield the results of work on items, in their order, while work on the next items runs.

    begin: begins the work on an item, and returns a function that waits for its result. most: how
    many items are begun in advance.
    """
    begun: deque[Callable[[], R]] = deque()
    for item in items:
        begun.append(begin(item))
        if len(begun) > most:
            yield begun.popleft()()
    while begun:
        yield begun.popleft()()


def segmented(lines: list[str], segmenter: str, text_language: str = "en") -> list[str]:
    """The sentences of some lines, stripped; none is blank.

    segmenter: `line` (each line is a sentence) or `sentencex`, which splits each line on its own.
    text_language: the code of the language whose rules sentencex uses.
    """
    if segmenter == "line":
        return lines
    segments = itertools.chain.from_iterable(_segments(line, text_language) for line in lines)
    return [sentence for segment in segments if (sentence := segment.strip())]


def _segments(line: str, text_language: str) -> list[str]:
    """The segments into which sentencex splits a line; joined, they give the line."""
    import sentencex

    if line.isascii() or not _SPACE_BEYOND_ASCII.search(line):
        return sentencex.segment(text_language, line)
    segments = sentencex.segment(text_language, _SPACE_BEYOND_ASCII.sub(" ", line))
    ends = itertools.accumulate(map(len, segments), initial=0)
    return [line[start:end] for start, end in itertools.pairwise(ends)]


def cores() -> int:
    """The number of cores that this process may use: in a container or job, perhaps not all."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
