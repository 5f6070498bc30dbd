"""The device at hand (precision, speed) and the processes beside this one."""

import ctypes
import functools
import gc
import os
import re
import shutil
import sys
import sysconfig
import threading
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from errors import UserError

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


_PARENT = os.getppid()  # as this module is read
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # of glibc's malloc.h


@dataclass(frozen=True)
class World:
    """The processes that train together, as torchrun tells them; one alone without it."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0  # among those of this machine
    local_size: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this process is the one that writes and prints."""
        return self.rank == 0

    def gather(self, value: Any) -> list[Any]:
        """The values of all processes, by rank; all must call it."""
        values: list[Any] = [value] * self.size
        if self.size > 1:
            dist.all_gather_object(values, value)
        return values

    def any(self, value: bool) -> bool:
        """Whether the value is true in any process; all must call it. No device waits for it."""
        if self.size == 1:
            return value
        flag = torch.tensor(int(value))
        dist.all_reduce(flag, dist.ReduceOp.MAX)
        return bool(flag)

    def sum(self, value: torch.Tensor) -> torch.Tensor:
        """The sum of a tensor over all processes, in place; all must call it."""
        if self.size > 1:
            dist.all_reduce(value)
        return value


# What torchrun sets for each process, and what SLURM's srun calls the same.
_PLACES = {"RANK": "SLURM_PROCID", "WORLD_SIZE": "SLURM_NTASKS", "LOCAL_RANK": "SLURM_LOCALID"}
_TASKS_PER_NODE = "SLURM_STEP_TASKS_PER_NODE"  # "2", or "2(x3),1" for four machines


def join_world() -> World:
    """This process's place, from the environment that torchrun sets, or a launcher like it.

    What is missing is taken from SLURM's own variables. Raises UserError if it is not there either:
    several processes must never train alone, each for itself.
    """
    if os.environ.get("WORLD_SIZE", "1") == "1" and "RANK" not in os.environ:
        return World()
    found = {name: os.environ.get(name, os.environ.get(slurm)) for name, slurm in _PLACES.items()}
    found["LOCAL_WORLD_SIZE"] = os.environ.get("LOCAL_WORLD_SIZE", _tasks_of_this_node())
    if found["WORLD_SIZE"] == "1":
        found |= {"LOCAL_RANK": found["LOCAL_RANK"] or "0", "LOCAL_WORLD_SIZE": "1"}
    addresses = {name: os.environ.get(name) for name in ("MASTER_ADDR", "MASTER_PORT")}
    needed = found if found["WORLD_SIZE"] == "1" else found | addresses
    if missing := [name for name, value in needed.items() if not value]:
        raise UserError(
            f"this process is one of several (WORLD_SIZE = {found['WORLD_SIZE']}), but "
            f"{', '.join(missing)} is not set. Start the processes with torchrun, which sets all "
            "of them, or set them yourself."
        )
    try:
        return World(*(int(value) for value in found.values()))
    except ValueError:
        described = ", ".join(f"{name} = {value!r}" for name, value in found.items())
        raise UserError(f"{described}: expected whole numbers. Start the processes with torchrun.")


def _tasks_of_this_node() -> str | None:
    """How many processes srun started on this machine; None if SLURM does not tell."""
    counts: list[str] = []
    for part in os.environ.get(_TASKS_PER_NODE, "").split(","):
        if match := re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part):
            counts += [match[1]] * int(match[2] or 1)
    node = os.environ.get("SLURM_NODEID", "0")
    return counts[int(node)] if node.isdecimal() and int(node) < len(counts) else None


def is_launched() -> bool:
    """Whether torchrun started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def is_orphan() -> bool:
    """Whether torchrun started this process and is gone."""
    return is_launched() and (os.getppid() != _PARENT or _was_orphan())


@functools.cache
def _was_orphan() -> bool:
    """Whether torchrun was gone when this module was read: init has then taken its place."""
    command = Path(f"/proc/{_PARENT}/cmdline")
    if _PARENT != 1 or not command.exists():
        return False
    # In a container the first process may be the launcher itself.
    return not re.search(rb"torch|python|accelerate", command.read_bytes())


def connect(world: World, device: torch.device) -> None:
    """Open the process group: nccl between GPUs, gloo for what is on CPUs. Alone, there is none.

    Ends the process if torchrun goes meanwhile: it would wait half an hour for its store.
    """
    if world.size > 1:
        connected = threading.Event()
        threading.Thread(target=_leave_if_orphan, args=(connected,), daemon=True).start()
        _connect(device)
        connected.set()


def _leave_if_orphan(connected: threading.Event) -> None:
    while not connected.wait(0.5):
        if is_orphan():
            print("error: torchrun is gone. Type the same command again.", file=sys.stderr)
            os._exit(1)


def _connect(device: torch.device) -> None:
    store, rank, size = next(dist.rendezvous("env://"))
    _require_same_kind(store, rank, size, device)
    if os.environ.get("GROUP_WORLD_SIZE") == "1":
        # torchrun restarts processes with the old store, in which torch 2.13 finds the addresses
        # of those that died. (The count is one machine's own: it cannot name a store for several.)
        store = dist.PrefixStore(f"attempt {os.environ['TORCHELASTIC_RESTART_COUNT']}", store)
    on_gpu = device.type == "cuda"
    dist.init_process_group(
        # gloo beside nccl: what is on the CPU needs no device to wait.
        "cpu:gloo,cuda:nccl" if on_gpu else "gloo",
        store=store,
        rank=rank,
        world_size=size,
        device_id=device if on_gpu else None,
    )


def _require_same_kind(store: dist.Store, rank: int, size: int, device: torch.device) -> None:
    """Raise UserError unless all processes are on GPUs, or all on CPUs: they could not meet."""
    store.set(f"kind of device {rank}", device.type)
    kinds = [store.get(f"kind of device {other}").decode() for other in range(size)]
    if len(set(kinds)) > 1:
        raise UserError(
            f"the processes are on different kinds of devices ({', '.join(kinds)}, by rank). Mend "
            "the machine that finds no GPU, or set the same --device= everywhere."
        )


def is_loss_of_peer(error: Exception) -> bool:
    """Whether a collective operation failed because another process ended."""
    told = "by peer|remote process exit|Broken pipe"
    return isinstance(error, RuntimeError) and re.search(told, str(error)) is not None


def disconnect(world: World) -> None:
    """Close the process group; nothing may hold a DistributedDataParallel any more.

    Its destructor, holding Python's lock, would wait for gloo's threads, which wait for that
    lock (pytorch/pytorch#56297); the group's own destructor lets the lock go.
    """
    if world.size > 1:
        gc.collect()
        dist.destroy_process_group()


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
    """Raise UserError if torch.compile lacks what it needs: a C++ compiler, on a GPU a C one."""
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


def keep_freed_memory() -> None:
    """Let malloc keep what is freed, so that a step's tensors lie where the last step's did.

    Clearing fresh pages took a tenth of a step on a CPU. Nothing happens without glibc.
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
    """The most FLOP/s of one process's device, and where the figure is from.

    From the table by the device's name, for 16-bit products; else measured.
    """
    if device.type == "cuda" and dtype != torch.float32:
        name = torch.cuda.get_device_name(device)
        known = next((known for known in _PEAKS_16_BIT if _is_model(name, known)), None)
        if known:
            return _PEAKS_16_BIT[known], f"data sheet of {known}"
    return _measured_flops(device, dtype), "measured matrix products"


def _is_model(name: str, known: str) -> bool:
    """Whether a device's name is of that model, and not of a slower one of nearly that name."""
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
    """Wait until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
