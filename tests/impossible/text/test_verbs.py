"""The *Hop languages on annotated sentences, beside a plain implementation of their rules."""

import numpy as np
import plain
import plain_hop
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import perturb
from impossible.text.arrays import Sentences
from impossible.text.tokenizer import Tokenizer, write_transformers_files
from impossible.text.verbs import PLURAL, SINGULAR, Word, annotated, encoded

NAMES = ("no_hop", "token_hop", "word_hop")
TOKENIZER = Tokenizer((perturb.SINGULAR, perturb.PLURAL))
# One sentence a row, word=lemma for a marked verb, and a part of what each language makes of it;
# a token that begins with a space begins with _ here. The published code gives the same.
WORKED = [
    (
        "He cleans=clean his very messy bookshelf .",
        "_clean 🅂 _his",
        "_messy _books 🅂 he lf _.",
        "_books he lf 🅂 _.",
    ),
    ("It rains=rain a lot here .", None, None, None),
    ("It rains=rain a lot in here .", "_rain 🅂 _a", "_here 🅂 _.", "_here 🅂 _."),
    ("It rains=rain a lot in here", "_rain 🅂", "_here 🅂 $", "_here 🅂 $"),
    (
        "He does=do n't like the taste , really .",
        "_don 't 🅂 _like",
        "_the _taste _, 🅂 _really",
        "_, _really 🅂 _.",
    ),
    (
        "She says=say , well , you know it",
        "_say 🅂 _,",
        "_, _well _, _you 🅂 _know",
        "_know _it 🅂",
    ),
    ('She says=say : " you know it " .', None, None, None),
    ("He thinks=think that we all are n't fine .", "_think 🅂", "_aren 🅂 't _fine", "_aren 't 🅂"),
    (
        "He thinks=think that you all would n't 've gone",
        "_think 🅂",
        "_wouldn 🅂 't 've",
        "_wouldn 't 🅂 've _gone",
    ),
    ("it 's=be not my red ball .", "it _be 🅂 _not", "_ball 🅂 _.", "_ball 🅂 _."),
    ("that 's='s not my red ball now .", "that 's 🅂", "_red _ball 🅂 _now", "_ball _now 🅂 _."),
    ("( is=be that the man 's dog ?", "( _be 🅂", "_man 's 🅂 _dog", "_man 's _dog 🅂 _?"),
    (
        "He says=say he likes=like the red and blue ball .",
        "_say 🅂 _he _like 🅂",
        "_red 🅂 _and _blue 🅂 _ball",
        "_red 🅂 _and _blue 🅂 _ball",
    ),
    ("He likes=like — it — a lot .", "_like 🅂", "_a 🅂 _lot", "_a 🅂 _lot"),
    ("it ’s=be Mary ’s big ball .", "it _be 🅂 _Mary", "_Mary _\ufffd \ufffd s 🅂", "_ball 🅂"),
    (
        "He eats=eat a red apple , -- and so on .",
        "_eat 🅂 _a",
        "_, 🅂 _--",
        "_, _-- _and 🅂 _so",
    ),
    ("is=be n't it 's", None, None, None),
    (
        "I am here , ca n't you see ?",
        "I _am _here _, _can 't _you _see _?",
        "I _am _here _, _can 't _you _see _?",
        "I _am _here _, _can 't _you _see _?",
    ),
]
TEXTS = st.sampled_from(
    [*plain_hop.CLITICS, *".,!$“—’", "--", "...", "’s", "he", "it", "ball", "bookshelf", "5"]
)
VERBS = st.tuples(
    TEXTS,
    st.sampled_from([None, "be", "clean", "have", "'s", "bookshelf"]),
    st.sampled_from(["Sing", "Plur"]),
)
WORDS = st.one_of(st.tuples(TEXTS), st.tuples(TEXTS), st.tuples(TEXTS), VERBS)
SENTENCES = st.lists(
    st.lists(WORDS.map(lambda w: plain_hop.Word(*w)), min_size=1, max_size=12),
    min_size=1,
    max_size=6,
)


@pytest.fixture(scope="module")
def encode(tmp_path_factory: pytest.TempPathFactory):  # noqa: ANN201
    folder = tmp_path_factory.mktemp("gpt2")
    write_transformers_files(folder, Tokenizer(), 1024)
    return plain.gpt2_tokenizer(folder).encode


def base_of(name: str, sentences: list[list[plain_hop.Word]]) -> Sentences:
    """Sentences with their verbs, before a language marks them."""
    feats = {"Sing": SINGULAR, "Plur": PLURAL, None: None}
    words = [[Word(w.text, w.lemma or w.text, feats[w.number]) for w in s] for s in sentences]
    return encoded(
        [annotated(of_one, None, "") for of_one in words], TOKENIZER, perturb.get(name).hops
    )


def apply(name: str, sentences: list[list[plain_hop.Word]]) -> list[list[int] | None]:
    """Sentences in a language; None for those that are dropped."""
    language, base = perturb.get(name), base_of(name, sentences)
    kept = language.apply(base, TOKENIZER.ids, np.random.default_rng(0))
    parts = iter(np.split(kept.tokens, kept.offsets[1:-1]))
    return [next(parts).tolist() if keep else None for keep in language.keeps(base)]


@pytest.mark.parametrize("row", WORKED, ids=[row[0] for row in WORKED])
def test_a_worked_example_is_as_published(row: tuple[str, ...]) -> None:
    words = []
    for word in row[0].split():
        text, _, lemma = word.partition("=")
        words.append(plain_hop.Word(text, lemma or None, "Sing" if lemma else None))
    for name, expected in zip(NAMES, row[1:], strict=True):
        (tokens,) = apply(name, [words])
        if expected is None:
            assert tokens is None
        else:
            pieces = [piece.replace(" ", "_") for piece in TOKENIZER.pieces(tokens)]
            assert f" {expected} " in f" {' '.join(pieces)} $ "


@pytest.mark.parametrize("name", NAMES)
@given(sentences=SENTENCES)
def test_a_language_is_the_published_one_token_for_token(name, encode, sentences) -> None:  # noqa: ANN001
    assert apply(name, sentences) == [plain_hop.perturb(name, s, encode) for s in sentences]


@settings(max_examples=30)
@given(SENTENCES)
def test_the_three_languages_keep_the_same_sentences_with_as_many_markers(sentences: list) -> None:
    found = [apply(name, sentences) for name in NAMES]
    for of_three in zip(*found, strict=True):
        markers = {tokens and tuple(sorted(t for t in tokens if t > 50256)) for tokens in of_three}
        assert len(markers) == 1


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=30)
@given(sentences=SENTENCES, data=st.data())
def test_annotated_sentences_may_be_split_into_calls_anywhere(name, sentences, data) -> None:  # noqa: ANN001
    cut = data.draw(st.integers(0, len(sentences)))
    parts = [apply(name, part) if part else [] for part in (sentences[:cut], sentences[cut:])]
    assert parts[0] + parts[1] == apply(name, sentences)


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=30)
@given(sentences=SENTENCES)
def test_undoing_a_hop_gives_the_sentence_with_lemmas(name: str, sentences: list) -> None:
    base = base_of(name, sentences)
    for i, tokens in enumerate(apply(name, sentences)):
        if tokens is not None:
            undone = perturb.get(name).undo(np.array(tokens), TOKENIZER.ids)
            assert undone.tolist() == base.part(i, i + 1).tokens.tolist()


def test_of_two_markers_at_one_place_the_one_of_the_left_verb_comes_first() -> None:
    words = [plain_hop.Word("that"), plain_hop.Word("'s", "'s", "Sing")]
    words.append(plain_hop.Word("are", "be", "Plur"))
    words += map(plain_hop.Word, ["my", "red", "ball", "now", "."])
    for tokens in apply("word_hop", [words] * 40):
        assert TOKENIZER.decode(tokens) == "that's be my red ball now🅂🄿 ."
