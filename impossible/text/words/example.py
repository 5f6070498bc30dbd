"""One sentence with its verbs, to be shown: the paper's is known, others are annotated by spaCy."""

from impossible.text.words import by_spacy
from impossible.text.words.verbs import SINGULAR, Annotated, Word, annotated

_KNOWN = {
    "He cleans his very messy bookshelf.": [
        Word("He"),
        Word("cleans", "clean", SINGULAR),
        *map(Word, ("his", "very", "messy", "bookshelf", ".")),
    ]
}


def annotated_sentence(text: str) -> Annotated:
    """The words of a sentence. Raises UserError if spaCy is needed and is not installed."""
    words = _KNOWN.get(text)
    if words is None:
        annotator = by_spacy.Annotator()
        annotator.load()
        words = next(annotator.annotate([text]))
    return annotated(words, text, by_spacy.Annotator.name)
