"""A split of a corpus as GPT-2 tokens, before any language: read once for many languages."""

import dataclasses
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from tqdm import tqdm

from impossible.settings import Settings
from impossible.text.documents import Document, recurring
from impossible.text.encoding import encoded
from impossible.text.tokenizer import Tokenizer
from impossible.text.words import annotations, hops
from perturb import Sentences, Verbs, from_lengths


@dataclass(frozen=True)
class Text:
    """The sentences of a split, genre by genre."""

    sentences: Sentences  # S of them, none dropped
    words: np.ndarray  # (S,) int32: words of the text, separated by white space
    genres: dict[str, int]  # how many sentences each has, in order
    replaced: int = 0  # bytes that are not UTF-8, and became U+FFFD

    @property
    def genre(self) -> np.ndarray:
        """The place of each sentence's genre in `genres`, (S,) int64."""
        return np.repeat(np.arange(len(self.genres)), list(self.genres.values()))

    @property
    def ids(self) -> np.ndarray:
        """The number of each sentence within its genre, from 0, (S,) int64."""
        counts = np.array(list(self.genres.values()), np.int64)
        return np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)


def read(documents: list[Document], settings: Settings, tokenizer: Tokenizer) -> Text:
    """Find the sentences of a split and encode them, with a progress bar."""
    replaced = Counter() if settings.invalid_utf8 == "replace" else None
    size = sum(document.size for document in documents)
    names = [document.genre for document in documents]

    def parts() -> Iterator[tuple[str, Sentences, np.ndarray]]:
        found = encoded(documents, tokenizer, settings.segmenter, settings.workers, replaced)
        with tqdm(total=size, unit="B", unit_scale=True, disable=None) as progress:
            for document, part_size, sentences, words in found:
                yield document.genre, sentences, words
                progress.update(part_size)

    text = _joined(parts(), names)
    return dataclasses.replace(text, replaced=replaced.total()) if replaced else text


def read_annotated(
    folder: Path, split: str, tokenizer: Tokenizer, counted: Literal["tokens", "words"]
) -> Text:
    """Encode the annotated sentences of a split for a *Hop language, with their verbs.

    counted: what the hops of the language count.
    """

    def parts() -> Iterator[tuple[str, Sentences, np.ndarray]]:
        for genre, sentences in annotations.read(folder, split):
            words = np.array([sentence.text_words for sentence in sentences], np.int32)
            yield genre, hops.encoded(sentences, tokenizer, counted), words

    found = annotations.replaced(folder, split)
    return dataclasses.replace(_joined(parts(), []), replaced=found)


def _joined(parts: Iterable[tuple[str, Sentences, np.ndarray]], names: list[str]) -> Text:
    """A text from its parts in order; names: genres that are there even without a sentence."""
    genres = dict.fromkeys(names, 0)
    tokens, lengths, words = [], [], []
    verbs: list[Verbs] = []
    last = ""
    for genre, found, counts in parts:
        if genre != last and genres.get(genre):
            raise recurring(genre)
        last = genre
        if found.verbs is not None:
            first = sum(genres.values())
            verbs.append(found.verbs._replace(sentence=found.verbs.sentence + first))
        genres[genre] = genres.get(genre, 0) + len(found.lengths)
        tokens.append(found.tokens)
        lengths.append(found.lengths.astype(np.int32))
        words.append(counts)
    sentences = from_lengths(merged(tokens, np.uint16), merged(lengths, np.int32))
    if verbs:
        sentences = sentences._replace(verbs=Verbs(*map(np.concatenate, zip(*verbs, strict=True))))
    return Text(sentences, merged(words, np.int32), genres)


def merged(parts: list[np.ndarray], kind: type) -> np.ndarray:
    """Arrays one after another. Empties the list, so that no two copies fill the memory."""
    whole = np.empty(sum(map(len, parts)), kind)
    end = len(whole)
    while parts:
        part = parts.pop()
        whole[end - len(part) : end] = part
        end -= len(part)
    return whole
