"""A training step: train.py's own update, two others, and the matrix products alone."""

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn as nn

import perturb
import train
from bench.plain_gpt import PlainGPT
from bench.turns import REPEATS, compare
from impossible import distributed
from impossible.distributed import World
from impossible.settings import Settings
from impossible.text import token_files, tokenizer
from model import GPTConfig

BATCH, BLOCK = 4, 1024  # the micro-batch
# Of an update: on a GPU several, as in training, or clipping and AdamW would count too much.
MICRO_BATCHES = 8 if torch.cuda.is_available() else 1
_DTYPE = "bfloat16"
# Without dropout, where the CPU's fused attention works, and as published: dropout -> blocks of a
# micro-batch. With dropout, transformers takes 16 GB for 4 blocks on a CPU.
_BLOCKS = {"0.0": BATCH, "0.1": BATCH if torch.cuda.is_available() else 2}


def ours(
    folder: str,
    dropout: str,
    batch_size: str = str(BATCH),
    micro_batches: int = MICRO_BATCHES,
    shares: str = "equal",
) -> Callable[[], float]:
    """train.py's own update. micro_batches: of each process, on average."""
    world, blocks = distributed.join_world(), int(batch_size)
    settings = Settings(
        data_dir=folder,
        out_dir=folder,
        tokens_per_step=micro_batches * blocks * world.size * BLOCK,
        batch_size=blocks,
        dropout=float(dropout),
        dtype=_DTYPE,
        shares=shares,
    )
    run = train.open_run(settings, world)
    distributed.connect(world, run.device)
    train.wrap(run)
    train.measure_shares(run)

    def step() -> float:
        start = time.perf_counter()
        train.update(run, settings.learning_rate)
        distributed.synchronize(run.device)
        return time.perf_counter() - start

    return step


def write_data(folder: Path) -> None:
    """Write token files that hold random tokens."""
    language = perturb.get(Settings().language)
    markers = tokenizer.marker_ids(language.markers)
    end = tokenizer.END_OF_TEXT_ID
    rng = np.random.default_rng(0)
    splits = {
        split: {"sentences": 1, "dropped": 0, "genres": {}}
        | token_files.write_split(
            token_files.path_of(folder, split),
            [rng.integers(end, size=8 * BLOCK, dtype=np.uint16)],
        )
        for split in token_files.SPLITS
    }
    vocab_size = tokenizer.FIRST_MARKER_ID + len(markers)
    of_no_text = {"corpus": "random", "corpus_version": "", "segmenter": "line", "made_with": {}}
    token_files.write_meta(
        folder,
        token_files.Meta(
            language=Settings().language,
            markers=markers,
            vocab_size=vocab_size,
            eot_token=end,
            data_seed=0,
            splits=splits,
            **of_no_text,
        ),
    )


def theirs(folder: str, dropout: str, batch_size: str) -> Callable[[], float]:
    """An update with transformers' model, not compiled, as most people run it."""
    import transformers

    transformers.utils.logging.set_verbosity_error()
    rates = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), float(dropout))
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(vocab_size=50258, **rates))
    return _plain_loop(model, lambda batch: model(batch, labels=batch).loss, int(batch_size), BLOCK)


def plain(folder: str, dropout: str, batch_size: str) -> Callable[[], float]:
    """An update with a plain GPT, compiled as a whole, as nanoGPT does."""
    model = PlainGPT(float(dropout))
    compiled = torch.compile(model)

    def loss_of(batch: torch.Tensor) -> torch.Tensor:
        return compiled(batch[:, :-1], batch[:, 1:])

    return _plain_loop(model, loss_of, int(batch_size), BLOCK + 1)


def _plain_loop(
    model: nn.Module, loss_of: Callable[[torch.Tensor], torch.Tensor], rows: int, length: int
) -> Callable[[], float]:
    """An update of the same optimizer in the plainest loop, on micro-batches (rows, length)."""
    place = distributed.pick_device("auto", World())
    model.to(place).train()
    optimizer = train.make_optimizer(model, Settings())
    batch = torch.randint(tokenizer.END_OF_TEXT_ID, (rows, length), device=place)

    def step() -> float:
        start = time.perf_counter()
        for _ in range(MICRO_BATCHES):
            with torch.autocast(place.type, getattr(torch, _DTYPE)):
                loss = loss_of(batch) / MICRO_BATCHES
            loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        distributed.synchronize(place)
        return time.perf_counter() - start

    return step


def products(folder: str, batch_size: str) -> Callable[[], float]:
    """The matrix products of a step alone, forward and backward: the limit."""
    c, place = GPTConfig(), distributed.pick_device("auto", World())
    width, rows = c.n_embd, int(batch_size) * BLOCK
    layer = [(width, 3 * width), (width, width), (width, 4 * width), (4 * width, width)]
    shapes = [(*shape, c.n_layer) for shape in layer] + [(width, c.padded_vocab_size, 1)]
    kind = {"dtype": getattr(torch, _DTYPE), "device": place}
    inputs = {n: torch.randn(rows, n, **kind) for shape in shapes for n in shape[:2]}
    weights = {shape: torch.randn(shape[:2], **kind) for shape in shapes}

    def step() -> float:
        start = time.perf_counter()
        for (n_in, n_out, times), weight in weights.items():
            x, y = inputs[n_in], inputs[n_out]
            for _ in range(times * MICRO_BATCHES):
                torch.mm(x, weight)  # the output
                torch.mm(y, weight.T)  # the gradient of the input
                torch.mm(x.T, y)  # the gradient of the weight
        distributed.synchronize(place)
        return time.perf_counter() - start

    return step


def table(folder: str) -> None:
    """Print the time and memory of a training step, and of one by two processes."""
    print(f"A step of GPT-2 Small, {_DTYPE}, medians of {REPEATS}:\n")
    print(
        "| dropout | tokens | | s per step | tokens/s | speed relative to transformers "
        "| share of the GEMM limit | peak memory, GB | memory relative to transformers |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for dropout, blocks in _BLOCKS.items():
        batch_size, tokens = str(blocks), MICRO_BATCHES * blocks * BLOCK
        size = f"{MICRO_BATCHES} x {blocks} x {BLOCK}"
        names = {
            "this project": ("training.ours", dropout, batch_size),
            "a plain GPT, compiled, as in nanoGPT": ("training.plain", dropout, batch_size),
            "transformers": ("training.theirs", dropout, batch_size),
            "matrix products alone": ("training.products", batch_size),
        }
        found = dict(zip(names, compare(folder, *names.values()), strict=True))
        slow, large = found["transformers"]
        limit, _ = found["matrix products alone"]
        for name, (seconds, peak) in found.items():
            print(
                f"| {dropout} | {size} | {name} | {seconds:.2f} | {tokens / seconds:,.0f} | "
                f"{slow / seconds:.2f} | {limit / seconds:.0%} | {peak:.1f} | {peak / large:.0%} |",
                flush=True,
            )
