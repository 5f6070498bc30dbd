"""The speed of a training step: train.py, two other models, and the matrix products alone."""

import dataclasses
import statistics
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn as nn
import torch.nn.functional as F

import train
from bench import turns
from impossible import distributed, log
from impossible.distributed import World
from impossible.settings import Settings
from model import GPTConfig

# Number in an update: several on a GPU, as in training, or clipping and AdamW would dominate.
MICRO_BATCHES = 8 if torch.cuda.is_available() else 1
_DTYPE = "bfloat16"
# Dropout -> blocks of a micro-batch: no dropout, which the CPU's fused attention needs, and the
# published rate. With dropout, transformers takes 16 GB for 4 blocks on a CPU.
_BLOCKS = {0.0: 4, 0.1: 4 if torch.cuda.is_available() else 2}


def ours(folder: str, dropout: str, blocks: str) -> Callable[[], Any]:
    """A function that runs train.py's own update."""
    settings = dataclasses.replace(
        turns.MODEL,
        data_dir=folder,
        out_dir=folder,
        tokens_per_step=MICRO_BATCHES * int(blocks) * turns.MODEL.block_size,
        batch_size=int(blocks),
        dropout=float(dropout),
        dtype=_DTYPE,
    )
    run = train.open_run(settings, World())
    train.wrap(run)
    return lambda: train.update(run, settings.learning_rate)


def theirs(_: str, dropout: str, blocks: str) -> Callable[[], Any]:
    """A function that runs an update of transformers' model, not compiled, as is usual."""
    import transformers

    transformers.utils.logging.set_verbosity_error()
    rates = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), float(dropout))
    m = turns.MODEL
    shape = {"n_layer": m.n_layer, "n_head": m.n_head, "n_embd": m.n_embd, "vocab_size": 50258}
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**shape, **rates))
    return plain_update(model, lambda ids: model(ids, labels=ids).loss, int(blocks), m.block_size)


class PlainGPT(nn.Module):
    """GPT-2 Small from torch's own layers, with one tensor for all logits (padded to 50,304)."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        m, vocabulary = turns.MODEL, 50304
        width = m.n_embd
        self.tokens = nn.Embedding(vocabulary, width)
        self.places = nn.Embedding(m.block_size, width)
        shape = (width, m.n_head, 4 * width, dropout, F.gelu)
        layer = nn.TransformerEncoderLayer(*shape, batch_first=True, norm_first=True)
        norm = nn.LayerNorm(width)
        self.blocks = nn.TransformerEncoder(layer, m.n_layer, norm, enable_nested_tensor=False)
        self.dropout, self.head = nn.Dropout(dropout), nn.Linear(width, vocabulary, bias=False)
        self.head.weight = self.tokens.weight

    def forward(self, ids: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """The mean cross-entropy of targets (B, T) after tokens (B, T), in nats."""
        length = ids.shape[1]
        x = self.dropout(self.tokens(ids) + self.places.weight[:length])
        mask = nn.Transformer.generate_square_subsequent_mask(length, device=ids.device)
        logits = self.head(self.blocks(x, mask, is_causal=True))  # (B, T, V)
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


def plain(_: str, dropout: str, blocks: str) -> Callable[[], Any]:
    """A function that runs an update of a plain GPT, compiled as a whole, as in nanoGPT."""
    model = PlainGPT(float(dropout))
    compiled = torch.compile(model)
    length = turns.MODEL.block_size + 1
    return plain_update(model, lambda ids: compiled(ids[:, :-1], ids[:, 1:]), int(blocks), length)


def plain_update(
    model: nn.Module, loss_of: Callable[[torch.Tensor], torch.Tensor], rows: int, length: int
) -> Callable[[], Any]:
    """A function that runs an update with AdamW, in a plain loop over (rows, length) tokens."""
    device = distributed.pick_device("auto", World())
    model.to(device).train()
    optimizer = train.make_optimizer(model, Settings())
    ids = torch.randint(50000, (rows, length), device=device)

    def update() -> None:
        for _ in range(MICRO_BATCHES):
            with torch.autocast(device.type, getattr(torch, _DTYPE)):
                loss = loss_of(ids) / MICRO_BATCHES
            loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return update


def products(_: str, blocks: str) -> Callable[[], Any]:
    """A function that only computes the matrix products of an update: the limit of speed."""
    m, device = turns.MODEL, distributed.pick_device("auto", World())
    width, rows = m.n_embd, int(blocks) * m.block_size
    layer = [(width, 3 * width), (width, width), (width, 4 * width), (4 * width, width)]
    kind = {"dtype": getattr(torch, _DTYPE), "device": device}
    shapes = [(*shape, m.n_layer) for shape in layer] + [(width, GPTConfig().padded_vocab_size, 1)]
    inputs = {n: torch.randn(rows, n, **kind) for shape in shapes for n in shape[:2]}
    weights = {shape: torch.randn(shape[:2], **kind) for shape in shapes}

    def multiply() -> None:
        for (n_in, n_out, times), weight in weights.items():
            x, y = inputs[n_in], inputs[n_out]
            for _ in range(times * MICRO_BATCHES):
                torch.mm(x, weight)  # the output
                torch.mm(y, weight.T)  # the gradient of the input
                torch.mm(x.T, y)  # the gradient of the weight

    return multiply


def table(folder: Path, _: str) -> Iterator[dict[str, Any]]:
    """The time and memory of a training step of GPT-2 Small."""
    for dropout, blocks in _BLOCKS.items():
        tokens = MICRO_BATCHES * blocks * turns.MODEL.block_size
        contenders = {
            "this project": ("training.ours", folder, dropout, blocks),
            "a plain GPT, compiled, as in nanoGPT": ("training.plain", folder, dropout, blocks),
            "transformers": ("training.theirs", folder, dropout, blocks),
            "matrix products alone": ("training.products", folder, blocks),
        }
        results = turns.compare(contenders)
        slow, large = results["transformers"]
        limit, _ = results["matrix products alone"]
        for name, (seconds, peak) in results.items():
            yield {
                "dropout": dropout,
                "tokens": f"{MICRO_BATCHES} x {blocks} x {turns.MODEL.block_size}, {_DTYPE}",
                "": name,
                "s per step": f"{seconds:.2f}",
                "tokens/s": f"{tokens / seconds:,.0f}",
                "speed relative to transformers": f"{slow / seconds:.2f}",
                "share of the GEMM limit": f"{limit / seconds:.0%}",
                "peak memory, GB": f"{peak:.1f}",
                "memory relative to transformers": f"{peak / large:.0%}",
            }


def processes_table(folder: Path, _: str) -> Iterator[dict[str, Any]]:
    """The speed of short runs by one and two processes."""
    for processes in (1,) if torch.cuda.device_count() == 1 else (1, 2):
        yield {"processes": processes, "tokens/s": f"{speed_of_run(folder, processes):,.0f}"}


def speed_of_run(folder: Path, processes: int) -> float:
    """The median tokens per second of a run of train.py after its first two steps."""
    m, steps = turns.MODEL, 8
    shape = (f"--{name}={getattr(m, name)}" for name in ("n_layer", "n_head", "n_embd"))
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    with tempfile.TemporaryDirectory() as out_dir:
        turns.printed(
            *(*launcher, "train.py", f"--data_dir={folder}", f"--out_dir={out_dir}"),
            *(f"--dtype={_DTYPE}", "--batch_size=1", "--eval_blocks=1"),
            *(f"--block_size={m.block_size}", f"--tokens_per_step={6 * m.block_size}", *shape),
            *(f"--max_steps={steps}", "--warmup_steps=1", f"--compile={m.compile}"),
        )
        records = [record for record in log.read(Path(out_dir)) if record["step"] > 2]
    return statistics.median(record["tokens_per_second"] for record in records)
