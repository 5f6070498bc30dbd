"""Words and verbs by Stanza, the annotator of the published corpora.

Tested with a stand-in that behaves like Stanza; not run with Stanza's models.
"""

import importlib.metadata
import importlib.util
from collections.abc import Iterator, Sequence
from typing import Any

from impossible.errors import UserError
from impossible.text.words.verbs import Word

_PACKAGE = "default_accurate"  # as published


class Annotator:
    """Stanza. Raises UserError if it is not installed."""

    name = "stanza"
    processes = 1  # it uses the GPU, or all cores

    def __init__(self) -> None:
        if importlib.util.find_spec("stanza") is None:
            raise UserError(
                "Stanza is not installed. Type: pip install stanza. Or leave --annotator= out: "
                "spaCy is the default."
            )

    @property
    def identity(self) -> dict[str, Any]:
        """What the annotations depend on, for meta.json."""
        versions = {"stanza": importlib.metadata.version("stanza")}
        return {"annotator": self.name, "model": _PACKAGE, "versions": versions}

    def load(self) -> None:
        """Load the models; Stanza downloads those that are missing."""
        import stanza

        # Sentences are found already: they are told apart by blank lines.
        self._pipeline = stanza.Pipeline(
            "en",
            processors="tokenize,mwt,pos,lemma",
            package=_PACKAGE,
            tokenize_no_ssplit=True,
        )

    def annotate(self, sentences: Sequence[str]) -> Iterator[list[Word]]:
        """The words of each sentence. Raises UserError if Stanza returns another number of them."""
        found = self._pipeline("\n\n".join(" ".join(s.split()) for s in sentences)).sentences
        if len(found) != len(sentences):
            raise UserError(
                f"Stanza returned {len(found):,} sentences for {len(sentences):,}. Use the "
                "default annotator, or give files with --annotations="
            )
        # Words, not tokens: since release 1.7, "doesn't" is one token and two words.
        for sentence in found:
            yield [Word(word.text, word.lemma, word.feats) for word in sentence.words]
