import dataclasses
import hashlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from impossible.settings import UserError
from impossible.text import token_files
from impossible.text.token_files import Meta, step_blocks

META = Meta(
    language="partial_reverse",
    markers={"🅁": 50257},
    vocab_size=50258,
    eot_token=50256,
    corpus="sotu",
    corpus_version="some",
    segmenter="line",
    data_seed=41,
    made_with={},
    splits={},
)


def write(folder: Path, ids: list[int]) -> Meta:
    """A train split of these ids with its meta.json."""
    entry = token_files.write_split(
        token_files.path_of(folder, "train"), [np.array(ids, np.uint16)]
    )
    meta = dataclasses.replace(
        META,
        splits={
            s: entry | {"sentences": 1, "genres": {}, "ids_sha256": ""} for s in token_files.SPLITS
        },
    )
    token_files.write_meta(folder, meta)
    return meta


def test_what_is_written_is_read(tmp_path: Path) -> None:
    meta = write(tmp_path, [1, 50257, 2, 3, 4])
    assert token_files.read_meta(tmp_path) == meta
    data = (tmp_path / "train.bin").read_bytes()
    assert data[:4] == b"\x01\x00\x51\xc4", "little-endian uint16"
    assert meta.splits["train"]["sha256"] == hashlib.sha256(data).hexdigest()
    blocks = token_files.open_blocks(tmp_path, meta, "train", 2)
    assert blocks.tolist() == [[1, 50257], [2, 3]], "the partial block is dropped"


def test_ids_that_do_not_fit_are_never_cut(tmp_path: Path) -> None:
    with pytest.raises(TypeError):
        token_files.write_split(tmp_path / "train.bin", [np.array([65536])])
    assert not list(tmp_path.iterdir())


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    write(tmp_path, [1, 2, 3])

    def broken():  # noqa: ANN202
        yield np.array([9], np.uint16)
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        token_files.write_split(tmp_path / "train.bin", broken())
    assert (tmp_path / "train.bin").read_bytes() == b"\x01\x00\x02\x00\x03\x00"
    assert {p.name for p in tmp_path.iterdir()} == {"train.bin", "meta.json"}


def test_files_that_do_not_fit_their_meta_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no prepared data"):
        token_files.read_meta(tmp_path)
    meta = write(tmp_path, list(range(100)))
    with pytest.raises(UserError, match="fewer than one block of 101"):
        token_files.open_blocks(tmp_path, meta, "train", 101)
    path = tmp_path / "train.bin"
    advice = r"train\.bin is missing or damaged: .* Type: python prepare\.py, with the same config"
    path.write_bytes(path.read_bytes()[:-6])
    for _ in range(2):
        with pytest.raises(UserError, match=advice):
            token_files.open_blocks(tmp_path, meta, "train", 10)
        path.unlink(missing_ok=True)
    for text in ("{", '{"language": "x"}'):
        (tmp_path / "meta.json").write_text(text)
        with pytest.raises(UserError, match=r"meta\.json is damaged"):
            token_files.read_meta(tmp_path)


@given(st.integers(1, 40), st.integers(1, 50), st.integers(0, 3), st.integers(1, 8))
def test_every_epoch_reads_every_block_once(
    n_blocks: int, per_step: int, seed: int, epochs: int
) -> None:
    steps = -(-n_blocks * epochs // per_step)
    drawn = np.concatenate([step_blocks(n_blocks, per_step, seed, k) for k in range(steps)])
    for epoch in range(epochs):
        part = drawn[epoch * n_blocks : (epoch + 1) * n_blocks]
        assert sorted(part.tolist()) == list(range(n_blocks))


def test_blocks_depend_on_seed_and_step_alone() -> None:
    assert step_blocks(100, 8, 41, 5).tolist() == step_blocks(100, 8, 41, 5).tolist()
    assert step_blocks(100, 8, 41, 5).tolist() != step_blocks(100, 8, 14, 5).tolist()
    # A golden draw: a run that was begun with an older version goes on with the same blocks.
    assert step_blocks(10, 4, 41, 2).tolist() == [6, 7, 1, 8]
