"""The *Hop languages on annotated sentences, and in a plain implementation of their rules."""

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

PUBLISHED = ("no_hop", "token_hop", "word_hop")
NAMES = (*PUBLISHED, "phrase_hop")
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
# One sentence a row, word=lemma/head/relation, and what PhraseHop makes of it, by hand.
PHRASES = {
    "the paper's": (
        "He/2/nsubj cleans=clean/0/root his/6/poss very/5/advmod messy/6/amod bookshelf/2/dobj "
        "./2/punct",
        "He clean his very messy bookshelf🅂 .",
    ),
    "fewer than four words after the verb": ("It/2/nsubj rains=rain/0/root ./2/punct", None),
    "the first of two dependents": (
        "It/2/nsubj rains=rain/0/root a/4/det lot/2/npadvmod in/2/prep here/5/pcomp ./2/punct",
        "It rain a lot🅂 in here .",
    ),
    "an auxiliary has no dependent": (
        "He/4/nsubj does=do/4/aux n't/4/neg like/0/root the/6/det taste/4/dobj ,/4/punct "
        "really/4/advmod ./4/punct",
        "He don't🅂 like the taste , really .",
    ),
    "a clitic of the verb is no phrase": (
        "It/2/nsubj is=be/0/root n't/2/neg a/6/det red/6/amod ball/2/attr now/2/advmod",
        "It ben't a red ball🅂 now",
    ),
    "a clitic belongs to the last word of a phrase": (
        "He/2/nsubj knows=know/0/root you/2/dobj 've/5/aux gone/2/ccomp to/5/prep it/6/pobj",
        "He know you've🅂 gone to it",
    ),
    "coordination within the phrase": (
        "She/2/nsubj sees=see/0/root cats/2/dobj and/3/cc big/6/amod dogs/3/conj today/2/npadvmod",
        "She see cats and big dogs🅂 today",
    ),
    "coordination with the verb": (
        "He/2/nsubj sings=sing/0/root and/2/cc dances/2/conj in/4/prep it/5/pobj now/4/advmod",
        "He sing🅂 and dances in it now",
    ),
    "a dependent after coordination": (
        "He/3/nsubj either/3/cc:preconj sings=sing/0/root or/3/cc:x hums/3/conj:x it/3/obj "
        "to/8/case me/3/obl",
        "He either sing or hums it🅂 to me",
    ),
    "two verbs, one within the other's phrase": (
        "He/2/nsubj says=say/0/root they/4/nsubj like=like/2/ccomp the/7/det red/7/amod "
        "ball/4/dobj with/4/prep me/8/pobj ./2/punct",
        "He say they like the red ball🄿 with me🅂 .",
    ),
    "punctuation around and at the end of the phrase": (
        "He/2/nsubj says=say/0/root ,/2/punct “/5/punct come/2/ccomp here/5/advmod "
        "!/5/punct ”/5/punct to/2/prep me/9/pobj",
        "He say , “ come here🅂 ! ” to me",
    ),
    "a symbol is a word": (
        "It/2/nsubj costs=cost/0/root five/4/nummod %/2/dobj more/2/advmod than/5/prep "
        "that/6/pobj it",
        "It cost five %🅂 more than that it",
    ),
    "a phrase with a gap ends with its last word": (
        "He/2/nsubj sees=see/0/root a/4/det man/2/dobj today/2/npadvmod with/4/prep "
        "it/6/pobj ./2/punct",
        "He see a man today with it🅂 .",
    ),
    "a subject after its verb": (
        "is=be/0/root the/3/det dog/1/nsubj in/1/prep the/6/det house/4/pobj ?/1/punct",
        "be the dog🅂 in the house ?",
    ),
}
TEXTS = st.sampled_from(
    [*plain_hop.CLITICS, *".,!$“—’", "--", "...", "’s", "he", "it", "ball", "bookshelf", "5"]
)
VERBS = st.tuples(
    TEXTS,
    st.sampled_from([None, "be", "clean", "have", "'s", "bookshelf"]),
    st.sampled_from(["Sing", "Plur"]),
)
WORDS = st.one_of(st.tuples(TEXTS), st.tuples(TEXTS), st.tuples(TEXTS), VERBS)
RELATIONS = st.sampled_from(["punct", "cc", "cc:preconj", "conj", "obj", "nsubj", "obl:tmod"])


@st.composite
def trees(draw: st.DrawFn) -> list[plain_hop.Word]:
    """A sentence whose words have heads: any tree, or several."""
    texts = draw(st.lists(WORDS, min_size=1, max_size=5))
    texts += draw(st.lists(st.tuples(TEXTS), min_size=draw(st.sampled_from([0, 5])), max_size=9))
    words = [plain_hop.Word(*text) for text in texts]
    order = draw(st.permutations(range(len(words))))
    for rank, i in enumerate(order):
        head = draw(st.sampled_from([0, *(above + 1 for above in order[:rank])]))
        words[i] = words[i]._replace(head=head, relation=draw(RELATIONS))
    return words


SENTENCES = st.lists(trees(), min_size=1, max_size=6)


@pytest.fixture(scope="module")
def encode(tmp_path_factory: pytest.TempPathFactory):  # noqa: ANN201
    folder = tmp_path_factory.mktemp("gpt2")
    write_transformers_files(folder, Tokenizer(), 1024)
    return plain.gpt2_tokenizer(folder).encode


def base_of(name: str, sentences: list[list[plain_hop.Word]]) -> Sentences:
    """Sentences with their verbs, before a language marks them."""
    feats = {"Sing": SINGULAR, "Plur": PLURAL, None: None}
    words = [
        [Word(w.text, w.lemma or w.text, feats[w.number], w.head, w.relation) for w in s]
        for s in sentences
    ]
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
    for name, expected in zip(PUBLISHED, row[1:], strict=True):
        (tokens,) = apply(name, [words])
        if expected is None:
            assert tokens is None
        else:
            pieces = [piece.replace(" ", "_") for piece in TOKENIZER.pieces(tokens)]
            assert f" {expected} " in f" {' '.join(pieces)} $ "


@pytest.mark.parametrize(("sentence", "expected"), PHRASES.values(), ids=PHRASES)
def test_phrase_hop_is_what_was_worked_out_by_hand(
    sentence: str, expected: str | None, encode: plain_hop.Encode
) -> None:
    words = []
    for word in sentence.split():
        text, head, relation = (word.split("/") + ["0", "root"])[:3]
        text, _, lemma = text.partition("=")
        number = {"": None, "like": "Plur"}.get(lemma, "Sing")
        words.append(plain_hop.Word(text, lemma or None, number, int(head), relation))
    (tokens,) = apply("phrase_hop", [words])
    assert tokens == plain_hop.perturb("phrase_hop", words, encode)

    assert (TOKENIZER.decode(tokens) if tokens else None) == expected


@given(sentences=SENTENCES)
def test_languages_are_the_published_ones_token_for_token(encode, sentences) -> None:  # noqa: ANN001
    for name in NAMES:
        assert apply(name, sentences) == [plain_hop.perturb(name, s, encode) for s in sentences]


@settings(max_examples=50)
@given(sentences=SENTENCES, data=st.data())
def test_sentences_and_their_markers_are_kept_in_all_languages_calls_and_ways_back(
    sentences: list, data: st.DataObject
) -> None:
    cut, markers = data.draw(st.integers(0, len(sentences))), []
    for name in NAMES:
        hopped, base = apply(name, sentences), base_of(name, sentences)
        parts = [apply(name, part) if part else [] for part in (sentences[:cut], sentences[cut:])]
        assert parts[0] + parts[1] == hopped, "they may be split into calls anywhere"
        markers.append([tokens and sorted(t for t in tokens if t > 50256) for tokens in hopped])
        for i, tokens in enumerate(hopped):
            if tokens is not None:
                undone = perturb.get(name).undo(np.array(tokens), TOKENIZER.ids)
                assert undone.tolist() == base.part(i, i + 1).tokens.tolist()
    assert markers == markers[:1] * len(NAMES)


def test_of_two_markers_at_one_place_the_one_of_the_left_verb_comes_first() -> None:
    words = [plain_hop.Word("that"), plain_hop.Word("'s", "'s", "Sing")]
    words.append(plain_hop.Word("are", "be", "Plur"))
    words += map(plain_hop.Word, ["my", "red", "ball", "now", "."])
    for tokens in apply("word_hop", [words] * 40):
        assert TOKENIZER.decode(tokens) == "that's be my red ball now🅂🄿 ."
