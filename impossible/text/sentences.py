"""Lines of documents, and the sentences in them."""

import itertools
import re
from collections import Counter
from collections.abc import Iterator

from impossible.text.documents import PERIOD, Document, Part

_WRAPPED = "gutenberg"  # the one genre with paragraphs over several lines
_LONGEST_PARAGRAPH = 10**6  # characters; sentencex takes ever longer for longer ones
# sentencex 1.0.32 fails at some of these spaces ("A\u00a0."), so it gets plain ones.
_SPACE_BEYOND_ASCII = re.compile(r"[^\S\x00-\x7f]")
_INVALID = re.compile("[\udc80-\udcff]")  # as Python keeps bytes that are not UTF-8
_REPLACEMENT = "\ufffd"  # what stands in place of bytes that are no text


def lines(
    documents: list[Document], segmenter: str, replaced: Counter[str] | None = None
) -> Iterator[tuple[Document, Part]]:
    """The lines of documents that hold sentences, a few megabytes in one go; none is blank.

    For sentencex, Gutenberg's lines are joined to paragraphs: they are hard-wrapped. replaced:
    counts, by genre, the characters U+FFFD that were put in place of bytes that are not UTF-8.
    """
    seen = 0  # of all documents: those without splits of their own share them out together
    for document in documents:
        parts = document.parts()
        if document.genre == _WRAPPED and segmenter == "sentencex":
            parts = _unwrapped(parts)
        for part in parts:
            kept = [line for line in part.lines if line]
            first, seen = seen, seen + len(kept)
            if document.places is not None:
                places = document.places
                kept = [line for i, line in enumerate(kept, first) if i % PERIOD in places]
            if replaced is not None:
                kept = _replaced(kept, document.genre, replaced)
            yield document, Part(kept, part.size)


def _replaced(lines: list[str], genre: str, replaced: Counter[str]) -> list[str]:
    """The lines with U+FFFD for each byte that is not UTF-8."""
    clean = []
    for line in lines:
        if not line.isascii():
            line, count = _INVALID.subn(_REPLACEMENT, line)
            replaced[genre] += count
        clean.append(line)
    return clean


def sentences(lines: list[str], segmenter: str) -> list[str]:
    """The sentences of some lines, stripped; none is blank.

    segmenter: `line` (each line is a sentence) or `sentencex`, which splits each line on its own.
    """
    if segmenter == "line":
        return lines
    parts = itertools.chain.from_iterable(map(_segments, lines))
    return [sentence for part in parts if (sentence := part.strip())]


def _segments(line: str) -> list[str]:
    """The segments into which sentencex splits a line; joined, they give the line."""
    import sentencex

    if line.isascii() or not _SPACE_BEYOND_ASCII.search(line):
        return sentencex.segment("en", line)
    ends = itertools.accumulate(
        map(len, sentencex.segment("en", _SPACE_BEYOND_ASCII.sub(" ", line))), initial=0
    )
    return [line[start:end] for start, end in itertools.pairwise(ends)]


def _unwrapped(parts: Iterator[Part]) -> Iterator[Part]:
    """Paragraphs, each the lines between two blank ones joined by spaces."""
    paragraph: list[str] = []
    length = 0
    for lines, size in parts:
        paragraphs = []
        for line in lines:
            if line:
                paragraph.append(line)
                length += len(line) + 1
            if paragraph and (not line or length > _LONGEST_PARAGRAPH):
                paragraphs.append(" ".join(paragraph))
                paragraph, length = [], 0
        yield Part(paragraphs, size)
    if paragraph:
        yield Part([" ".join(paragraph)], 0)
