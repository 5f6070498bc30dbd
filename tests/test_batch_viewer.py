"""The text of a step, from the token files, the seeds and the step alone."""

import dataclasses
import hashlib
import re
import shutil
from pathlib import Path

import numpy as np
import torch
from conftest import fail, succeed

import train
from impossible import checkpoint
from impossible.distributed import World
from impossible.settings import load
from impossible.text import token_files
from impossible.text.tokenizer import Tokenizer

MARKERS = ("🅁",)


def test_a_step_is_shown_as_training_reads_it(config, data_dir: Path) -> None:  # noqa: ANN001
    path = config()
    run = train.open_run(load("train.py", [str(path)])[0], World())
    tokens = run.train_blocks[run.blocks(4)]
    shown = succeed("batch_viewer.py", path, "--step=5")
    digest = hashlib.sha256(tokens.astype(token_files.DTYPE).tobytes()).hexdigest()
    assert f"step 5: 256 tokens in 8 blocks, SHA-256 {digest}" in shown
    numbers = re.findall(r"\(block ([\d,]+) of train.bin\)", shown)
    assert [int(number.replace(",", "")) for number in numbers] == run.blocks(4).tolist()
    text = Tokenizer(MARKERS).decode(tokens[0]).replace("<|endoftext|>", "")
    first = shown.split("\n\n")[1].splitlines()[1:]
    assert "".join(line[2:].removesuffix(" …") for line in first) == text
    cut = sum(block[-1] != token_files.read_meta(data_dir).eot_token for block in tokens)
    assert sum(line.endswith(" …") for line in shown.splitlines()) == cut > 0


def test_other_data_than_a_run_read_are_refused(trained: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(trained, tmp_path / "out")
    kept = checkpoint.list_checkpoints(copy)[-1]
    content = torch.load(kept, weights_only=True)
    content["data"]["splits"]["train"]["sha256"] = "0" * 64
    torch.save(content, kept)
    error = fail("batch_viewer.py", f"--out_dir={copy}", "--step=3")
    assert f"the run in {copy} read other tokens" in error


def test_neither_batch_size_nor_model_changes_what_is_shown(config, trained: Path) -> None:  # noqa: ANN001
    of_config = succeed("batch_viewer.py", config(batch_size="2", n_layer="1"), "--step=3")
    assert succeed("batch_viewer.py", f"--out_dir={trained}", "--step=3") == of_config
    other = succeed("batch_viewer.py", f"--out_dir={trained}", "--step=3", "--order_seed=7")
    assert other != of_config


def test_the_order_is_that_of_its_own_seed(config, trained: Path, tmp_path: Path) -> None:  # noqa: ANN001
    path = config(seed="1", order_seed="7")
    run = train.open_run(load("train.py", [str(path)])[0], World())
    shown = succeed("batch_viewer.py", path, "--step=3")
    numbers = re.findall(r"\(block ([\d,]+) of train.bin\)", shown)
    assert [int(number.replace(",", "")) for number in numbers] == run.blocks(2).tolist()
    kept = checkpoint.load(trained / "checkpoint-6.pt")
    (tmp_path / "mine").mkdir()
    settings = dataclasses.replace(kept.settings, seed=1, order_seed=7)
    checkpoint.save(
        tmp_path / "mine" / "checkpoint-6.pt", dataclasses.replace(kept, settings=settings)
    )
    assert succeed("batch_viewer.py", f"--out_dir={tmp_path / 'mine'}", "--step=3") == shown


def test_the_steps_that_read_a_text_are_found(config, data_dir: Path) -> None:  # noqa: ANN001
    path = config(max_steps="40", checkpoint_interval="40")
    run = train.open_run(load("train.py", [str(path)])[0], World())
    tokenizer = Tokenizer(MARKERS)
    block = int(run.blocks(11)[3])
    text = tokenizer.decode(run.train_blocks[block]).split("<|endoftext|>")[0][3:]
    steps = [n + 1 for n in range(40) if block in run.blocks(n)]
    shown = succeed("batch_viewer.py", path, f"--contains={text}")
    assert f"block {block:,}: read in step {', '.join(map(str, steps))}\n" in shown
    assert "is in 0 of" in succeed("batch_viewer.py", path, "--contains=no such text there")
    # A text that runs over the end of a block is in two blocks.
    pieces = tokenizer.pieces(np.concatenate([run.train_blocks[0][-3:], run.train_blocks[1][:3]]))
    across = "".join(pieces)
    if "<|endoftext|>" not in across and "\ufffd" not in across:
        shown = succeed("batch_viewer.py", path, f"--contains={across}")
        assert "block 0:" in shown and "block 1:" in shown


def test_a_step_beyond_the_run_is_refused(config) -> None:  # noqa: ANN001
    assert "from 1 to max_steps, which is 6" in fail("batch_viewer.py", config(), "--step=7")
