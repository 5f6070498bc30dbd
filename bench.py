"""Measure speed and memory side by side, in one run, alternating: medians and their ratios.

    python bench.py              # what `make bench` types: about ten minutes on two cores

GPT-2 Small at 1,024 tokens: this project's training step against transformers' GPT2LMHeadModel in
the plainest loop, and against the matrix products alone, which nothing can be faster than. Each
contender is a process of its own, so that its peak memory is its own, and does one step when
it is its turn; the first of them, which compiles, is not counted.
"""

import contextlib
import json
import os
import platform
import resource
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import date

import torch
import torch.distributed as dist

import device as devices
import train
from configurator import Settings
from model import GPT, GPTConfig, next_tokens

_REPEATS = 5
_BATCH, _BLOCK = 4, 1024  # the micro-batch
_DTYPE = "bfloat16"
_DROPOUTS = ("0.1", "0.0")  # as published, and without, where the CPU's fused attention works


# What is measured: each function returns one that does a repetition and returns its seconds.


def ours(dropout: str, batch_size: int = _BATCH) -> Callable[[], float]:
    """A micro-step and update of this project, compiled."""
    place = devices.pick_device("auto", devices.World())
    torch.manual_seed(0)
    model = GPT(GPTConfig(dropout=float(dropout))).to(place)
    optimizer = train.make_optimizer(model, Settings())
    wrapped = torch.compile(model, dynamic=False)
    if dist.is_initialized():
        wrapped = torch.nn.parallel.DistributedDataParallel(wrapped, gradient_as_bucket_view=True)
    batch = torch.randint(50257, (batch_size, _BLOCK), device=place)
    return _step(lambda: wrapped(batch, next_tokens(batch)), model, optimizer, place)


def theirs(dropout: str) -> Callable[[], float]:
    """The same with transformers' model in the plainest loop."""
    import transformers

    transformers.utils.logging.set_verbosity_error()
    place = devices.pick_device("auto", devices.World())
    torch.manual_seed(0)
    rates = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), float(dropout))
    config = transformers.GPT2Config(vocab_size=50258, **rates)
    model = transformers.GPT2LMHeadModel(config).to(place).train()
    optimizer = torch.optim.AdamW(model.parameters(), 6e-4, weight_decay=0.1)
    batch = torch.randint(50257, (_BATCH, _BLOCK), device=place)
    return _step(lambda: model(batch, labels=batch).loss, model, optimizer, place)


def products() -> Callable[[], float]:
    """The matrix products of a step alone, forward and backward: the limit."""
    c, place = GPTConfig(), devices.pick_device("auto", devices.World())
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
            for _ in range(times):
                torch.mm(x, weight)  # the output
                torch.mm(y, weight.T)  # the gradient of the input
                torch.mm(x.T, y)  # the gradient of the weight
        _wait(place)
        return time.perf_counter() - start

    return step


def one_process() -> Callable[[], float]:
    """One process with two threads, the whole micro-batch."""
    torch.set_num_threads(2)
    return ours("0.0")


def two_processes() -> Callable[[], float]:
    """Two processes with a thread each, half the micro-batch each."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    subprocess.Popen([sys.executable, __file__, "second", port])
    step = _one_of_two(0, port)

    def both() -> float:
        dist.broadcast(torch.zeros(()), 0)  # the second waits for it
        return step()

    return both


def _one_of_two(rank: int, port: str) -> Callable[[], float]:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    return ours("0.0", _BATCH // 2)


def _second(port: str) -> None:
    """Be the second of two processes, for as long as the first is there."""
    step = _one_of_two(1, port)
    with contextlib.suppress(RuntimeError):  # the first has gone
        while True:
            dist.broadcast(torch.zeros(()), 0)
            step()


def _step(
    loss_of: Callable[[], torch.Tensor],
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    place: torch.device,
) -> Callable[[], float]:
    def step() -> float:
        start = time.perf_counter()
        with devices.autocast(place, getattr(torch, _DTYPE)):
            loss = loss_of()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        _wait(place)
        return time.perf_counter() - start

    return step


def _wait(place: torch.device) -> None:
    if place.type == "cuda":
        torch.cuda.synchronize(place)


# How it is measured


def _serve(name: str, *arguments: str) -> None:
    """Be one contender: a repetition for each line read, its seconds and the peak memory out."""
    step = globals()[name](*arguments)
    for _ in sys.stdin:
        seconds = step()
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6  # GB, from kB
        if torch.cuda.is_available():
            peak = torch.cuda.max_memory_allocated() / 1e9
        print(json.dumps([seconds, peak]), flush=True)
    os._exit(0)


def compare(*contenders: tuple[str, ...]) -> list[tuple[float, float]]:
    """The median seconds of each contender's repetitions, in turns, and its peak memory in GB."""
    processes = [
        subprocess.Popen(
            [sys.executable, __file__, "serve", *contender],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for contender in contenders
    ]
    measured: list[list[tuple[float, float]]] = [[] for _ in contenders]
    for _ in range(1 + _REPEATS):
        for process, found in zip(processes, measured, strict=True):
            process.stdin.write("\n")
            process.stdin.flush()
            found.append(json.loads(process.stdout.readline()))
    for process in processes:
        process.stdin.close()
        process.wait()
    return [
        (statistics.median(seconds for seconds, _ in found[1:]), max(peak for _, peak in found))
        for found in measured
    ]


def main() -> None:
    """Print the tables."""
    where = devices.describe(devices.pick_device("auto", devices.World()))
    cpu = platform.processor() or platform.machine()
    print(f"{date.today()}, {where} ({cpu}), torch {torch.__version__}, {_DTYPE}")
    print(f"a step of {_BATCH} x {_BLOCK} tokens, GPT-2 Small, medians of {_REPEATS} in turns\n")
    print("| dropout | | s a step | tokens/s | x transformers | of the GEMM limit | peak memory |")
    print("|---|---|---|---|---|---|---|")
    for dropout in _DROPOUTS:
        names = ("this project", "transformers", "matrix products alone")
        found = compare(("ours", dropout), ("theirs", dropout), ("products",))
        (_, (slow, _), (limit, _)) = found
        for name, (seconds, peak) in zip(names, found, strict=True):
            print(
                f"| {dropout} | {name} | {seconds:.2f} | {_BATCH * _BLOCK / seconds:,.0f} | "
                f"{slow / seconds:.2f} | {limit / seconds:.0%} | {peak:.1f} GB |",
                flush=True,
            )
    if torch.cuda.is_available():
        return
    (one, _), (two, _) = compare(("one_process",), ("two_processes",))
    print(
        f"\n1 process x 2 threads: {one:.2f} s a step; 2 processes x 1 thread: {two:.2f} s "
        f"({one / two:.2f} x as fast)"
    )


if __name__ == "__main__":
    if sys.argv[1:2] == ["serve"]:
        _serve(*sys.argv[2:])
    elif sys.argv[1:2] == ["second"]:
        _second(sys.argv[2])
    else:
        main()
