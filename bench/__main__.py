"""Measure speed and memory side by side, in one run, alternating: medians and their ratios.

    python -m bench                       # what `make bench` runs: all three, one after another
    python -m bench train
    python -m bench prepare [FOLDER]      # on the text files of a folder, or else on speeches
    python -m bench evaluate [FOLDER]     # four minutes on two cores; train takes the longest
    python -m bench gpu                   # `make gpu`: the first checks on a GPU

GPT-2 Small at 1,024 tokens. Each program runs in a separate process, so that its peak memory can be
measured. The programs take turns, with one repetition per turn; the first repetition, which
compiles, is not counted.
"""

import platform
import re
import sys
import tempfile
from datetime import date
from pathlib import Path

import torch

from bench import evaluating, gpu, pairs, preparing, training, turns
from impossible import distributed
from impossible.distributed import World
from impossible.settings import Settings
from impossible.text import corpus


def main(arguments: list[str]) -> None:
    """Print the tables that are asked for."""
    wanted, *texts = arguments or ["all"]
    if wanted not in ("all", "train", "prepare", "evaluate") or len(texts) > 1:
        sys.exit(__doc__)
    where = distributed.describe(distributed.pick_device("auto", World()))
    print(f"{date.today()}, {where} ({_processor()}), torch {torch.__version__}\n")
    with tempfile.TemporaryDirectory() as folder:
        if wanted in ("all", "train"):
            training.write_data(Path(folder))
            training.table(folder)
            if not torch.cuda.is_available():
                pairs.table(folder)
        if wanted == "train":
            return
        genres = _texts(Path(texts[0]) if texts else None)
        if wanted in ("all", "prepare"):
            text = "".join(genres.values())
            preparing.table(Path(folder), text)
            preparing.comparison(Path(folder), text)
            preparing.annotating(Path(folder), text)
        if wanted in ("all", "evaluate"):
            evaluating.table(Path(folder), genres)


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*: (.*)", info.read_text()) if info.exists() else []
    return next(iter(names), platform.processor() or platform.machine())


def _texts(folder: Path | None) -> dict[str, str]:
    """Real text by genre: the files of a folder, or else all State of the Union addresses."""
    if folder is None:
        splits = corpus.open_corpus(Settings(corpus="sotu", sotu_years="1790-2020"))
        parts = (part for split in splits.values() for part in split.parts())
        return {"sotu": "\n".join(line for part in parts for line in part.lines)}
    return {path.stem: path.read_text(encoding="utf-8") for path in sorted(folder.iterdir())}


if __name__ == "__main__":
    if sys.argv[1:] == ["gpu"]:
        gpu.main()
    elif sys.argv[1:2] == ["serve"]:
        turns.serve(*sys.argv[2:])
    elif sys.argv[1:2] == ["second"]:
        pairs.second(*sys.argv[2:])
    else:
        main(sys.argv[1:])
