import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import plain
import pytest
from conftest import fail, run, succeed
from hypothesis import given, settings
from hypothesis import strategies as st

import perturb
from impossible.settings import Settings, UserError
from impossible.text.arrays import Ids, Sentences, from_lengths
from impossible.text.tokenizer import Tokenizer
from perturb import LANGUAGES, Language, NoWayBack

MARKER = 50257
TOKENS = st.lists(st.integers(0, 50255), max_size=12)
SENTENCES = st.lists(TOKENS, min_size=1, max_size=30)
# On annotated sentences: test_verbs.py.
HOPS = {"no_hop", "token_hop", "word_hop", "phrase_hop"}
ON_TOKENS = sorted(plain.LANGUAGES)
IN_WORDS = sorted(f"{name}_words" for name in ON_TOKENS)
NAMES = st.sampled_from(ON_TOKENS)
NONE = np.empty(0, bool)  # tokens that move one by one need not begin a word
ONE, TWO = (Ids(ids, NONE, NONE) for ids in ([MARKER], [MARKER, MARKER + 1]))
TOKENIZER = Tokenizer([perturb.REVERSE])
# The pieces of a text: words that one, several or half a token stand for, and odd spaces.
PIECES = [
    "the",
    " the",
    " bookshelf",
    "'s",
    " x",
    ".",
    " ",
    "  ",
    "\t",
    "\u00a0",
    " 🅁",
    "é",
    " ğü",
    "\n",
]
TEXT = st.lists(st.sampled_from(PIECES) | st.text(max_size=3), max_size=10).map("".join)
TEXTS = st.lists(TEXT.map(str.strip).filter(perturb.is_utf8), min_size=1, max_size=8)


def flat(sentences: list[list[int]]) -> Sentences:
    tokens = np.array([t for s in sentences for t in s], np.uint16)
    return from_lengths(tokens, np.array([len(s) for s in sentences], np.int64))


def nested(s: Sentences) -> list[list[int]]:
    return [part.tolist() for part in np.split(s.tokens, s.offsets[1:-1])][: len(s.lengths)]


def apply(name: str, sentences: list[list[int]]) -> list[list[int]]:
    rng = np.random.default_rng(LANGUAGES[name].seed)
    return nested(LANGUAGES[name].apply(flat(sentences), ONE, rng))


def test_the_plain_implementation_knows_every_language() -> None:
    assert LANGUAGES.keys() == {*ON_TOKENS, *IN_WORDS, *HOPS}


@given(NAMES, SENTENCES)
def test_a_language_is_the_published_one_to_the_bit(name: str, sentences: list) -> None:
    assert apply(name, sentences) == plain.perturb(name, sentences)


@pytest.mark.parametrize("name", ON_TOKENS)
def test_a_language_is_the_published_one_for_sentences_of_every_length(name: str) -> None:
    sentences = [list(range(n)) for n in range(360)]
    assert apply(name, sentences) == plain.perturb(name, sentences)


class Case(NamedTuple):
    """Sentences of tokens, or texts whose words move, before and after they are perturbed."""

    name: str
    ids: Ids
    before: Sentences
    after: Sentences  # none is dropped


@st.composite
def cases(draw: st.DrawFn, names: Sequence[str]) -> Case:
    name = draw(st.sampled_from(names))
    language, ids = LANGUAGES[name], ONE
    if name in IN_WORDS:
        ids = TOKENIZER.ids
        texts = [language.space + text for text in draw(TEXTS)]
        before = from_lengths(*TOKENIZER.encode(texts))
    else:
        before = flat(draw(SENTENCES))
    rng = np.random.default_rng(language.seed)
    return Case(name, ids, before, language.apply(before, ids, rng, drop=False))


@pytest.mark.parametrize("name", [*ON_TOKENS, *IN_WORDS])
@settings(max_examples=10)
@given(st.data())
def test_sentences_may_be_split_into_calls_anywhere(name: str, data: st.DataObject) -> None:
    case = data.draw(cases((name,)))
    count = len(case.before.lengths)
    cut, language = data.draw(st.integers(0, count)), LANGUAGES[case.name]
    rng, parts = np.random.default_rng(language.seed), []
    for part in (case.before.part(0, cut), case.before.part(cut, count)):
        parts += nested(language.apply(part, case.ids, rng, drop=False))
    assert parts == nested(case.after)


@pytest.mark.parametrize("name", [*ON_TOKENS, *IN_WORDS])
@settings(max_examples=10)
@given(st.data())
def test_a_perturbed_sentence_has_its_original_as_its_only_way_back(
    name: str, data: st.DataObject
) -> None:
    case = data.draw(cases((name,)))
    undo = LANGUAGES[case.name].undo
    for original, perturbed in zip(nested(case.before), nested(case.after), strict=True):
        if case.name.startswith("nondeterministic_shuffle"):
            with pytest.raises(NoWayBack, match=r"NondeterministicShuffle.* cannot be undone"):
                undo(np.array(perturbed, int), case.ids)
        elif len(original) > 1 or case.name in IN_WORDS:
            assert undo(np.array(perturbed, int), case.ids).tolist() == original


ELSEWHERE = "the marker is at another place"


@pytest.mark.parametrize(
    ("names", "tokens", "reason"),
    [
        ("no_reverse partial_reverse full_reverse", [1, 2], "no marker"),
        ("no_reverse partial_reverse full_reverse", [MARKER, 1, MARKER], "2 markers, 1 expected"),
        ("initial_negation", [1, MARKER], ELSEWHERE),
        ("parity_negation", [1, 2, MARKER], ELSEWHERE),
        ("parity_negation", [MARKER, 1], ELSEWHERE),
        ("parity_negation", [1, MARKER, 2, 3], ELSEWHERE),
    ],
)
def test_a_sentence_with_wrong_markers_has_no_way_back(
    names: str, tokens: list[int], reason: str
) -> None:
    for name in names.split():
        with pytest.raises(NoWayBack, match=reason):
            LANGUAGES[name].undo(np.array(tokens), ONE)


@pytest.mark.parametrize(
    ("name", "least"), [("no_hop", 1), ("token_hop", 5), ("word_hop", 5), ("phrase_hop", 1)]
)
def test_a_hop_marker_without_room_for_its_verb_has_no_way_back(name: str, least: int) -> None:
    for place in range(8):
        tokens = [*range(place), MARKER + 1, 9, MARKER]
        if place < least:
            with pytest.raises(NoWayBack, match="a marker too early to follow a verb"):
                LANGUAGES[name].undo(np.array(tokens), TWO)
        else:
            assert LANGUAGES[name].undo(np.array(tokens), TWO).tolist() == [*range(place), 9]


@given(cases(IN_WORDS))
def test_whole_words_move_as_tokens_do(case: Case) -> None:
    language, after = LANGUAGES[case.name], case.after
    words = [plain.words(tokens, TOKENIZER.bytes_of) for tokens in nested(case.before)]
    assert nested(after) == plain.perturb_words(case.name, words)
    kept = language.apply(case.before, case.ids, np.random.default_rng(language.seed))
    is_kept = LANGUAGES[case.name.removesuffix("_words")].keeps(case.before)
    assert nested(kept) == nested(after.take(is_kept)), "the limits are those of tokens"


@pytest.mark.parametrize("text", ["🅁 messy very", " He 🅁messy", "He 🅁 very", " He", " a 🅁 🅁 b"])
def test_a_text_whose_words_have_no_way_back_says_why(text: str) -> None:
    tokens = TOKENIZER.encode_with_markers(text)
    language, reason = LANGUAGES["partial_reverse_words"], "no space at the beginning"
    if text == "🅁 messy very":
        original = TOKENIZER.decode(language.undo(np.array(tokens), TOKENIZER.ids))
        assert original == " very messy"
        return
    reason = {" He": "no marker", " a 🅁 🅁 b": "2 markers, 1 expected"}.get(text, reason)
    with pytest.raises(NoWayBack, match=reason):
        language.undo(np.array(tokens), TOKENIZER.ids)


def test_a_sentence_encoded_without_a_space_is_refused_where_words_move() -> None:
    tokens, lengths = TOKENIZER.encode(["He cleans."])
    with pytest.raises(UserError, match="no space at the beginning of a sentence"):
        LANGUAGES["no_shuffle_words"].apply(
            from_lengths(tokens, lengths), TOKENIZER.ids, np.random.default_rng(0)
        )


def test_a_language_reads_the_text_of_tokens_or_words_in_any_tokenizer() -> None:
    def by_text(s: Sentences, markers: list[int], rng: object, text: np.ndarray) -> Sentences:
        parts = [[*sorted(part, key=lambda i: text[i]), *markers] for part in nested(s)]
        return from_lengths(np.concatenate(parts), np.array(list(map(len, parts))))

    def undone(tokens: np.ndarray, markers: list[int], text: np.ndarray) -> np.ndarray:
        assert text[markers[0]] == "🅇"
        kept = tokens.tolist()
        kept.remove(markers[0])
        return np.array(sorted(kept, key=lambda i: text[i], reverse=True))

    text = np.array(["c", " b", "a", " a", "", "🅇"], object)
    ids = Ids([5], np.array([False, True, False, True, False, True]), text)
    mine = Language("Mine", by_text, "in order", ("🅇",), reads_text=True, invert=undone)
    original = flat([[1, 0, 3, 2], [3, 1]])  # " bc aa", " a b"
    assert nested(mine.apply(original, ids, None)) == [[3, 1, 2, 0, 5], [3, 1, 5]]
    mine = perturb.in_words(mine)
    assert nested(mine.apply(original, ids, None)) == [[3, 2, 1, 0, 5], [3, 1, 5]]
    assert mine.undo(np.array([3, 2, 1, 0, 5]), ids).tolist() == [1, 0, 3, 2]
    with pytest.raises(NoWayBack, match="the inverse failed with ValueError"):
        mine.undo(np.array([3, 2, 1, 0]), ids)


def test_a_language_in_words_is_a_row_of_its_own_with_a_control_of_its_own() -> None:
    for name in IN_WORDS:
        language, of_tokens = LANGUAGES[name], LANGUAGES[name.removesuffix("_words")]
        assert language.title.replace(", words)", ")").replace("(words)", "") == of_tokens.title
        assert language.control == f"{of_tokens.control}_words"
        assert "token" not in language.summary
    assert LANGUAGES["local_shuffle_w3_words"].title == "LocalShuffle(w=3, words)"
    with pytest.raises(UserError, match=r"no_hop does not exist with unit words.*partial_reverse"):
        perturb.get("no_hop_words")


def test_unit_words_asks_for_the_language_of_that_name() -> None:
    asked = Settings(language="partial_reverse", unit="words")
    assert asked == Settings(language="partial_reverse_words")
    assert asked == Settings(**dataclasses.asdict(asked))
    assert (asked.language, asked.unit) == ("partial_reverse_words", "words")
    assert asked.data_dir == "data/partial_reverse_words"
    assert Settings().unit == "tokens"
    with pytest.raises(UserError, match="unit = 'letters' is invalid"):
        Settings(unit="letters")


@given(SENTENCES, st.data())
def test_taking_sentences_is_taking_them_one_by_one(sentences: list, data: st.DataObject) -> None:
    order = data.draw(st.lists(st.integers(0, len(sentences) - 1)))
    taken = flat(sentences).take(np.array(order, np.int64))
    assert nested(taken) == [sentences[i] for i in order]


def test_an_unknown_language_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(UserError, match="Did you mean 'partial_reverse'"):
        perturb.get("partial_revers")


def test_the_command_shows_a_sentence_in_a_language() -> None:
    shown = succeed("perturb.py", "partial_reverse", "He cleans his very messy bookshelf.")
    assert " ".join(shown.split()) == "PartialReverse He cleans his 🅁 . lf he books messy very"
    shown = succeed("perturb.py", "partial_reverse_words")
    assert (
        " ".join(shown.split()) == "PartialReverse(words) He cleans 🅁 books he lf . messy very his"
    )
    everything = succeed("perturb.py")
    assert everything.count("\n") == 21, "those on tokens"
    assert "PhraseHop                   He clean his very messy books he lf 🅂 .\n" in everything
    dropped = succeed("perturb.py", "no_reverse", "Yes")
    assert "(dropped, as sentences with fewer than 2 tokens are)" in dropped


def test_the_command_refuses_an_empty_sentence_and_an_unknown_language() -> None:
    assert "the sentence is empty" in fail("perturb.py", "no_reverse", " ")
    assert "unknown language 'x'" in fail("perturb.py", "x")
    assert "Put the sentence in quotes" in fail("perturb.py", "no_reverse", "Not", "quoted.")
    assert run("perturb.py", "--help").returncode == 0
