"""The device of this process: its choice, precision and speed."""

import ctypes
import os
import re
import shutil
import sys
import sysconfig
import time
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch

from impossible.errors import UserError
from impossible.training.processes import World

# Dense 16-bit peak with fp32 accumulation, FLOP/s, from the makers' data sheets.
_PEAKS_16_BIT = {
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "A6000": 155e12,
    "A5000": 111e12,
    "A10G": 70e12,
    "RTX 4090": 165e12,
    "RTX 3090 Ti": 80e12,
    "RTX 3090": 71e12,
    "V100": 125e12,
    "T4": 65e12,
}


_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # of glibc's malloc.h


def pick_device(wanted: str, world: World) -> torch.device:
    """The device of this process. `auto`: cuda, else mps, else cpu.

    Raises UserError if there is no such device.
    """
    if wanted == "auto":
        wanted = "cpu"
        if torch.cuda.is_available():
            wanted = "cuda"
        elif torch.backends.mps.is_available() and world.size == 1:
            wanted = "mps"
    device = torch.device(wanted)
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise UserError("device = mps, but torch finds none here. Set --device=cpu.")
    if device.type == "mps" and world.size > 1:
        raise UserError("device = mps is for one process. Leave torchrun out, or set --device=cpu.")
    if device.type != "cuda":
        return device
    count = torch.cuda.device_count()
    if count == 0:
        raise UserError(f"device = {wanted}, but torch finds no GPU here. Set --device=cpu.")
    if world.local_size > 1 and device.index is not None:
        raise UserError(
            f"device = {wanted} names one GPU for {world.local_size} processes. Set "
            "--device=cuda: each process takes its own."
        )
    # Every process looks at all, so that the first of them can tell.
    if world.local_size > count:
        raise UserError(
            f"{world.local_size} processes want a GPU each, and this machine has {count}. Set "
            f"--nproc_per_node={count} or --device=cpu."
        )
    index = world.local_rank if device.index is None else device.index
    if index >= count:
        raise UserError(f"device = {wanted}, but the last GPU here is cuda:{count - 1}.")
    torch.cuda.set_device(index)
    return torch.device("cuda", index)


def pick_dtype(wanted: str, device: torch.device) -> torch.dtype:
    """The dtype of matrix products. `auto`: on cuda bfloat16 or else float16, elsewhere float32.

    Raises UserError if the device cannot do it.
    """
    if wanted != "auto":
        if wanted == "float16" and device.type == "mps":
            raise UserError("dtype = float16 does not train on mps. Set --dtype=float32.")
        return getattr(torch, wanted)
    if device.type != "cuda":
        return torch.float32
    # From compute capability 8.0 on; below, torch only imitates bfloat16.
    has_bfloat16 = torch.cuda.get_device_capability(device) >= (8, 0)
    return torch.bfloat16 if has_bfloat16 else torch.float16


def require_compiler(device: torch.device) -> None:
    """Raise UserError if torch.compile lacks something.

    On a GPU, it needs a C compiler and Python.h; elsewhere, a C++ compiler.
    """
    if device.type == "cuda":
        names = (os.environ.get("CC", "gcc"), "gcc", "clang")  # Triton builds its launcher in C
        header = Path(sysconfig.get_path("include")) / "Python.h"
        needs, found = f"a C compiler (gcc or clang) and {header}", header.exists()
    else:
        names = (os.environ.get("CXX", "c++"), "g++", "clang++", "cl")
        needs, found = "a C++ compiler (g++ or clang++)", True
    if not (found and any(shutil.which(name) for name in names)):
        raise UserError(
            f"compile = True needs {needs}, which this machine lacks. Install it (Debian: apt "
            "install g++ python3-dev), or set --compile=false."
        )


def is_compile_error(error: Exception) -> bool:
    """Whether torch.compile failed, and not the program that it compiled."""
    return type(error).__module__.startswith(("torch._dynamo", "torch._inductor"))


def tune(device: torch.device) -> None:
    """Make training faster on this device: nothing that changes results on a CPU."""
    if device.type == "cpu":
        keep_freed_memory()
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")  # TF32 where fp32 is asked for


def keep_freed_memory() -> None:
    """Let malloc keep freed memory, so that each step reuses the memory of the last one.

    Clearing new pages took a tenth of a step on a CPU. Has no effect without glibc.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(_M_MMAP_MAX, 0)  # large blocks too come from the heap
        mallopt(_M_TRIM_THRESHOLD, -1)  # whose end is never given back


def autocast(device: torch.device, dtype: torch.dtype) -> AbstractContextManager:
    """The context of a forward pass in that dtype; weights stay in float32."""
    if dtype == torch.float32:
        return nullcontext()
    return torch.autocast(device.type, dtype)


def describe(device: torch.device) -> str:
    """The device's name for people and records."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type}, {torch.get_num_threads()} of {os.cpu_count()} cores"


def peak_flops(device: torch.device, dtype: torch.dtype) -> tuple[float, str]:
    """The peak FLOP/s of the device of one process, and the source of this figure.

    The figure is for 16-bit products, from a table of devices, or else it is measured.
    """
    if device.type == "cuda" and dtype != torch.float32:
        name = torch.cuda.get_device_name(device)
        known = next((known for known in _PEAKS_16_BIT if _is_model(name, known)), None)
        if known:
            return _PEAKS_16_BIT[known], f"data sheet of {known}"
    return _measured_flops(device, dtype), "measured matrix products"


def _is_model(name: str, known: str) -> bool:
    """Whether a device is of that model, and not a slower model with a similar name."""
    slower = r"(?! D\b)(?!.*(Laptop|Max-Q|MIG))"
    return re.search(rf"\b{re.escape(known)}\b{slower}", name) is not None


@torch.no_grad()
def _measured_flops(device: torch.device, dtype: torch.dtype) -> float:
    """The best rate of a matrix product, FLOP/s, in about half a second."""
    rows, width, columns = (1024, 768, 768) if device.type == "cpu" else (8192, 4096, 4096)
    a = torch.randn(rows, width, device=device, dtype=dtype)
    b = torch.randn(width, columns, device=device, dtype=dtype)
    best, end = float("inf"), time.perf_counter() + 0.5
    while time.perf_counter() < end or best == float("inf"):
        start = time.perf_counter()
        a @ b
        synchronize(device)
        best = min(best, time.perf_counter() - start)
    return 2 * rows * width * columns / best


def synchronize(device: torch.device) -> None:
    """Wait until the device has completed its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
