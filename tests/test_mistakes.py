"""The likeliest mistakes of a user: each ends in one line that says what to do.

Mistakes in settings are in test_settings.py, those in a corpus in test_prepare.py.
"""

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import fail

from impossible import files

Config = Callable[..., Path]


def cut_short(data_dir: Path) -> None:
    path = data_dir / "train.bin"
    path.write_bytes(path.read_bytes()[:1000])


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (shutil.rmtree, [], "no prepared data in .*: python prepare.py"),
        (None, ["--language=full_reverse"], "contains partial_reverse, but .* full_reverse"),
        (None, ["--language=full_reverse"], "python prepare.py --language=full_reverse"),
        (cut_short, [], "train.bin is missing or damaged: it is not the file that meta.json"),
        (None, ["--out_dir=TRAINED", "--n_layer=3"], "n_layer = 2, not 3"),
    ],
)
def test_training_on_the_wrong_things_is_refused(
    change: Callable[[Path], None] | None,
    options: list[str],
    message: str,
    config: Config,
    data_dir: Path,
    trained: Path,
    tmp_path: Path,
) -> None:
    before = {path: files.sha256(path) for path in trained.iterdir() if path.is_file()}
    copy = shutil.copytree(data_dir, tmp_path / "copy")
    if change:
        change(copy)
    options = [option.replace("TRAINED", str(trained)) for option in options]
    error = fail("train.py", config(data_dir=str(copy)), *options)
    assert re.search(message, error)
    assert {path: files.sha256(path) for path in before} == before


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
