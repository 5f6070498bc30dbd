"""The likeliest mistakes of a user: each ends in one line that says what to do."""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from conftest import fail

from impossible import files

Config = Callable[..., Path]


@pytest.fixture
def copied(data_dir: Path, tmp_path: Path) -> Path:
    """A copy of the prepared data that a test may damage."""
    shutil.copytree(data_dir, tmp_path / "copied")
    return tmp_path / "copied"


def test_no_data_prepared(config: Config, tmp_path: Path) -> None:
    error = fail("train.py", config(data_dir=str(tmp_path / "none")))
    assert "no prepared data in" in error
    assert "python prepare.py" in error


def test_the_wrong_language_for_this_data(config: Config) -> None:
    error = fail("train.py", config(), "--language=full_reverse")
    assert "contains partial_reverse, but the settings say full_reverse" in error
    assert "python prepare.py --language=full_reverse" in error


def test_a_token_file_cut_short(config: Config, copied: Path) -> None:
    path = copied / "train.bin"
    path.write_bytes(path.read_bytes()[:1000])
    error = fail("train.py", config(data_dir=str(copied)))
    assert "train.bin has 1,000 bytes; meta.json says" in error


def test_an_unknown_setting(config: Config) -> None:
    error = fail("train.py", config(), "--learning_rat=1e-3")
    assert "unknown setting 'learning_rat'. Did you mean 'learning_rate'?" in error


@pytest.mark.parametrize("kind", ["a file in the way", "no permission"])
def test_a_folder_that_cannot_be_written(kind: str, config: Config, tmp_path: Path) -> None:
    place = tmp_path / "place"
    if kind == "a file in the way":
        place.write_text("precious")
    elif os.geteuid() == 0:
        place = Path("/sys/nowhere")  # not even root may write there
    else:
        place.mkdir(mode=0o500)
    for command, option in (("train.py", "out_dir"), ("prepare.py", "data_dir")):
        options = [] if command == "train.py" else ["--corpus=sotu"]
        error = fail(command, config(), *options, f"--{option}={place / 'sub'}")
        assert str(place) in error or str(place / "sub") in error
        assert f"--{option}=" in error
    assert kind != "a file in the way" or place.read_text() == "precious"


def test_no_such_config() -> None:
    error = fail("train.py", "config/partial_revers.py")
    assert "unknown config file 'config/partial_revers.py'" in error
    assert "Did you mean 'config/partial_reverse.py'?" in error


def text_corpus(folder: Path, content: bytes) -> Path:
    for split in ("100M", "dev", "test"):
        (folder / split).mkdir(parents=True)
        (folder / split / "aochildes.txt").write_bytes(content)
    return folder


def test_a_text_file_that_is_not_utf8(tmp_path: Path) -> None:
    folder = text_corpus(tmp_path / "corpus", b"All is well.\nA caf\xe9.\n")
    error = fail("prepare.py", f"--corpus={folder}", f"--data_dir={tmp_path / 'data'}")
    assert "aochildes.txt, line 2: byte 18 (0xe9) is not UTF-8" in error
    assert "iconv" in error
    assert {path.name for path in (tmp_path / "data").iterdir()} == {".lock"}


def test_an_empty_corpus(tmp_path: Path) -> None:
    folder = text_corpus(tmp_path / "corpus", b"")
    error = fail("prepare.py", f"--corpus={folder}", f"--data_dir={tmp_path / 'data'}")
    assert "the train split has no sentence" in error
    assert {path.name for path in (tmp_path / "data").iterdir()} == {".lock"}


def test_sentences_that_are_all_too_long(tmp_path: Path) -> None:
    folder = text_corpus(tmp_path / "corpus", b"word " * 1000)
    options = [f"--corpus={folder}", f"--data_dir={tmp_path / 'data'}", "--segmenter=line"]
    error = fail("prepare.py", "config/no_shuffle.py", *options)
    assert "all 1 were dropped: fewer than 2 or more than 350 tokens" in error


def test_a_checkpoint_from_another_model_size(config: Config, trained: Path) -> None:
    before = (trained / "training_state.pt").read_bytes()
    error = fail("train.py", config(out_dir=str(trained), n_layer="3"))
    assert "n_layer = 2 there, 3 now" in error
    assert (trained / "training_state.pt").read_bytes() == before


def test_a_token_id_beyond_the_vocabulary(config: Config, copied: Path) -> None:
    ids = np.fromfile(copied / "val.bin", np.uint16)
    ids[7] = 60000
    ids.tofile(copied / "val.bin")
    error = fail("train.py", config(data_dir=str(copied)))
    assert "holds the id 60000 at token 7, beyond the vocabulary of 50258" in error


@pytest.fixture(autouse=True)
def no_mistake_touches_data_or_checkpoints(data_dir: Path, trained: Path) -> Iterator[None]:
    # Files alone: other tests may have evaluated the run, in a subfolder.
    paths = [p for folder in (data_dir, trained) for p in folder.iterdir() if p.is_file()]
    before = {path: files.sha256(path) for path in paths}
    yield
    assert {path: files.sha256(path) for path in paths} == before
