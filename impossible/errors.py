"""Errors that a person can act on: what was found, where, what was expected, what to do."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """A mistake in the input (settings, files, network), told without a traceback."""


def unknown(kind: str, name: str, known: Iterable[str]) -> UserError:
    """The error for a name that is not in a list of known ones, with the nearest that is.

    kind: what is named ("setting", "language", ...), as it reads in a sentence.
    """
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return UserError(f"unknown {kind} {name!r}.{hint} Known: {', '.join(known)}.")
