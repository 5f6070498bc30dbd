"""`python perturb.py --check LANGUAGE` finds each fault of a row and says what to write."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from conftest import ROOT

import perturb
from impossible.settings import UserError
from impossible.text.arrays import Sentences
from perturb import LANGUAGES, Language


def checked(name: str, capsys: pytest.CaptureFixture[str]) -> dict[str, str]:
    """What is printed of a language: the first word of each line and the rest."""
    perturb.main(["--check", name])
    lines = capsys.readouterr().out.splitlines()
    return {line.split()[0]: line.split(maxsplit=1)[1] for line in lines}


@pytest.mark.parametrize(
    "name", ["partial_reverse", "parity_negation_words", "nondeterministic_shuffle", "reverse"]
)
def test_a_language_of_the_project_passes(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    lines = checked(name, capsys)
    language = perturb.get(name)
    assert lines["sentences"].startswith("1,494; 2 dropped: fewer than 2")
    assert lines["control"] == f"{perturb.get(language.control).title}, with the same " + (
        "sentences and markers"
    )
    undone = "gives the original sentences" if language.invert else "none: texts cannot be undone"
    assert lines["inverse"].startswith(undone)
    unwritten = f' (first write this file, with the line: language = "{name}")'
    has_config = (ROOT / "config" / f"{name}.py").is_file()
    assert lines["next"] == f"python prepare.py config/{name}.py{'' if has_config else unwritten}"


def reseeded(s: Sentences, markers: list[int], rng: np.random.Generator) -> Sentences:
    """A fault: each call shuffles with a generator of its own."""
    return perturb.nondeterministic_shuffle(s, markers, np.random.default_rng(1))


def across(s: Sentences, markers: list[int], rng: np.random.Generator) -> Sentences:
    """A fault: tokens of the text's two ends trade places."""
    tokens = s.tokens.copy()
    tokens[[0, -1]] = tokens[[-1, 0]]
    return Sentences(tokens, s.offsets)


def beyond(s: Sentences, markers: list[int], rng: np.random.Generator) -> Sentences:
    """A fault: an id that no marker has."""
    return Sentences(np.where(s.tokens == 11, 50257, s.tokens), s.offsets)


@pytest.mark.parametrize(
    ("function", "row", "message"),
    [
        (reseeded, {}, "must draw from `rng`"),
        (across, {}, "know nothing of other sentences"),
        (beyond, {}, "Give it a marker in perturb.py"),
        (lambda s, *_: s.take(s.lengths > 3), {}, "must return as many sentences as it gets"),
        (perturb.no_shuffle, {"min_tokens": 999}, "drops every sentence"),
        (perturb.no_shuffle, {"invert": lambda t, _: t[::-1]}, "the inverse of Mine is wrong"),
        (perturb.no_shuffle, {"max_tokens": 99}, r"a control of Mine.*max_tokens: 350.* same max"),
        (perturb.no_shuffle, {"markers": ("🅇",)}, r"a control of Mine.*\(markers: \(\)\)"),
        (perturb.no_shuffle, {"control": "no_shufle"}, "control='no_shufle'. Expected: the name"),
        (perturb.no_shuffle, {"min_tokens": 1}, "min_tokens=1. Expected: 2 or more"),
    ],
)
def test_a_fault_of_a_row_is_shown_with_what_to_write(
    function: Callable[..., Sentences],
    row: dict[str, Any],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    mine = Language("Mine", function, "nothing", max_tokens=350, control="no_shuffle")
    monkeypatch.setitem(LANGUAGES, "mine", dataclasses.replace(mine, **row))
    with pytest.raises(UserError, match=message):
        perturb.main(["--check", "mine"])


def test_what_a_row_lacks_is_shown_with_what_to_write(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(LANGUAGES, "mine", Language("Mine", perturb.no_shuffle, "nothing"))
    lines = checked("mine", capsys)
    assert lines["control"].endswith('Write one: control="LANGUAGE"')
    assert lines["inverse"].endswith("invert=FUNCTION")
    for arguments in (["--check"], ["--check", "a", "b"]):
        with pytest.raises(UserError, match="--check needs one language"):
            perturb.main(arguments)
