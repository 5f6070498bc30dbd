"""Sentences of one's own: where tokens, words and regions go, and what surprisal they get."""

import functools
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import transformers
from conftest import ROOT, succeed
from documented import require_explained

import perturb
from impossible.evaluation import stimuli
from impossible.evaluation.models import Series
from impossible.evaluation.rows import Region, Stimulus
from impossible.settings import Settings, UserError
from impossible.text.arrays import Sentences, from_lengths
from impossible.text.tokenizer import Tokenizer

GPT2 = Series("", "", "", "", [])  # models with its tokenizer
TEXT = "He cleans his very messy bookshelf."


tokenizer_of = functools.cache(Tokenizer)


def prepared(items: list[Stimulus], language: str) -> list[stimuli.Prepared]:
    return stimuli.prepared(items, language, tokenizer_of(perturb.get(language).markers))


def pieces(made: stimuli.Prepared, markers: str) -> list[str]:
    return [piece.strip() for piece in tokenizer_of(tuple(markers)).pieces(made.tokens)]


def name_of(path: Path) -> str:
    """The name of the folder for results on these stimuli."""
    return stimuli.source(Settings(stimuli=str(path))).name


def regions(*texts: str) -> tuple[Region, ...]:
    return tuple(Region("region", text) for text in texts)


def region(made: stimuli.Prepared, markers: str) -> list[str]:
    return [p for p, number in zip(pieces(made, markers), made.region, strict=True) if number >= 0]


def test_the_marker_comes_after_so_many_words_and_regions_move_with_their_words() -> None:
    stimulus = Stimulus("1", "a", TEXT, marker_place=2, regions=regions("his very"))
    (made,) = prepared([stimulus], "partial_reverse")
    assert " ".join(pieces(made, "🅁")) == "He cleans 🅁 . lf he books messy very his"
    assert made.spelled == ["He", "cleans", "his", "very", "messy", "bookshelf."]
    assert made.words.tolist() == [0, 1, -1, 5, 5, 5, 5, 4, 3, 2]
    assert region(made, "🅁") == ["very", "his"]


def test_whole_words_move_with_their_regions_and_the_marker_comes_after_so_many() -> None:
    stimulus = Stimulus("1", "a", TEXT, marker_place=2, regions=regions("bookshelf."))
    (made,) = prepared([stimulus], "partial_reverse_words")
    assert " ".join(pieces(made, "🅁")) == "He cleans 🅁 books he lf . messy very his"
    assert Tokenizer("🅁").decode(made.tokens) == " He cleans🅁 bookshelf. messy very his"
    assert made.words.tolist() == [0, 1, -1, 5, 5, 5, 5, 4, 3, 2]
    assert made.marker_place == 2
    assert region(made, "🅁") == ["books", "he", "lf", "."]
    as_it_is = stimulus._replace(perturbed="He cleans 🅁 bookshelf. messy very his")
    (read,) = prepared([as_it_is], "partial_reverse_words")
    assert read.tokens.tolist() == made.tokens.tolist()
    with pytest.raises(UserError, match="no space at the beginning of a sentence, or after"):
        torn = as_it_is._replace(perturbed="He 🅁cleans", regions=())
        prepared([torn], "partial_reverse_words")


@pytest.mark.parametrize("language", ["nondeterministic_shuffle_words", "full_reverse_words"])
def test_words_whose_tokens_occur_twice_are_followed_where_words_move(language: str) -> None:
    text = "The bookshelf sees the bookshelf that the bookshelf sees, bookshelf by bookshelf."
    items = [Stimulus(str(i), "a", text) for i in range(20)]
    places = set()
    for made in prepared(items, language):
        spelled = Tokenizer("🅁").decode(made.tokens).replace("🅁", " 🅁").split()
        places.add(made.marker_place)
        runs = made.words[np.append(True, np.diff(made.words) != 0)].tolist()
        assert sorted({*runs} - {-1}) == list(range(len(made.spelled))), "no word is torn"
        assert [made.spelled[word] if word >= 0 else "🅁" for word in runs] == spelled
    assert language != "full_reverse_words" or len(places) > 5


def test_conditions_of_an_item_have_the_same_draw() -> None:
    texts = ("The dog that I saw runs home.", "The dog that I saw ran home.", "The dog runs.")
    items = [Stimulus(str(i), c, t) for i in range(30) for c, t in zip("abc", texts, strict=True)]
    made = prepared(items, "partial_reverse")
    places = np.array([np.flatnonzero(x.tokens == 50257)[0] for x in made]).reshape(-1, 3)
    assert (places == places[:, :1]).all()
    assert set(places[:, 0]) == set(range(5)), "within the shortest of an item"
    shuffled = prepared(items, "nondeterministic_shuffle")
    orders = [tuple(x.words) for x in shuffled]
    assert orders[::3] == orders[1::3], "of one length"
    assert len(set(orders[::3])) > 20, "each item in another order"


def test_a_perturbed_string_is_read_as_it_is() -> None:
    perturbed = "He cleans 🅁 his messy"
    stimulus = Stimulus("1", "a", TEXT, perturbed=perturbed, regions=regions("messy"))
    (made,) = prepared([stimulus], "partial_reverse")
    assert pieces(made, "🅁") == ["He", "cleans", "🅁", "his", "messy"]
    assert region(made, "🅁") == ["messy"]
    assert made.words.tolist() == [0, 1, -1, 2, 3]
    assert made.spelled == ["He", "cleans", "his", "messy"]
    twice = Stimulus("1", "a", "x", perturbed="I 🅂 a 🄿 . é dog", regions=regions("é dog"))
    (made,) = prepared([twice], "no_hop")
    assert made.words.tolist()[:6] == [0, -1, 1, -1, 2, 3]
    assert region(made, "🅂🄿") == ["é", "dog"]
    (made,) = prepared([twice._replace(regions=regions("a 🄿"))], "no_hop")
    assert region(made, "🅂🄿") == ["a", "🄿"]


def test_a_hop_language_marks_the_verbs_of_stimuli() -> None:
    (made,) = prepared([Stimulus("1", "a", TEXT, regions=regions("cleans"))], "token_hop")
    assert " ".join(pieces(made, "🅂🄿")) == "He clean his very messy books 🅂 he lf ."
    assert made.words.tolist() == [0, 1, 2, 3, 4, 5, -1, 5, 5, 5], "of the original text"
    assert made.spelled == TEXT.split()
    assert region(made, "🅂🄿") == ["clean"]


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_surprisals_are_those_of_transformers(suffix: str, trained: Path, tmp_path: Path) -> None:
    rows = pd.DataFrame(
        {
            "item": [1, 1, 2],
            "condition": ["good", "bad", "good"],
            "text": [TEXT, "He clean his very messy bookshelf.", "It rains."],
            "marker_place": ["2", "2.0", ""],
            "region": ["his very", "his very", ""],
        }
    )
    path = tmp_path / f"mine.{suffix}"
    if suffix == "csv":
        rows.to_csv(path, index=False)
    else:
        rows.to_json(path, orient="records", lines=True)
    out_dir = shutil.copytree(trained, tmp_path / "out")
    succeed("convert_to_hf.py", f"--out_dir={out_dir}")
    succeed("eval.py", f"--out_dir={out_dir}", f"--stimuli={path}")
    (place,) = out_dir.glob("evaluation/stimuli_mine-*/stimuli.csv")
    assert require_explained(place.parent) == {"stimuli.csv"}
    table = pd.read_csv(place)
    assert table.step.unique().tolist() == [3, 6]
    for step in (3, 6):
        model = transformers.GPT2LMHeadModel.from_pretrained(
            out_dir / "hf" / f"checkpoint-{step}"
        ).eval()
        of_step = table[(table.step == step) & (table["item"] == 1) & (table.condition == "good")]
        assert of_step.perturbed.unique().tolist() == ["He cleans🅁.lfhe books messy very his"]
        tokens = of_step[of_step.unit == "token"]
        encode = Tokenizer(("🅁",)).encode_ordinary
        ids = encode(TEXT)
        ids = [50256, *ids[:2], 50257, *ids[2:][::-1]]
        with torch.no_grad():
            logits = model(torch.tensor([ids])).logits[0].double().log_softmax(-1) / -np.log(2)
        expected = [logits[i, token].item() for i, token in enumerate(ids[1:])]
        np.testing.assert_allclose(tokens.surprisal, expected, rtol=1e-4)
        words = of_step[of_step.unit == "word"].set_index("word_index")
        assert words.unit_text.tolist() == TEXT.split()
        assert words.loc[6].surprisal == pytest.approx(sum(expected[3:7]), rel=1e-4)
        (of_region,) = of_step[of_step.unit == "region"].surprisal
        assert of_region == pytest.approx(sum(expected[-2:]), rel=1e-4)
        (of_marker,) = of_step[of_step.unit == "marker"].surprisal
        assert of_marker == pytest.approx(expected[2], rel=1e-4)
    assert (table[table.unit == "region"]["item"] == 1).all()


HIS, VERY, MESSY, THE = (
    Tokenizer().encode_ordinary(word)[0] for word in (" his", " very", " messy", " the")
)


def reversed_with(s: Sentences, markers: list[int], rng: object, *, token: int) -> Sentences:
    """Only a sentence with that token is reversed."""
    return s._replace(tokens=s.tokens[::-1] if token in s.tokens else s.tokens)


def marked_after(s: Sentences, markers: list[int], rng: object, *, token: int) -> Sentences:
    """A marker after each such token; the id of the marker is written out."""
    places = np.flatnonzero(s.tokens == token) + 1
    tokens = np.insert(s.tokens, places, 50257)
    return from_lengths(tokens, np.array([len(tokens)]))


def marked_anywhere(
    s: Sentences, markers: list[int], rng: np.random.Generator, *, token: int
) -> Sentences:
    """A marker at a place that is drawn in another way, and the rest shuffled."""
    place = int(rng.random() * len(s.tokens))
    tokens = np.insert(s.tokens[rng.permutation(len(s.tokens))], place, markers[0])
    return from_lengths(tokens, np.array([len(tokens)]))


def doubled(s: Sentences, markers: list[int], rng: object, *, token: int) -> Sentences:
    """A table of tokens says which are said twice."""
    table = {HIS: 2, VERY: 1}
    counts = np.array([table.get(t, 1) if token else table[t] for t in s.tokens.tolist()])
    tokens = np.repeat(s.tokens, counts)
    return from_lengths(tokens, np.array([len(tokens)]))


def replaced(s: Sentences, *_: object, token: int) -> Sentences:
    """That token becomes another one, or each becomes the next one."""
    last = np.where(s.tokens == MESSY, token, s.tokens)
    return s._replace(tokens=last if token else s.tokens + 1)


def replaced_in_reverse(s: Sentences, *_: object, token: int) -> Sentences:
    """The same, backwards."""
    return s._replace(tokens=replaced(s, token=token).tokens[::-1])


def left_out(s: Sentences, *_: object, token: int) -> Sentences:
    """Without that token."""
    tokens = s.tokens[s.tokens != token]
    return from_lengths(tokens, np.array([len(tokens)]))


def own(
    patch: pytest.MonkeyPatch, function: Callable[..., Sentences], token: int, *markers: str
) -> None:
    """Make `own` a language."""
    rule = perturb.Language("Own", functools.partial(function, token=token), "", markers)
    patch.setitem(perturb.LANGUAGES, "own", rule)


def test_a_language_of_ones_own_gets_the_real_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    stimulus = Stimulus("1", "a", TEXT, regions=regions("his very"))
    own(monkeypatch, reversed_with, VERY)
    (made,) = prepared([stimulus], "own")
    assert pieces(made, "") == [".", "lf", "he", "books", "messy", "very", "his", "cleans", "He"]
    assert made.words.tolist() == [5, 5, 5, 5, 4, 3, 2, 1, 0]
    assert region(made, "") == ["very", "his"]
    assert made.marker_place is None
    (made,) = prepared([stimulus._replace(text="He sees his dog.", regions=())], "own")
    assert pieces(made, "") == ["He", "sees", "his", "dog", "."]
    own(monkeypatch, doubled, 1)
    (made,) = prepared([stimulus], "own")
    assert made.words.tolist() == [0, 1, 2, 2, 3, 4, 5, 5, 5, 5]


@pytest.mark.parametrize("token", [THE, 0])
def test_a_token_that_replaces_another_one_has_its_place(
    token: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    own(monkeypatch, replaced, token)
    (made,) = prepared([Stimulus("1", "a", TEXT, regions=regions("messy"))], "own")
    assert made.words.tolist() == [0, 1, 2, 3, 4, 5, 5, 5, 5]
    assert made.region.tolist() == [0 if place == 4 else -1 for place in range(9)]
    original = np.array(Tokenizer().encode_ordinary(TEXT))
    expected = np.where(original == MESSY, token, original) if token else original + 1
    assert made.tokens.tolist() == expected.tolist()
    assert list(stimuli.notes_on([made], perturb.get("own"))) == []
    own(monkeypatch, replaced_in_reverse, THE)
    (backwards,) = prepared([Stimulus("1", "a", TEXT)], "own")
    assert backwards.words.tolist() == made.words[::-1].tolist()


def test_words_and_regions_that_a_language_leaves_out_are_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    own(monkeypatch, left_out, MESSY)
    items = [Stimulus("1", c, TEXT, regions=regions(r)) for c, r in (("a", "messy"), ("b", "very"))]
    made = prepared(items, "own")
    (note,) = stimuli.notes_on(made, perturb.get("own"))
    assert note.startswith("warning: 2 words and 1 regions have no token in Own")


TWICE = Stimulus("1", "a", "I saw the very dog and the cat", regions=regions("dog"))


def last_first(s: Sentences, *_: object, token: int) -> Sentences:
    """That token comes last, wherever it is."""
    return s._replace(tokens=s.tokens[np.argsort(s.tokens == token, kind="stable")])


def test_words_that_occur_twice_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    for token in (VERY, THE):
        own(monkeypatch, reversed_with, token)
        (made,) = prepared([TWICE], "own")
        assert made.words.tolist() == [7, 6, 5, 4, 3, 2, 1, 0]
    own(monkeypatch, last_first, THE)
    with pytest.raises(UserError, match=r"Own depends on the tokens, .* into the column perturbed"):
        prepared([TWICE], "own")


def test_a_language_of_ones_own_inserts_its_own_marker(monkeypatch: pytest.MonkeyPatch) -> None:
    own(monkeypatch, marked_after, THE, "🅇")
    (made,) = prepared([TWICE], "own")
    assert " ".join(pieces(made, "🅇")) == "I saw the 🅇 very dog and the 🅇 cat"
    assert made.words.tolist() == [0, 1, 2, -1, 3, 4, 5, 6, -1, 7]
    assert made.is_marker.tolist() == [i in (3, 8) for i in range(10)]
    assert made.marker_place == 3
    own(monkeypatch, marked_anywhere, THE, "🅇")
    texts = ("I saw the very dog and the cat", "I saw the very dog and the cat and", "I saw it")
    items = [Stimulus("1", c, text) for c, text in zip("abc", texts, strict=True)]
    made = prepared(items, "own")
    for x, stimulus in zip(made, items, strict=True):
        assert sorted(x.words) == [-1, *range(len(stimulus.text.split()))]
        assert x.marker_place == x.words.tolist().index(-1)
    (again,) = prepared([items[0]._replace(condition="b")], "own")
    assert again.tokens.tolist() == made[0].tokens.tolist()


def test_the_table_says_where_the_marker_stands_and_on_which_side_of_a_region() -> None:
    conditions = [
        Stimulus("1", "a", "She saw him.", 1, regions=regions("him")),
        Stimulus("1", "b", "She saw him.", 3, regions=regions("him")),
        Stimulus("2", "a", "He saw her.", 2, regions=regions("saw")),
        Stimulus("2", "b", "The man saw her.", 3, regions=regions("saw")),
    ]
    for language, places in (("partial_reverse", [1, 3, 2, 3]), ("full_reverse", [1, 3, 2, 3])):
        made = prepared(conditions, language)
        assert [x.marker_place for x in made] == places
        (note,) = stimuli.notes_on(made, perturb.get(language))
        assert note.startswith("warning: in 1 of 2 items (1), the marker stands")
    made = prepared(conditions, "even_odd_shuffle")
    assert [x.marker_place for x in made] == [None] * 4
    (note,) = stimuli.notes_on(made, perturb.get("even_odd_shuffle"))
    assert note == "marker_place is not used in EvenOddShuffle"
    drawn = [s._replace(item=str(i), marker_place=None) for i in range(20) for s in conditions[:2]]
    for x in prepared(drawn, "no_reverse"):
        assert x.marker_place == len(set(x.words[: x.is_marker.argmax()]))


def test_regions_are_whole_words_with_names_and_occurrences(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text(
        "item,condition,text,region,occurrence,region_Late,occurrence_Late\n"
        "1,a,This is the dog that the is-cat saw.,is,1,the,2\n"
        "1,b,This was all.,,,was,\n",
        encoding="utf-8",
    )
    first, second = stimuli.read(path)
    assert first.regions == (Region("region", "is", 1), Region("Late", "the", 2))
    assert second.regions == (Region("Late", "was", None),)
    (made,) = prepared([first], "no_shuffle")
    assert made.region.tolist() == [-1, 0, -1, -1, -1, 1, *[-1] * (len(made.tokens) - 6)]
    settings = Settings(language="no_shuffle", stimuli=str(path))
    units = stimuli.sequences(settings, GPT2).columns.query("condition == 'a' and region != ''")
    of_regions = units[units["unit"] == "region"][["region", "unit_text"]]
    assert of_regions.to_numpy().tolist() == [["region", "is"], ["Late", "the"]]
    of_words = units[units["unit"] == "word"][["word_index", "region"]]
    assert of_words.to_numpy().tolist() == [[2, "region"], [6, "Late"]]
    for texts, message in (
        (("is", "is the"), "regions overlap at"),
        (("hi",), "occurs 0 times as whole words"),
        (("the",), "occurs 2 times .* Expected 1 to 2 in the column occurrence; found none"),
    ):
        with pytest.raises(UserError, match=message):
            stimulus = first._replace(text="It is the dog, the big one.", regions=regions(*texts))
            prepared([stimulus], "no_shuffle")


@pytest.mark.parametrize(
    ("text", "region", "count"),
    [
        ("He can't, but she can.", "can", 1),
        ("He can’t.", "can", 0),
        ("A well-known 'well' is well.", "well", 2),
        ("A well-known thing.", "known", 0),
        ("The dog's here.", "dog's", 1),
        ("The dog's here.", "'s", 1),
        ("So-called it is.", "is", 1),
        ("किताबें नई हैं।", "किताब", 0),
        ("我们去公园吧。", "公园", 1),
    ],
)
def test_a_region_is_no_part_of_a_word(text: str, region: str, count: int) -> None:
    stimulus = Stimulus("1", "a", text, regions=(Region("spill", region, 9),))
    occurs = rf"'?{region}'?\"? occurs {count} times as whole words in"
    column = r".* Expected 1 to \d in the column occurrence_spill; found occurrence_spill = 9\."
    with pytest.raises(UserError, match=occurs + (column if count else r".*\.'?$")):
        prepared([stimulus], "no_shuffle")


def test_a_region_of_a_perturbed_string_may_be_part_of_a_word() -> None:
    stimulus = Stimulus("1", "a", "x", perturbed="this is he", regions=regions("is"))
    with pytest.raises(UserError, match=r"occurs 2 times in 'this is he'\. Expected 1 to 2 in the"):
        prepared([stimulus], "no_shuffle")


ROWS = [Stimulus("1", "a", "He left early.", regions=regions("early"))]


@pytest.mark.parametrize(
    "text",
    [
        "item,condition,text,region\n1,a,He left early.,early\n",
        "\ufeffitem;condition;text;region\n1;a;He left early.;early\n",
        "item\tcondition\ttext\tregion\n1\ta\tHe left early.\tearly\n",
        "\ufeffsep=,\r\nitem,condition,text,region\r\n1,a,He left early.,early\r\n",
        "sep=;\nitem;condition;text;region\n1.0;a;He left early.;early\n",
        "\n;;;\nitem;condition;text;region\n1;a;He left early.;early\n",
        "Item, Condition ,TEXT,Region,,\n1,a,He left early.,early,,\n,,,,,\n",
        "item,condition,text,region\n1,a,He  left\u00a0early.,early\n",
        'item,condition,text,region\n1,a,"He left\n\tearly.",early\n',
        '{"item": 1, "condition": "a", "text": "He left early.", "region": "early"}',
        '{"item": 1.0, "condition": "a", "text": "He left early.", "region": "early", '
        '"marker_place": NaN, "perturbed": null}\n',
    ],
)
def test_files_of_spreadsheets_and_programs_are_read_alike(text: str, tmp_path: Path) -> None:
    path = tmp_path / "x.CSV"
    path.write_bytes(text.encode())
    assert [s._replace(where="") for s in stimuli.read(path)] == ROWS


def test_replaced_white_space_is_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "x.csv"
    path.write_text("item,condition,text\n1,a,A b.\n1,b,A\tb.\n1,c,A  b.\n", encoding="utf-8")
    assert {s.text for s in stimuli.read(path)} == {"A b."}
    assert "x.csv, row 3: each tab, line break" in (out := capsys.readouterr().out)
    assert "(2 texts in all)" in out


def test_a_perturbed_string_may_begin_with_a_space(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text("item,condition,text,perturbed\n1,a,A b., b🅁A\n", encoding="utf-8")
    (made,) = prepared(stimuli.read(path), "full_reverse")
    assert Tokenizer(("🅁",)).decode(made.tokens) == " b🅁A"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("item,text\n1,A b.\n", "x.csv has no column condition"),
        ("item,condition,text\n1,a,He says, yes.\n", "A text with a comma needs quotation marks"),
        ("item,condition,text\n1,a\n", "row 2 has more or fewer values"),
        ("item,condition,text\n,a,A b.\n", "row 2: item is empty"),
        ("item,condition,text,region\n1,a,A bookshelf.,book\n", "occurs 0 times as whole words"),
        ("item,condition,text,region\n1,a,A b..,b.\n", "begins or ends within a token"),
        ("item,condition,text,perturbed\n1,a,A b.,A 🅂 b\n", "🅂 is not a marker of NoReverse"),
        ("item,condition,text\n", "holds no stimulus"),
        ("item,condition,text\n1,a,\n", "row 2: text is empty"),
        ("item,condition,text,marker_place\n1,a,A b.,x\n", "row 2: marker_place = 'x'"),
        ("item,condition,text,marker_place\n1,a,A b.,3\n", "marker_place = 3. Expected 0 to 2"),
        ('item,condition,text\n1,a,"A\n', "cannot be read"),
        ("item,condition,text,regoin\n1,a,A b.,b\n", "'regoin'. Did you mean region"),
        ("item,condition,text\n1,a,A b.\n1,a,A c.\n", "row 3 repeats item 1, condition a"),
        (
            "item,condition,text,marker_place\n1,a,A b.,1\n1,b,A c.,\n",
            "a marker_place in some conditions only",
        ),
        ("item,condition,text,perturbed\n1,a,A b.,b A\n", "has 0 markers"),
        ('{"item": 1, "condition": true, "text": "A."}', "row 1: condition = true. Expected a"),
        ('{"item": 1, "condition": "a", "text": ["A", "b"]}', r'row 1: text = \["A", "b"\]'),
        ('{"item": 1, "condition": "a", "text": "A.", "text": "B."}', "line 1 has 'text' 2 times"),
        ('{"item": 1, "condition": "a", "text": "A."}\n[]', "line 2 is not a JSON object"),
        ("item,condition,text,text\n1,a,A.,B.\n", "row 1 has 'text' 2 times"),
        ("item,condition,text,region,Region\n1,a,A.,A,A\n", "Name further regions region_NAME"),
        ("item;condition;text\n1;a;A;b.\n", "A text with a semicolon needs quotation marks"),
        ("item,condition,text\n1,a,A\u200b b.\n", r"row 2: character 2 of text .*U\+200B \(zero"),
        ("item,condition,text\n1,a,A.\n1.0,a,B.\n", "row 3 repeats item 1, condition a"),
        ("item,condition,text,region_a,occurrence\n1,a,A.,A,1\n", "'occurrence' without a column"),
        ("item,condition,text,region,occurrence_a\n1,a,A.,A,1\n", "without a column 'region_a'"),
        (
            'item,condition,text\n1,a,A.\n2,a,"He said "no" twice."\n',
            'line 3 cannot be read .*double those within it: "He said ""no""."',
        ),
        ("\n\nitem,condition,text\n1,a\n", "row 4 has more or fewer values"),
        ("item,condition,text,region,occurrence\n1,a,A.,A,x\n", "occurrence = 'x'. Expected"),
        ("item,condition,text,region,occurrence\n1,a,A.,,1\n", "occurrence = '1'. Expected"),
        ("item,condition,text,region,occurrence\n1,a,A.,A,2\n", "occurs 1 times as whole words"),
    ],
)
def test_what_is_not_clear_in_a_file_is_refused(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=message):
        stimuli.sequences(Settings(language="no_reverse", stimuli=str(path)), GPT2)
    with pytest.raises(UserError, match=r"is not a file. Expected csv or jsonl"):
        stimuli.source(Settings(stimuli=str(tmp_path / "none.csv")))


def test_results_on_different_sentences_never_meet_and_no_condition_is_lost(
    trained: Path, tmp_path: Path
) -> None:
    out_dir = shutil.copytree(trained, tmp_path / "out")
    names = []
    for folder, conditions in (("a", "null,overt"), ("b", "null,NA"), ("b", "NA,None")):
        path = tmp_path / folder / "mine.csv"
        path.parent.mkdir(exist_ok=True)
        rows = [f"1,{condition},He left early.,2,left" for condition in conditions.split(",")]
        header = "item,condition,text,marker_place,region\n"
        path.write_text(header + "\n".join(rows) + "\n", encoding="utf-8")
        succeed("eval.py", f"--out_dir={out_dir}", f"--stimuli={path}", "--revisions=6")
        names.append(name_of(path))
    same = Path(shutil.copy(path, tmp_path / "mine.csv"))
    assert name_of(same) == names[2]
    places = {p.parent.name: p for p in (out_dir / "evaluation").glob("*/stimuli.csv")}
    assert len(places.keys() & set(names)) == 3
    page = (ROOT / "docs" / "evaluation.md").read_text(encoding="utf-8")
    (snippet,) = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    for name, conditions in zip(names[::2], (["null", "overt"], ["NA", "None"]), strict=True):
        code = re.sub(r'"out/[^"]*"', repr(str(places[name])), snippet)
        namespace: dict[str, object] = {}
        exec(code.replace("d.pivot_table", "wide = d.pivot_table"), namespace)
        assert [condition for _, condition in namespace["wide"].columns] == conditions
        table = pd.read_csv(places[name], keep_default_na=False, dtype=str)
        assert set(table.marker_place) == {"2"}
        assert set(table.position) == {"", "1", "2", "3", "4", "5"}
        assert set(table.region) == {"", "region"}
