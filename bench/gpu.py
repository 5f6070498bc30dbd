"""The first checks on a GPU: tests, memory by micro-batch, an export, a short run."""

import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

from bench import evaluating, training, turns
from impossible import distributed
from impossible.distributed import World
from impossible.hub import export
from impossible.settings import Settings, UserError

_SIZES = {8: 5.8, 16: 9.6, 32: 17.4}  # blocks of a micro-batch -> GB, from docs/performance.md
_ATTENTION = (8, 12, 1024, 64)  # blocks, heads, tokens and width of a head, in GPT-2 Small
_DROPOUT = 0.1
_REPEATS = 11
_ERROR = 0.02  # as a share of the largest number: a few roundings to 8 bits
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


def kernels(*_: Any) -> Iterator[dict[str, Any]]:
    """The speed of each attention kernel with dropout, and its largest error without dropout."""
    device = distributed.pick_device("auto", World())
    dtype = distributed.pick_dtype("auto", device)
    torch.manual_seed(0)
    inputs = torch.randn(3, *_ATTENTION, device=device, dtype=dtype)
    distributed.choose_attention(_attending("math", 0.0), device, torch.float32)
    exact = _attention(inputs.float(), 0.0)
    for name in ("math", "flash", "efficient", "cudnn"):
        try:
            distributed.choose_attention(_attending(name), device, dtype)
        except UserError:
            yield {"kernel": name, "ms": "", "error": "", "verdict": "not available"}
            continue
        error = (_attention(inputs, 0.0) - exact).abs().max() / exact.abs().max()
        seconds = []
        for _ in range(_REPEATS):
            start = time.perf_counter()
            _attention(inputs, _DROPOUT)
            distributed.synchronize(device)
            seconds.append(time.perf_counter() - start)
        verdict = "as exact as 16 bits allow" if error < _ERROR else "WRONG: do not use it"
        row = {"kernel": name, "ms": f"{1000 * statistics.median(seconds):.1f}"}
        yield row | {"error": f"{error:.1e}", "verdict": verdict}
    distributed.choose_attention(_attending("auto"), device, dtype)


def _attending(kernel: str, dropout: float = _DROPOUT) -> Settings:
    return Settings(attention=kernel, dropout=dropout)


def _attention(inputs: torch.Tensor, dropout: float) -> torch.Tensor:
    """The result of causal attention and its gradients, (4, B, nh, T, hs) float32."""
    leaves = inputs.detach().requires_grad_()
    result = F.scaled_dot_product_attention(*leaves, dropout_p=dropout, is_causal=True)
    result.float().square().sum().backward()
    return torch.cat([result.detach()[None], leaves.grad]).float()


def large_logits(folder: Path, _: str) -> Iterator[dict[str, Any]]:
    """Check the export of a model whose weights give large logits."""
    difference = evaluating.export_model(folder, _LARGE)
    yield {"difference / largest logit": f"{difference:.1e}", "limit": export.TOLERANCE}


def short_run(folder: Path, _: str) -> Iterator[dict[str, Any]]:
    """Train GPT-2 Small for 50 short steps, export and evaluate it."""
    places = (f"--data_dir={folder}", f"--out_dir={folder / 'run'}")
    steps = ("--max_steps=50", "--checkpoint_interval=50", "--warmup_steps=5")
    for command, *options in (
        ("train.py", f"--tokens_per_step={2**16}", *steps),
        ("convert_to_hf.py",),
        ("eval.py",),
    ):
        for line in turns.printed(command, *places, *options).splitlines()[-3:]:
            yield {"command": command, "its last lines": line.replace("|", "/")}
