"""The device of this process, and its communication with the processes of the same torchrun."""

import ctypes
import datetime
import gc
import os
import re
import sys
import time
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch.nn.attention import SDPBackend

from impossible.settings import Settings, UserError

# Dense 16-bit peak with fp32 accumulation, TFLOP/s, from the makers' data sheets.
_PEAKS_16_BIT = {
    "H200": 989,
    "H100 PCIe": 756,
    "H100 NVL": 835,
    "H100": 989,
    "A100": 312,
    "L40S": 362,
    "A6000": 155,
    "A5000": 111,
    "A10G": 70,
    "RTX 4090": 165,
    "RTX 3090 Ti": 80,
    "RTX 3090": 71,
    "V100": 125,
    "T4": 65,
}
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # of glibc's malloc.h
_PARENT = os.getppid()  # when this module is imported
_STORE_WAIT = datetime.timedelta(seconds=30)


@dataclass(frozen=True)
class World:
    """The place of this process among those that torchrun started; without torchrun, it is alone.

    All processes must call its methods.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0  # among the processes on this machine
    local_size: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this process is the one that writes and prints."""
        return self.rank == 0

    def gather(self, value: Any) -> list[Any]:
        """Collect the value of every process, in the order of their ranks."""
        values: list[Any] = [value] * self.size
        if self.size > 1:
            dist.all_gather_object(values, value)
        return values

    def any(self, value: bool) -> bool:
        """Whether the value is true in any process. The CPUs exchange it, so GPUs need not wait."""
        flag = torch.tensor(int(value))
        if self.size > 1:
            dist.all_reduce(flag, dist.ReduceOp.MAX)
        return bool(flag)

    def sum(self, value: torch.Tensor) -> torch.Tensor:
        """The sum of a tensor over all processes, in place."""
        if self.size > 1:
            dist.all_reduce(value)
        return value


def join_world() -> World:
    """The World of this process, from the environment variables that torchrun sets.

    Raises UserError if one of several processes lacks a variable, as when srun starts them, because
    they would all train independently by mistake.
    """
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    values = {name: os.environ.get(name, "") for name in (*names, "MASTER_ADDR", "MASTER_PORT")}
    tasks = os.environ.get("SLURM_STEP_NUM_TASKS", "1")  # of srun
    is_alone = not values["WORLD_SIZE"] and not values["RANK"] and tasks == "1"
    if is_alone or values["WORLD_SIZE"] == "1":
        return World()
    if missing := [name for name, value in values.items() if not value]:
        raise UserError(
            f"this process is one of several, but {', '.join(missing)} is not set. Start the "
            "processes with torchrun, which sets all of them (with srun, one torchrun for each "
            "machine). For runs that are independent of each other, set WORLD_SIZE=1."
        )
    return World(*(int(values[name]) for name in names))


def is_launched() -> bool:
    """Whether torchrun started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def is_orphan() -> bool:
    """Whether torchrun started this process and has been killed since."""
    return is_launched() and os.getppid() != _PARENT


def connect(world: World, device: torch.device) -> None:
    """Open the process group (nccl for GPUs, gloo for CPUs) if there are several processes.

    Raises UserError if torchrun was killed meanwhile.
    """
    if world.size == 1:
        return
    # torchrun's own store is there before the processes are. Another launcher's may come later.
    has_store = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    wait = _STORE_WAIT if has_store else dist.default_pg_timeout
    try:
        rendezvous = dist.rendezvous("env://", world.rank, world.size, timeout=wait)
        store, rank, size = next(rendezvous)
        store.set_timeout(dist.default_pg_timeout)
        _require_same_kind(store, rank, size, device)
        if os.environ.get("GROUP_WORLD_SIZE") == "1":
            # torchrun restarts processes with the old store, in which torch 2.13 finds the
            # addresses of those that died. (Each machine counts its own restarts, so this does not
            # work for several.)
            attempt = f"attempt {os.environ['TORCHELASTIC_RESTART_COUNT']}"
            store = dist.PrefixStore(attempt, store)
        dist.init_process_group(
            # gloo besides nccl: exchanging values on the CPU makes no GPU wait.
            "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo",
            store=store,
            rank=rank,
            world_size=size,
            device_id=device if device.type == "cuda" else None,
        )
    except dist.DistError as error:
        raise UserError(
            f"no connection to {os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']} "
            f"({str(error).splitlines()[0]}). If torchrun was ended, run the same command again."
        )


def _require_same_kind(store: dist.Store, rank: int, size: int, device: torch.device) -> None:
    """Raise UserError unless all processes use GPUs or all use CPUs; a mixture cannot connect."""
    store.set(f"kind of device {rank}", device.type)
    kinds = [store.get(f"kind of device {other}").decode() for other in range(size)]
    if len(set(kinds)) > 1:
        raise UserError(
            f"the processes are on different kinds of devices ({', '.join(kinds)}, by rank). "
            "Fix the machine that finds no GPU, or set the same --device= everywhere."
        )


def is_loss_of_peer(error: Exception) -> bool:
    """Whether a collective operation failed because another process ended."""
    reasons = "by peer|remote process exit|Broken pipe"
    return isinstance(error, RuntimeError) and re.search(reasons, str(error)) is not None


def disconnect(world: World) -> None:
    """Close the process group. Delete every DistributedDataParallel first.

    Its destructor holds the GIL while it waits for gloo's threads, which wait for the GIL
    (pytorch/pytorch#56297). The destructor of the group releases the GIL.
    """
    if world.size > 1:
        gc.collect()
        dist.destroy_process_group()


def pick_device(wanted: str, world: World) -> torch.device:
    """The device of this process. `auto`: cuda, else mps, else cpu.

    Raises UserError if there is no such device.
    """
    if wanted == "auto":
        has_mps = torch.backends.mps.is_available() and world.size == 1
        wanted = "cuda" if torch.cuda.is_available() else "mps" if has_mps else "cpu"
    device = torch.device(wanted)
    if device.type == "mps" and not (torch.backends.mps.is_available() and world.size == 1):
        raise UserError("device = mps needs one process on a Mac with a GPU. Set --device=cpu.")
    if device.type != "cuda":
        return device
    count = torch.cuda.device_count()
    first = device.index or 0
    offered = count if device.index is None else int(first < count)
    if world.local_size > offered:  # seen by every process
        raise UserError(
            f"device = {wanted} for {world.local_size} process(es), but torch finds {count} GPU(s) "
            "on this machine. Each process needs a GPU of its own: set --device=cuda and "
            "--nproc_per_node= to the number of GPUs, or --device=cpu."
        )
    torch.cuda.set_device(first + world.local_rank)
    return torch.device("cuda", first + world.local_rank)


def pick_dtype(wanted: str, device: torch.device) -> torch.dtype:
    """The dtype of matrix products. `auto`: bfloat16 or else float16 on cuda, else float32.

    Raises UserError if the device does not support it.
    """
    if wanted == "float16" and device.type == "mps":
        raise UserError("mps cannot train with dtype = float16. Set --dtype=float32.")
    if wanted == "auto":
        # Below compute capability 8.0, torch only emulates bfloat16.
        wanted = "float32"
        if device.type == "cuda":
            has_bfloat16 = torch.cuda.get_device_capability(device) >= (8, 0)
            wanted = "bfloat16" if has_bfloat16 else "float16"
    return getattr(torch, wanted)


def choose_attention(settings: Settings, device: torch.device, dtype: torch.dtype) -> str:
    """Choose the kernel of causal attention in this process, and return its name.

    `auto` is the first of flash, efficient and math that supports the dtype, dropout and the width
    of a head. It is never cudnn, whose dropout was wrong in several versions (pytorch/pytorch
    #163903). Raises UserError if the kernel that is wanted does not support them.
    """
    wanted, dropout = settings.attention, settings.dropout
    if wanted == "auto" and device.type == "mps":
        return "mps"  # it has one kernel
    names = ("flash", "efficient", "math") if wanted == "auto" else (wanted,)
    torch.backends.cuda.enable_flash_sdp("flash" in names)
    torch.backends.cuda.enable_mem_efficient_sdp("efficient" in names)
    torch.backends.cuda.enable_math_sdp("math" in names)
    torch.backends.cuda.enable_cudnn_sdp("cudnn" in names)
    q = torch.empty(1, 1, 64, settings.n_embd // settings.n_head, device=device, dtype=dtype)
    try:
        backend = SDPBackend(torch._fused_sdp_choice(q, q, q, None, dropout, is_causal=True))
    except RuntimeError as error:
        raise UserError(
            f"attention = {wanted} does not work with {str(dtype).removeprefix('torch.')} and "
            f"dropout {dropout:g} on {describe(device)} ({str(error).splitlines()[0]}). Set "
            "--attention=auto, or another kernel."
        )
    return backend.name.partition("_")[0].lower()


def keep_freed_memory() -> None:
    """Let malloc keep freed memory, so that each step reuses the memory of the last one.

    Clearing new pages took a tenth of a step on a CPU. Has no effect without glibc.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(_M_MMAP_MAX, 0)  # large blocks too come from the heap
        mallopt(_M_TRIM_THRESHOLD, -1)  # whose end is never given back


def describe(device: torch.device) -> str:
    """The device's name for the log and the checkpoints."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type}, {torch.get_num_threads()} of {os.cpu_count()} cores"


@torch.no_grad()
def peak_flops(device: torch.device, dtype: torch.dtype) -> float:
    """The peak FLOP/s of matrix products in this process, from a data sheet or else measured."""
    if device.type == "cuda" and dtype != torch.float32:
        name = torch.cuda.get_device_name(device)
        slower = r"(?! D\b)(?!.*(Laptop|Max-Q|MIG))"  # models with a similar name
        for model, peak in _PEAKS_16_BIT.items():
            if re.search(rf"\b{re.escape(model)}\b{slower}", name):
                return peak * 1e12
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
    if device.type in ("cuda", "mps"):
        getattr(torch, device.type).synchronize()
