"""A tokenizer of one's own, from its text to an export."""

import json
import random
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tokenizers
import torch
import transformers
from conftest import fail, succeed, write_config
from tokenizers import decoders, pre_tokenizers

from impossible.evaluation import plots
from impossible.text.token_files import TOKENIZER
from impossible.text.tokenizer import Tokenizer

SIZE = 400
OPTIONS = ("--tokenizer=train", f"--vocab_size={SIZE}", "--segmenter=line")


def write_corpus(folder: Path, seed: int = 0) -> Path:
    """Three files of lines of made-up words in letters that English lacks."""
    rng = random.Random(seed)
    words = ["".join(rng.choices("çğışöüaeklmnrt", k=rng.randint(2, 8))) for _ in range(300)]
    folder.mkdir(parents=True)
    for split, count in {"train": 400, "val": 40, "test": 40}.items():
        lines = (" ".join(rng.choices(words, k=rng.randint(3, 9))) + "." for _ in range(count))
        (folder / f"{split}.txt").write_text("\n".join(lines), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a corpus, and with two languages of it in `data`. Not to be changed."""
    folder = tmp_path_factory.mktemp("own")
    write_corpus(folder / "corpus")
    configs = []
    for language in ("no_reverse", "partial_reverse"):
        places = {"data_dir": str(folder / "data" / language), "out_dir": str(folder / language)}
        configs.append(write_config(folder / f"{language}.py", language=language, **places))
    printed = succeed("prepare.py", *configs, f"--corpus={folder / 'corpus'}", *OPTIONS)
    for line in ("training a tokenizer of 400 tokens", "train: train.txt", "val: val.txt"):
        assert printed.count(line) == 1, "once for both languages"
    return folder


def tokenizer_of(prepared: Path, language: str = "partial_reverse") -> Tokenizer:
    return Tokenizer(["🅁"], prepared / "data" / language)


def test_all_languages_share_a_tokenizer_in_the_layout_of_gpt2(prepared: Path) -> None:
    own, gpt2 = tokenizer_of(prepared), Tokenizer(["🅁"])
    assert own.sha256 == tokenizer_of(prepared, "no_reverse").sha256
    assert [own.bytes_of(i) for i in range(256)] == [gpt2.bytes_of(i) for i in range(256)]
    assert (own.end_of_text, own.markers, own.vocab_size) == (SIZE, {"🅁": SIZE + 1}, SIZE + 2)
    meta = json.loads((prepared / "data" / "no_reverse" / "meta.json").read_text())
    assert (meta["vocab_size"], meta["eot_token"]) == (SIZE + 2, SIZE)
    about = meta["tokenizer"]
    assert about["sha256"] == own.sha256 and about["text"].endswith("train split")
    assert about["bytes"] == sum(
        len(line) for line in (prepared / "corpus" / "train.txt").read_bytes().split(b"\n")
    )


def test_tokens_are_those_of_the_tokenizers_library(prepared: Path) -> None:
    files = (str(prepared / "data" / "no_reverse" / name) for name in TOKENIZER)
    theirs = tokenizers.Tokenizer(tokenizers.models.BPE.from_file(*files))
    theirs.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    theirs.decoder = decoders.ByteLevel()
    lines = (prepared / "corpus" / "test.txt").read_text(encoding="utf-8").split("\n")
    tokens = np.fromfile(prepared / "data" / "no_reverse" / "test.bin", "<u2")
    sentences = np.split(tokens, np.flatnonzero(tokens == SIZE) + 1)[:-1]
    for line, sentence in zip(lines, sentences, strict=True):
        unmarked = [token for token in sentence.tolist() if token < SIZE]
        assert unmarked == theirs.encode(line).ids
        assert theirs.decode(unmarked) == line


def test_the_train_split_alone_decides_and_always_gives_the_same_files(
    prepared: Path, tmp_path: Path
) -> None:
    corpus = shutil.copytree(prepared / "corpus", tmp_path / "corpus")
    shutil.copy(write_corpus(tmp_path / "other", seed=1) / "test.txt", corpus)
    succeed("prepare.py", f"--corpus={corpus}", *OPTIONS, f"--data_dir={tmp_path / 'data'}")
    for name in TOKENIZER:
        expected = (prepared / "data" / "no_reverse" / name).read_bytes()
        assert (tmp_path / "data" / name).read_bytes() == expected
    others = (*OPTIONS[:2], "--segmenter=sentencex", f"--data_dir={tmp_path / 'others'}")
    succeed("prepare.py", f"--corpus={corpus}", *others)
    assert len(list((tmp_path / "tokenizers").iterdir())) == 2, "the segmenter decides on lines"


def test_a_vocabulary_that_the_text_does_not_support_is_refused(
    prepared: Path, tmp_path: Path
) -> None:
    options = (
        f"--corpus={prepared / 'corpus'}",
        "--tokenizer=train",
        f"--data_dir={tmp_path / 'd'}",
    )
    error = fail("prepare.py", *options, "--vocab_size=60000")
    assert "supports a tokenizer of" in error and "set --vocab_size=" in error
    count = error.partition("set --vocab_size=")[2].split()[0]
    succeed("prepare.py", *options, f"--vocab_size={count}")
    refused = fail("prepare.py", *options, "--vocab_size=300")
    assert "vocab_size: " in refused and "300" in refused


def test_the_tokenizer_of_earlier_data_serves_other_text(prepared: Path, tmp_path: Path) -> None:
    folder = prepared / "data" / "no_reverse"
    options = ("--segmenter=line", f"--data_dir={tmp_path / 'data'}")
    corpus = write_corpus(tmp_path / "other", seed=1)
    succeed("prepare.py", f"--corpus={corpus}", f"--tokenizer={folder}", *options)
    assert Tokenizer([], tmp_path / "data").sha256 == tokenizer_of(prepared).sha256


@pytest.mark.parametrize(
    ("name", "content"),
    [("merges.txt", "#version: 0.2\na b\n"), ("vocab.json", "{}"), ("vocab.json", "no json")],
)
def test_a_folder_with_other_files_is_refused(
    name: str, content: str, prepared: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(prepared / "data" / "no_reverse", tmp_path / "spoiled")
    (folder / name).write_text(content)
    options = (f"--corpus={prepared / 'corpus'}", f"--data_dir={tmp_path / 'data'}")
    error = fail("prepare.py", *options, f"--tokenizer={folder}")
    assert "holds no tokenizer in GPT-2's layout" in error and str(folder) in error


def test_damaged_files_of_prepared_data_are_made_again(prepared: Path, tmp_path: Path) -> None:
    data = shutil.copytree(prepared / "data", tmp_path / "data")
    (data / "no_reverse" / "vocab.json").unlink()
    (out_dir := tmp_path / "out").mkdir()
    options = (f"--data_dir={data / 'no_reverse'}", f"--out_dir={out_dir}")
    error = fail("train.py", prepared / "no_reverse.py", *options)
    assert "vocab.json is missing or damaged" in error and "Type: python prepare.py" in error
    assert not any(out_dir.iterdir())
    shutil.copy(Tokenizer().paths[1], data / "partial_reverse" / "merges.txt")
    options = (f"--corpus={prepared / 'corpus'}", *OPTIONS)
    assert "prepared again now" in succeed(
        "prepare.py", *options, f"--data_dir={data / 'partial_reverse'}"
    )
    assert Tokenizer([], data / "partial_reverse").sha256 == tokenizer_of(prepared).sha256


@pytest.fixture(scope="module")
def trained_own(prepared: Path) -> Path:
    """The out_dir of an exported run with its own tokenizer. Not to be changed."""
    succeed("train.py", prepared / "partial_reverse.py")
    succeed("convert_to_hf.py", f"--out_dir={prepared / 'partial_reverse'}")
    return prepared / "partial_reverse"


def test_a_run_is_exported_with_its_own_tokenizer(
    prepared: Path, trained_own: Path, tmp_path: Path
) -> None:
    out_dir = shutil.copytree(trained_own, tmp_path / "out")
    weights = torch.load(out_dir / "checkpoint-6.pt", weights_only=True)["model"]
    assert weights["transformer.wte.weight"].shape[0] == 448, "402 padded to a multiple of 64"
    export = out_dir / "hf" / "checkpoint-6"
    config = json.loads((export / "config.json").read_text())
    assert (config["vocab_size"], config["eos_token_id"]) == (SIZE + 2, SIZE)
    assert Tokenizer([], export).sha256 == tokenizer_of(prepared).sha256
    shutil.rmtree(out_dir / "hf")
    for name, path in zip(TOKENIZER, Tokenizer().paths, strict=True):
        shutil.copy(path, out_dir / name)
    assert "holds another tokenizer" in fail("convert_to_hf.py", f"--out_dir={out_dir}")


def test_sentences_are_scored_with_the_tokenizer_of_the_run_or_of_its_export(
    prepared: Path, trained_own: Path, tmp_path: Path
) -> None:
    text = "çğı şöü aek lmn."
    items = tmp_path / "items.csv"
    items.write_text(f"item,condition,text,marker_place\n1,a,{text},2\n", encoding="utf-8")
    out_dir = shutil.copytree(trained_own, tmp_path / "out")
    export = out_dir / "hf" / "checkpoint-6"
    command = ("eval.py", prepared / "partial_reverse.py", f"--stimuli={items}")
    succeed(*command, f"--out_dir={out_dir}", "--revisions=checkpoint-6")
    succeed(*command, f"--model={export}", f"--eval_dir={tmp_path / 'of_export'}")
    own = tokenizer_of(prepared)
    before, after = (own.encode_ordinary(part) for part in ("çğı şöü", " aek lmn."))
    tokens = torch.tensor([[SIZE, *before, SIZE + 1, *reversed(after)]])
    model = transformers.GPT2LMHeadModel.from_pretrained(export)
    losses = torch.nn.functional.cross_entropy(
        model(tokens).logits[0, :-1], tokens[0, 1:], reduction="none"
    )
    expected = losses.detach().numpy() / np.log(2)
    for folder in (out_dir / "evaluation", tmp_path / "of_export"):
        (path,) = folder.rglob("stimuli.csv")
        table = pd.read_csv(path).query("unit == 'token'")
        np.testing.assert_allclose(table.surprisal, expected, atol=1e-4)


def test_models_with_different_tokenizers_meet_in_bits_per_byte_alone(
    prepared: Path, trained_own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    places = {"data_dir": str(tmp_path / "data"), "out_dir": str(tmp_path / "out")}
    config = write_config(tmp_path / "gpt2.py", **places)
    succeed("prepare.py", config, f"--corpus={prepared / 'corpus'}")
    succeed("train.py", config)
    own = prepared / "partial_reverse.py"
    error = fail("eval.py", own, f"--test_data_dir={tmp_path / 'data'}")
    assert "has another tokenizer than the sentences in" in error and "--tokenizer=" in error
    drawn = []
    monkeypatch.setattr(plots, "draw", lambda _, label, path, **__: drawn.append(label) or "")
    succeed("eval.py", own, config, f"--eval_dir={tmp_path / 'joint'}")
    assert drawn.count("test perplexity (geometric mean)") == 2, "of each run"
    assert drawn.count("test bits per byte") == 1, "of both together"
    assert not (tmp_path / "joint" / "perplexity_means.csv").exists()
    table = pd.read_csv(tmp_path / "joint" / "perplexity.csv").query("genre == 'all'")
    assert table.bits_per_byte.between(1, 12).all() and len(table) == 4
