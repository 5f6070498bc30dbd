"""A training step: train.py's own update, transformers', and the matrix products alone."""

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

import perturb
import train
from bench.turns import REPEATS, compare
from impossible.settings import Train
from impossible.text import token_files, tokenizer
from impossible.training import device as devices
from impossible.training import processes
from impossible.training.processes import World
from model import GPTConfig

_BATCH, _BLOCK = 4, 1024  # the micro-batch
# Of an update: on a GPU several, as in training, or clipping and AdamW would count too much.
MICRO_BATCHES = 8 if torch.cuda.is_available() else 1
_DTYPE = "bfloat16"
_DROPOUTS = ("0.1", "0.0")  # as published, and without, where the CPU's fused attention works


def ours(folder: str, dropout: str, batch_size: str = str(_BATCH)) -> Callable[[], float]:
    """train.py's own update, of MICRO_BATCHES for each process."""
    world, blocks = processes.join_world(), int(batch_size)
    settings = Train(
        data_dir=folder,
        out_dir=folder,
        tokens_per_step=MICRO_BATCHES * blocks * world.size * _BLOCK,
        batch_size=blocks,
        dropout=float(dropout),
        dtype=_DTYPE,
    )
    run = train.open_run(settings, world)
    processes.connect(world, run.device)
    train.wrap(run)

    def step() -> float:
        start = time.perf_counter()
        train.update(run, settings.learning_rate)
        devices.synchronize(run.device)
        return time.perf_counter() - start

    return step


def write_data(folder: Path) -> None:
    """Write token files that hold random tokens."""
    language = perturb.get(Train().language)
    markers = tokenizer.marker_ids(language.markers)
    end = tokenizer.END_OF_TEXT_ID
    rng = np.random.default_rng(0)
    splits = {
        split: {"sentences": 1, "dropped": 0, "genres": {}}
        | token_files.write_split(
            token_files.path_of(folder, split),
            [rng.integers(end, size=8 * _BLOCK, dtype=np.uint16)],
        )
        for split in token_files.SPLITS
    }
    vocab_size = tokenizer.FIRST_MARKER_ID + len(markers)
    of_no_text = {"corpus": "random", "corpus_version": "", "segmenter": "line", "made_with": {}}
    token_files.write_meta(
        folder,
        token_files.Meta(
            language=Train().language,
            markers=markers,
            vocab_size=vocab_size,
            eot_token=end,
            data_seed=0,
            splits=splits,
            **of_no_text,
        ),
    )


def theirs(folder: str, dropout: str) -> Callable[[], float]:
    """An update of the same optimizer with transformers' model, in the plainest loop."""
    import transformers

    transformers.utils.logging.set_verbosity_error()
    place = devices.pick_device("auto", World())
    torch.manual_seed(0)
    rates = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), float(dropout))
    config = transformers.GPT2Config(vocab_size=50258, **rates)
    model = transformers.GPT2LMHeadModel(config).to(place).train()
    optimizer = train.make_optimizer(model, Train())
    batch = torch.randint(50257, (_BATCH, _BLOCK), device=place)

    def step() -> float:
        start = time.perf_counter()
        for _ in range(MICRO_BATCHES):
            with devices.autocast(place, getattr(torch, _DTYPE)):
                loss = model(batch, labels=batch).loss / MICRO_BATCHES
            loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        devices.synchronize(place)
        return time.perf_counter() - start

    return step


def products(folder: str) -> Callable[[], float]:
    """The matrix products of a step alone, forward and backward: the limit."""
    c, place = GPTConfig(), devices.pick_device("auto", World())
    width, rows = c.n_embd, _BATCH * _BLOCK
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
        devices.synchronize(place)
        return time.perf_counter() - start

    return step


def one_process(folder: str) -> Callable[[], float]:
    """One process with two threads, the whole micro-batch."""
    torch.set_num_threads(2)
    return ours(folder, "0.0")


def two_processes(folder: str) -> Callable[[], float]:
    """Two processes with a thread each, half the micro-batch each."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    subprocess.Popen(
        [sys.executable, "-m", "bench", "second", folder, port], cwd=Path(__file__).parent.parent
    )
    step = _one_of_two("0", folder, port)

    def both() -> float:
        dist.broadcast(torch.zeros(()), 0)  # the second waits for it
        return step()

    return both


def _one_of_two(rank: str, folder: str, port: str) -> Callable[[], float]:
    torch.set_num_threads(1)
    os.environ |= {
        "RANK": rank,
        "LOCAL_RANK": rank,
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
    }
    return ours(folder, "0.0", str(_BATCH // 2))


def second(folder: str, port: str) -> None:
    """Run as the second of two processes until the first one ends."""
    step = _one_of_two("1", folder, port)
    with contextlib.suppress(RuntimeError):  # the first has gone
        while True:
            dist.broadcast(torch.zeros(()), 0)
            step()


def table(folder: str) -> None:
    """Print the time and memory of a training step, and of one by two processes."""
    tokens = MICRO_BATCHES * _BATCH * _BLOCK
    print(
        f"A step of {MICRO_BATCHES} x {_BATCH} x {_BLOCK} tokens, GPT-2 Small, {_DTYPE}, medians "
        f"of {REPEATS}:\n"
    )
    print(
        "| dropout | | s per step | tokens/s | speed relative to transformers "
        "| share of the GEMM limit | peak memory, GB | memory relative to transformers |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for dropout in _DROPOUTS:
        names = ("this project", "transformers", "matrix products alone")
        found = compare(
            folder, ("training.ours", dropout), ("training.theirs", dropout), ("training.products",)
        )
        (_, (slow, large), (limit, _)) = found
        for name, (seconds, peak) in zip(names, found, strict=True):
            print(
                f"| {dropout} | {name} | {seconds:.2f} | {tokens / seconds:,.0f} | "
                f"{slow / seconds:.2f} | {limit / seconds:.0%} | {peak:.1f} | {peak / large:.0%} |",
                flush=True,
            )
    if torch.cuda.is_available():
        return
    (one, _), (two, _) = compare(folder, ("training.one_process",), ("training.two_processes",))
    print(
        f"\n1 process x 2 threads: {one:.2f} s a step; 2 processes x 1 thread: {two:.2f} s "
        f"({one / two:.2f} x as fast)\n"
    )
