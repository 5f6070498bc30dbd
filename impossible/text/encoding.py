"""From documents to the tokens of their sentences, by several threads, in the order of the text."""

import os
from collections import Counter, deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from impossible.text import sentences
from impossible.text.documents import Document
from impossible.text.tokenizer import Tokenizer
from perturb import Sentences, from_lengths


def encoded(
    documents: list[Document],
    tokenizer: Tokenizer,
    segmenter: str,
    workers: int,
    replaced: Counter[str] | None,
) -> Iterator[tuple[Document, int, Sentences, np.ndarray]]:
    """The tokens of all sentences, a part of a document at a time.

    workers: number of threads (0: one for each core); it does not affect the order.
    replaced: as in sentences.lines. Yields the document, the size of the part in bytes, its
    sentences, and the number of words in each, (S,) int32.
    """

    def encode(lines: list[str]) -> tuple[Sentences, np.ndarray]:
        texts = sentences.sentences(lines, segmenter)
        words = np.fromiter((len(text.split()) for text in texts), np.int32, len(texts))
        return from_lengths(*tokenizer.encode(texts)), words

    workers = workers or cores()
    begun: deque[tuple[Document, int, Future[tuple[Sentences, np.ndarray]]]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        for document, part in sentences.lines(documents, segmenter, replaced):
            begun.append((document, part.size, pool.submit(encode, part.lines)))
            if len(begun) > workers:
                of, size, found = begun.popleft()
                yield of, size, *found.result()
        for of, size, found in begun:
            yield of, size, *found.result()


def cores() -> int:
    """The number of cores that this process may use, which in a container or job may be fewer."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
