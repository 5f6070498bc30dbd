"""The first checks on a GPU: tests, memory by micro-batch, an export, a short run."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench import evaluating, training, turns
from impossible.hub import export

_SIZES = {8: 5.8, 16: 9.6, 32: 17.4}  # blocks of a micro-batch -> GB, from docs/performance.md
_LARGE = 0.3  # standard deviation of weights: logits of hundreds


def tests(*_: Any) -> Iterator[dict[str, Any]]:
    """Run the tests that need a GPU."""
    yield {"pytest": turns.printed("-m", "pytest", "-q", "-m", "gpu").splitlines()[-1]}


def sizes(folder: Path, _: str) -> Iterator[dict[str, Any]]:
    """The memory and speed of training GPT-2 Small at several micro-batch sizes."""
    for blocks, expected in _SIZES.items():
        row = {"blocks": blocks, "expected, GB": expected}
        try:
            measured = turns.compare({"": ("training.ours", folder, 0.1, blocks)})
        except RuntimeError as error:
            if "OutOfMemoryError" not in str(error):
                raise
            yield row | {"peak memory, GB": "too much", "tokens/s": "", "3,000 steps, hours": ""}
            continue
        seconds, peak = measured[""]
        speed = training.MICRO_BATCHES * blocks * turns.MODEL.block_size / seconds
        hours = turns.MODEL.max_steps * turns.MODEL.tokens_per_step / speed / 3600
        row |= {"peak memory, GB": f"{peak:.1f}", "tokens/s": f"{speed:,.0f}"}
        yield row | {"3,000 steps, hours": f"{hours:.1f}"}


def large_logits(folder: Path, _: str) -> Iterator[dict[str, Any]]:
    """Check the export of a model whose weights give large logits."""
    difference = evaluating.export_model(folder, _LARGE)
    yield {"difference, of the largest logit": f"{difference:.1e}", "limit": export.TOLERANCE}


def short_run(folder: Path, _: str) -> Iterator[dict[str, Any]]:
    """Train GPT-2 Small for 50 short steps, export and evaluate it."""
    places = (f"--data_dir={folder}", f"--out_dir={folder / 'run'}")
    steps = ("--max_steps=50", "--checkpoint_interval=50", "--warmup_steps=5", "--verify_data")
    for command, *options in (
        ("train.py", f"--tokens_per_step={2**16}", *steps),
        ("convert_to_hf.py",),
        ("eval.py",),
    ):
        for line in turns.printed(command, *places, *options).splitlines()[-3:]:
            yield {"command": command, "its last lines": line.replace("|", "/")}
