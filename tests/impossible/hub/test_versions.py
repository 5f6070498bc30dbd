"""Exports in the versions of transformers that people have."""

import json
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, run
from test_convert_to_hf import made_up, write_folder

from impossible import checkpoint
from impossible.settings import Settings
from impossible.text import tokenizer_training
from impossible.text.corpus import open_corpus
from impossible.text.tokenizer import Tokenizer, write_transformers_files

MARKER = "🅁"
OURS = Tokenizer([MARKER])
PIECES = ["He", " cleans", " the", "\n", "  ", "'s", "é", "日本", "1984", " ...", "🙂", "\t", "ß"]


@pytest.fixture(scope="module")
def versions() -> Path:
    """The folder of the older versions, one folder each."""
    folder = ROOT / ".venv" / "transformers"
    script = ROOT / "tests" / "versions.sh"
    subprocess.run([script, sys.executable, folder], check=True, timeout=390)
    return folder


def texts() -> list[str]:
    """2,000 random texts with markers in them, and the one whose ids are known."""
    rng = random.Random(0)
    made = [
        "".join(rng.choices([*PIECES, f" {MARKER}", MARKER], k=rng.randint(1, 12)))
        for _ in range(2000)
    ]
    return ["He clean 🅁 the house.", *made]


def plain_ids(text: str, tokenizer: Tokenizer) -> list[int]:
    """The marker takes the white space before it; what stands between is encoded on its own."""
    parts = text.split(MARKER)
    parts = [part.rstrip() for part in parts[:-1]] + parts[-1:]
    ids: list[int] = []
    for i, part in enumerate(parts):
        ids += [tokenizer.markers[MARKER]] * (i > 0) + tokenizer.encode([part])[0].tolist()
    return ids


def trained_tokenizer(folder: Path) -> Tokenizer:
    """A tokenizer of one's own, of some State of the Union addresses."""
    options = {"tokenizer": "train", "vocab_size": 2048, "data_dir": str(folder / "data")}
    settings = Settings(corpus="sotu", text_language="en", sotu_years="1980-2000", **options)
    return Tokenizer([MARKER], tokenizer_training.folder_of(settings, "speeches", open_corpus))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["gpt2", "train"])
@pytest.mark.parametrize("version", ["4.44.2", "4.51.3", "pinned"])
def test_every_version_gives_our_logits_and_ids(
    version: str, kind: str, versions: Path, tmp_path: Path
) -> None:
    made, tokenizer = made_up(scaled=True), OURS
    write_folder(made, tmp_path / "export")
    if kind == "train":
        tokenizer = trained_tokenizer(tmp_path)
        write_transformers_files(tmp_path / "export", tokenizer, 1024)
    (tmp_path / "texts.json").write_text(json.dumps(texts()), encoding="utf-8")
    tokens = torch.randint(50258, (2, 24))
    np.save(tmp_path / "tokens.npy", tokens.numpy())
    arguments = [tmp_path / name for name in ("export", "texts.json", "tokens.npy", "")]
    env = {} if version == "pinned" else {"PYTHONPATH": str(versions / version)}
    done = run(ROOT / "tests" / "load_export.py", *arguments, env=env)
    assert done.returncode == 0, done.stderr
    assert version in (done.stdout.strip(), "pinned")
    ours = checkpoint.build_model(made, tmp_path)(tokens).detach().numpy()
    for attention in ("sdpa", "eager"):
        assert np.abs(ours - np.load(tmp_path / f"{attention}.npy")).max() <= 1e-4, attention
    loaded = json.loads((tmp_path / "ids.json").read_text())
    if kind == "gpt2":
        assert loaded["GPT2Tokenizer"][0] == [1544, 3424, 50257, 262, 2156, 13]
    for name, ids in loaded.items():
        for text, theirs in zip(texts(), ids, strict=True):
            assert theirs == plain_ids(text, tokenizer), (name, text)
