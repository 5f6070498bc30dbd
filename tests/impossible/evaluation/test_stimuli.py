"""Sentences of one's own: where tokens, words and regions go, and what surprisal they get."""

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import transformers
from conftest import fail, succeed

from impossible.errors import UserError
from impossible.evaluation import stimuli
from impossible.evaluation.stimulus_files import Region, Stimulus
from impossible.text.tokenizer import Tokenizer

TEXT = "He cleans his very messy bookshelf."


def pieces(made: stimuli.Prepared, markers: str) -> list[str]:
    return [piece.strip() for piece in Tokenizer(tuple(markers)).pieces(made.tokens)]


def regions(*texts: str) -> tuple[Region, ...]:
    return tuple(Region("region", text) for text in texts)


def region(made: stimuli.Prepared, markers: str) -> list[str]:
    return [p for p, number in zip(pieces(made, markers), made.region, strict=True) if number >= 0]


def test_the_marker_comes_after_so_many_words_and_regions_move_with_their_words() -> None:
    stimulus = Stimulus("1", "a", TEXT, marker_place=2, regions=regions("his very"))
    (made,) = stimuli.prepared([stimulus], "partial_reverse")
    assert " ".join(pieces(made, "🅁")) == "He cleans 🅁 . lf he books messy very his"
    assert made.spelled == ["He", "cleans", "his", "very", "messy", "bookshelf."]
    assert made.words.tolist() == [0, 1, -1, 5, 5, 5, 5, 4, 3, 2]
    assert region(made, "🅁") == ["very", "his"]


def test_conditions_of_an_item_have_the_same_draw() -> None:
    texts = ("The dog that I saw runs home.", "The dog that I saw ran home.", "The dog runs.")
    items = [Stimulus(str(i), c, t) for i in range(30) for c, t in zip("abc", texts, strict=True)]
    made = stimuli.prepared(items, "partial_reverse")
    places = np.array([np.flatnonzero(x.tokens == 50257)[0] for x in made]).reshape(-1, 3)
    assert (places == places[:, :1]).all()
    assert set(places[:, 0]) == set(range(5)), "within the shortest of an item"
    shuffled = stimuli.prepared(items, "nondeterministic_shuffle")
    orders = [tuple(x.words) for x in shuffled]
    assert orders[::3] == orders[1::3], "of one length"
    assert len(set(orders[::3])) > 20, "each item in another order"


def test_a_perturbed_string_is_read_as_it_is() -> None:
    perturbed = "He cleans 🅁 his messy"
    stimulus = Stimulus("1", "a", TEXT, perturbed=perturbed, regions=regions("messy"))
    (made,) = stimuli.prepared([stimulus], "partial_reverse")
    assert pieces(made, "🅁") == ["He", "cleans", "🅁", "his", "messy"]
    assert region(made, "🅁") == ["messy"]
    assert made.words.tolist() == [0, 1, -1, 2, 3]
    assert made.spelled == ["He", "cleans", "his", "messy"]
    twice = Stimulus("1", "a", "x", perturbed="I 🅂 a 🄿 . é dog", regions=regions("é dog"))
    (made,) = stimuli.prepared([twice], "no_hop")
    assert made.words.tolist()[:6] == [0, -1, 1, -1, 2, 3]
    assert region(made, "🅂🄿") == ["é", "dog"]
    (made,) = stimuli.prepared([twice._replace(regions=regions("a 🄿"))], "no_hop")
    assert region(made, "🅂🄿") == ["a", "🄿"]


def test_a_hop_language_marks_the_verbs_of_stimuli() -> None:
    (made,) = stimuli.prepared([Stimulus("1", "a", TEXT, regions=regions("cleans"))], "token_hop")
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
    options = (f"--stimuli={path}", f"--results_dir={tmp_path / 'results'}")
    succeed("evaluate.py", f"--out_dir={out_dir}", *options)
    (place,) = (tmp_path / "results").glob("*/stimuli_mine-*/stimuli.csv")
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


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("item,text\n1,A b.\n", "x.csv has no column condition"),
        ("item,condition,text\n1,a,He says, yes.\n", "A text with a comma needs quotation marks"),
        ("item,condition,text\n1,a\n", "row 2 has more or fewer values"),
        ("item,condition,text\n,a,A b.\n", "row 2: item is empty"),
        ("item,condition,text,region\n1,a,A bookshelf.,book\n", "occurs 0 times as whole words"),
        ("item,condition,text,region\n1,a,A b..,b.\n", "begins or ends within a token"),
        ("item,condition,text,perturbed\n1,a,A b.,A 🅂 b\n", "🅂 is no marker of NoReverse"),
        ("item,condition,text\n", "holds no stimulus"),
        ("item,condition,text\n1,a,\n", "row 2: text is empty"),
        ("item,condition,text,marker_place\n1,a,A b.,x\n", "row 2: marker_place = 'x'"),
        ("item,condition,text,marker_place\n1,a,A b.,3\n", "marker_place = 3. Expected 0 to 2"),
        ("item,condition,text,region\n1,a,A b.,c\n", "the region 'c' occurs 0 times"),
        ("item,condition,text,region\n1,a,A b b.,b\n", "the region 'b' occurs 2 times"),
        ('item,condition,text\n1,a,"A\n', "cannot be read"),
        ("item,condition,text,regoin\n1,a,A b.,b\n", "'regoin'. Did you mean region"),
        ("item,condition,text\n1,a,A b.\n1,a,A c.\n", "row 3 repeats item 1, condition a"),
        (
            "item,condition,text,marker_place\n1,a,A b.,1\n1,b,A c.,\n",
            "a marker_place in some conditions only",
        ),
        ("item,condition,text,perturbed\n1,a,A b.,b A\n", "has 0 markers"),
    ],
)
def test_what_is_no_stimulus_is_told(text: str, told: str, trained: Path, tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=told):
        stimuli.prepared(stimuli.read(tmp_path / "x.csv"), "no_reverse")
    error = fail("evaluate.py", f"--out_dir={trained}", f"--stimuli={tmp_path / 'none.csv'}")
    assert "is no file. Expected a csv or jsonl file" in error
