"""Errors that tell users what was found, where, what was expected, and what to do."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """A mistake in the input (settings, files, network), reported without a traceback."""


def unknown(kind: str, name: str, known: Iterable[str]) -> UserError:
    """The error for an unknown name, with the most similar known name or else all of them.

    kind: the kind of thing that is named ("setting", "language", ...), for the message.
    """
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"Did you mean {near[0]!r}?" if near else f"Known: {', '.join(known)}."
    return UserError(f"unknown {kind} {name!r}. {hint}")
