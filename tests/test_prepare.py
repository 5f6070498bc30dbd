import json
import os
import time
from pathlib import Path

import numpy as np
import plain
import pytest
from conftest import fail, kill, start, succeed

import tokens
from tokenizer import write_transformers_files

# A folder of real text (files of any names) to compare on instead of a few speeches.
TEXTS = os.environ.get("PLAIN_TEXTS")


@pytest.fixture(scope="module")
def texts_dir(corpus_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The corpus to compare on, in BabyLM's layout."""
    if not TEXTS:
        return corpus_dir
    folder = tmp_path_factory.mktemp("texts")
    paths = sorted(p for p in Path(TEXTS).iterdir() if p.suffix in (".txt", ".test"))
    for split in ("100M", "dev", "test"):
        (folder / split).mkdir()
        for path in paths:
            (folder / split / f"{path.stem}.txt").symlink_to(path.resolve())
    return folder


@pytest.fixture(scope="module")
def encoded(texts_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> dict:
    """split -> sentences as transformers' own tokenizer encodes them, one by one."""
    folder = tmp_path_factory.mktemp("gpt2")
    write_transformers_files(folder, [], 1024)
    tokenizer = plain.gpt2_tokenizer(folder)
    splits = {"train": "100M", "val": "dev", "test": "test"}
    return {
        split: [tokenizer.encode(s) for s in plain.read_lines(list((texts_dir / name).iterdir()))]
        for split, name in splits.items()
    }


@pytest.mark.parametrize("language", sorted(plain.LANGUAGES))
def test_token_files_are_those_of_the_published_rules(
    language: str, texts_dir: Path, encoded: dict, tmp_path: Path
) -> None:
    command = ("prepare.py", f"--language={language}", f"--corpus={texts_dir}", "--segmenter=line")
    succeed(*command, f"--data_dir={tmp_path}", "--data_seed=14")
    for split, sentences in encoded.items():
        expected = plain.split(language, sentences, None if split == "test" else 14)
        found = np.fromfile(tmp_path / f"{split}.bin", np.dtype("<u2"))
        np.testing.assert_array_equal(found, expected)


def test_the_meta_counts_what_is_in_the_files(data_dir: Path, corpus_dir: Path) -> None:
    meta = json.loads((data_dir / "meta.json").read_text(encoding="utf-8"))
    assert meta["language"] == "partial_reverse"
    assert meta["markers"] == {"🅁": 50257}
    assert (meta["vocab_size"], meta["eot_token"], meta["data_seed"]) == (50258, 50256, 41)
    assert (meta["corpus"], meta["segmenter"]) == (str(corpus_dir), "line")
    for split in tokens.SPLITS:
        ids = np.fromfile(data_dir / f"{split}.bin", np.dtype("<u2"))
        entry = meta["splits"][split]
        assert entry["tokens"] == len(ids)
        assert entry["sentences"] == (ids == 50256).sum() == (ids == 50257).sum()
        assert ids[-1] == 50256
    genres = meta["splits"]["test"]["genres"]
    assert list(genres) == ["first", "second"]
    test = np.fromfile(data_dir / "test.bin", np.dtype("<u2"))
    first = test[: genres["first"]["tokens"]]
    assert first[-1] == 50256
    assert (first == 50256).sum() == genres["first"]["sentences"]
    assert sum(g["tokens"] for g in genres.values()) == len(test)


def test_the_order_of_training_sentences_depends_on_the_data_seed_alone(
    corpus_dir: Path, data_dir: Path, tmp_path: Path
) -> None:
    command = ("prepare.py", f"--corpus={corpus_dir}", "--segmenter=line")
    succeed(*command, f"--data_dir={tmp_path / 'same'}")
    succeed(*command, f"--data_dir={tmp_path / 'other'}", "--data_seed=0")
    for split in tokens.SPLITS:
        files = [
            (folder / f"{split}.bin").read_bytes()
            for folder in (data_dir, tmp_path / "same", tmp_path / "other")
        ]
        assert files[0] == files[1]
        assert (files[0] == files[2]) == (split == "test")


def test_a_second_run_finds_its_work_done_and_mends_what_is_cut_short(
    corpus_dir: Path, tmp_path: Path
) -> None:
    command = ("prepare.py", f"--corpus={corpus_dir}", f"--data_dir={tmp_path}")
    succeed(*command)
    path = tmp_path / "train.bin"
    whole, before = path.read_bytes(), path.stat().st_mtime_ns
    assert "is prepared already" in succeed(*command)
    assert path.stat().st_mtime_ns == before
    other_name = f"--corpus={corpus_dir}/../{corpus_dir.name}/"
    assert "is prepared already" in succeed(command[0], other_name, command[2])
    path.write_bytes(whole[:-2])
    assert "Doing so now" in succeed(*command)
    assert path.read_bytes() == whole


def test_data_prepared_otherwise_is_not_overwritten(corpus_dir: Path, tmp_path: Path) -> None:
    succeed("prepare.py", f"--corpus={corpus_dir}", f"--data_dir={tmp_path}")
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    for option in ("--language=no_reverse", "--data_seed=0", "--segmenter=line", "--corpus=sotu"):
        options = [f"--corpus={corpus_dir}", option]  # the later of two wins
        error = fail("prepare.py", *options, f"--data_dir={tmp_path}")
        assert "holds data prepared otherwise" in error
        key = option[2:].split("=")[0].replace("corpus", "corpus_version")
        assert f"{key}: " in error
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_changed_corpus_is_noticed(tmp_path: Path) -> None:
    for split in ("100M", "dev", "test"):
        (tmp_path / split).mkdir()
        (tmp_path / split / "a.txt").write_text("One sentence here.\n")
    command = ("prepare.py", f"--corpus={tmp_path}", f"--data_dir={tmp_path / 'data'}")
    succeed(*command)
    (tmp_path / "100M" / "a.txt").write_text("Another sentence here.\n")
    assert "corpus_version: " in fail(*command)


def test_an_interrupted_run_leaves_nothing_that_looks_whole(tmp_path: Path) -> None:
    command = ("prepare.py", "--corpus=sotu", "--sotu_years=1850-2020", f"--data_dir={tmp_path}")
    process = start(*command)
    end = time.time() + 60
    while not (tmp_path / "train.bin").exists() and time.time() < end:
        time.sleep(0.002)
    kill(process)
    assert not (tmp_path / "meta.json").exists()
    succeed(*command)
    meta = tokens.read_meta(tmp_path)
    for split in tokens.SPLITS:
        tokens.check_file(tmp_path, meta, split)


@pytest.mark.parametrize("content", ["", "\n \n\n", "Yes\nNo\n"])
def test_a_corpus_without_a_sentence_is_refused(content: str, tmp_path: Path) -> None:
    for split in ("100M", "dev", "test"):
        (tmp_path / split).mkdir()
        (tmp_path / split / "a.txt").write_text(content)
    error = fail("prepare.py", f"--corpus={tmp_path}", f"--data_dir={tmp_path / 'data'}")
    assert "the train split has no sentence of two tokens or more" in error


def test_a_language_with_too_many_markers_for_uint16_is_refused() -> None:
    import prepare
    from errors import UserError

    prepare._require_uint16("mine", 65536)
    with pytest.raises(UserError, match="'mine' has a vocabulary of 65,537"):
        prepare._require_uint16("mine", 65537)
