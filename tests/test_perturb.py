import numpy as np
import plain
import pytest
from conftest import fail, run, succeed
from hypothesis import given
from hypothesis import strategies as st

import perturb
from impossible.settings import UserError
from impossible.text.arrays import Sentences, from_lengths
from perturb import LANGUAGES, Language, NoWayBack

MARKER = 50257
TOKENS = st.lists(st.integers(0, 50255), max_size=12)
SENTENCES = st.lists(TOKENS, min_size=1, max_size=30)
HOPS = {"no_hop", "token_hop", "word_hop"}  # on annotated sentences: test_hops.py
ON_TOKENS = sorted(LANGUAGES.keys() - HOPS)
NAMES = st.sampled_from(ON_TOKENS)


def flat(sentences: list[list[int]]) -> Sentences:
    tokens = np.array([t for s in sentences for t in s], np.uint16)
    return from_lengths(tokens, np.array([len(s) for s in sentences], np.int64))


def nested(s: Sentences) -> list[list[int]]:
    return [part.tolist() for part in np.split(s.tokens, s.offsets[1:-1])][: len(s.lengths)]


def apply(name: str, sentences: list[list[int]]) -> list[list[int]]:
    rng = np.random.default_rng(LANGUAGES[name].seed)
    return nested(LANGUAGES[name].apply(flat(sentences), [MARKER], rng))


def test_the_plain_implementation_knows_every_language() -> None:
    assert LANGUAGES.keys() == plain.LANGUAGES.keys() | HOPS


@given(NAMES, SENTENCES)
def test_a_language_is_the_published_one_to_the_bit(name: str, sentences: list) -> None:
    assert apply(name, sentences) == plain.perturb(name, sentences)


@pytest.mark.parametrize("name", ON_TOKENS)
def test_a_language_is_the_published_one_for_sentences_of_every_length(name: str) -> None:
    sentences = [list(range(n)) for n in range(360)]
    assert apply(name, sentences) == plain.perturb(name, sentences)


@given(NAMES, SENTENCES, st.data())
def test_sentences_may_be_split_into_calls_anywhere(
    name: str, sentences: list, data: st.DataObject
) -> None:
    cut = data.draw(st.integers(0, len(sentences)))
    language, rng = LANGUAGES[name], np.random.default_rng(LANGUAGES[name].seed)
    parts = [
        nested(language.apply(flat(part), [MARKER], rng))
        for part in (sentences[:cut], sentences[cut:])
    ]
    assert parts[0] + parts[1] == apply(name, sentences)


@given(NAMES, SENTENCES)
def test_a_perturbed_sentence_has_its_original_as_its_only_way_back(
    name: str, sentences: list
) -> None:
    language = LANGUAGES[name]
    kept = [s for s in sentences if len(s) > 1]
    for original, perturbed in zip(kept, apply(name, sentences), strict=True):
        if name == "nondeterministic_shuffle":
            with pytest.raises(NoWayBack, match="NondeterministicShuffle cannot be undone"):
                language.undo(np.array(perturbed), [MARKER])
        else:
            assert language.undo(np.array(perturbed), [MARKER]).tolist() == original


@pytest.mark.parametrize("name", ["no_reverse", "partial_reverse", "full_reverse"])
def test_a_sentence_without_exactly_one_marker_has_no_way_back(name: str) -> None:
    for tokens, reason in (([1, 2], "no marker"), ([MARKER, 1, MARKER], "2 markers, 1 expected")):
        with pytest.raises(NoWayBack, match=reason):
            LANGUAGES[name].undo(np.array(tokens), [MARKER])


@pytest.mark.parametrize(("name", "least"), [("no_hop", 1), ("token_hop", 5), ("word_hop", 5)])
def test_a_hop_marker_without_room_for_its_verb_has_no_way_back(name: str, least: int) -> None:
    markers = [MARKER, MARKER + 1]
    for place in range(8):
        tokens = [*range(place), MARKER + 1, 9, MARKER]
        if place < least:
            with pytest.raises(NoWayBack, match="a marker too early to follow a verb"):
                LANGUAGES[name].undo(np.array(tokens), markers)
        else:
            assert LANGUAGES[name].undo(np.array(tokens), markers).tolist() == [*range(place), 9]


@given(SENTENCES, st.data())
def test_taking_sentences_is_taking_them_one_by_one(sentences: list, data: st.DataObject) -> None:
    order = data.draw(st.lists(st.integers(0, len(sentences) - 1)))
    taken = flat(sentences).take(np.array(order, np.int64))
    assert nested(taken) == [sentences[i] for i in order]


def test_an_unknown_language_or_control_is_refused_with_the_nearest_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(UserError, match="Did you mean 'partial_reverse'"):
        perturb.get("partial_revers")
    mine = Language("Mine", perturb.no_shuffle, "nothing", control="no_shufle")
    monkeypatch.setitem(LANGUAGES, "mine", mine)
    with pytest.raises(UserError, match=r"control of mine: 'no_shufle'.* mean 'no_shuffle'"):
        perturb.get("mine")


def test_the_command_shows_a_sentence_in_a_language() -> None:
    shown = succeed("perturb.py", "partial_reverse", "He cleans his very messy bookshelf.")
    assert " ".join(shown.split()) == "PartialReverse He cleans his 🅁 . lf he books messy very"
    assert succeed("perturb.py").count("\n") == len(LANGUAGES)
    dropped = succeed("perturb.py", "no_reverse", "Yes")
    assert "(dropped, as sentences with fewer than 2 tokens are)" in dropped


def test_the_command_refuses_an_empty_sentence_and_an_unknown_language() -> None:
    assert "the sentence is empty" in fail("perturb.py", "no_reverse", " ")
    assert "unknown language 'x'" in fail("perturb.py", "x")
    assert "Put the sentence in quotes" in fail("perturb.py", "no_reverse", "Not", "quoted.")
    assert run("perturb.py", "--help").returncode == 0
