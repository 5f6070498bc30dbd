"""Measure speed and memory side by side: medians of alternating repetitions, and their ratios.

    python -m bench                       # `make bench`: train, prepare, evaluate
    python -m bench train                 # takes the longest
    python -m bench prepare [CORPUS]      # CORPUS: as in the settings (if left out: sotu)
    python -m bench evaluate [CORPUS]
    python -m bench gpu                   # `make gpu`: the first checks on a GPU

GPT-2 Small at 1,024 tokens. Each program runs in a process of its own, which reports its peak
memory. A table is a generator of rows: dicts from column heading to cell.
"""

import contextlib
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

import torch

from bench import evaluating, gpu, preparing, training, turns
from impossible import distributed
from impossible.distributed import World
from impossible.settings import UserError

TABLES = {
    "train": {"A training step": training.table, "Two processes": training.processes_table},
    "prepare": {"prepare.py": preparing.table, "Ways to prepare": preparing.comparison},
    "evaluate": {"Perplexities": evaluating.table},
}
ON_GPU = {
    "Tests": gpu.tests,
    "Memory and speed by micro-batch": gpu.sizes,
    "Kernels of attention": gpu.kernels,
    "Export of a model with large logits": gpu.large_logits,
    "A training step beside transformers": training.table,
    "A short run": gpu.short_run,
    "Two processes": training.processes_table,
}


def main(wanted: str = "all", corpus: str = "sotu") -> None:
    """Print the chosen tables, measured on the texts of a corpus."""
    tables, output = TABLES | {"gpu": ON_GPU}, sys.stdout
    if wanted not in ("all", *tables):
        sys.exit(__doc__)
    if wanted == "gpu" and not torch.cuda.is_available():
        sys.exit("torch finds no GPU on this machine. Run this command where it finds one.")
    device = distributed.describe(distributed.pick_device("auto", World()))
    print(f"# {date.today()}, {device} ({turns.processor()}), torch {torch.__version__}\n")
    parts = [tables[wanted]] if wanted in tables else TABLES.values()
    with tempfile.TemporaryDirectory() as folder:
        turns.printed("prepare.py", f"--corpus={corpus}", f"--data_dir={folder}")
        for title, table in (item for part in parts for item in part.items()):
            start = time.perf_counter()
            print(f"## {title}\n", flush=True)
            try:
                with contextlib.redirect_stdout(sys.stderr):  # what the measured code prints
                    for number, row in enumerate(table(Path(folder), corpus)):
                        if number == 0:
                            print(f"| {' | '.join(row)} |\n{'|---' * len(row)}|", file=output)
                        cells = " | ".join(map(str, row.values()))
                        print(f"| {cells} |", file=output, flush=True)
            except (RuntimeError, UserError) as error:  # the other tables are still measured
                print(f"failed: {error}")
            print(f"\n({time.perf_counter() - start:.0f} s)\n", flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["serve"]:
        turns.serve(*sys.argv[2:])
    else:
        try:
            main(*sys.argv[1:3])
        except UserError as error:
            sys.exit(f"error: {error}")
