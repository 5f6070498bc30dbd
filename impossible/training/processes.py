"""The processes that train or evaluate together, as torchrun starts them."""

import datetime
import gc
import os
import re
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from impossible.errors import UserError

_PARENT = os.getppid()  # as this module is read
_STORE_WAIT = datetime.timedelta(seconds=30)


@dataclass(frozen=True)
class World:
    """The processes that train together, as set by torchrun; a single process without torchrun."""

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

    def share(self, value: torch.Tensor) -> None:
        """Give all processes the first one's value of a tensor, in place; all must call it."""
        if self.size > 1:
            dist.broadcast(value, 0)

    def sum(self, value: torch.Tensor) -> torch.Tensor:
        """The sum of a tensor over all processes, in place; all must call it."""
        if self.size > 1:
            dist.all_reduce(value)
        return value


_RANKS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")  # that torchrun sets
_ADDRESS = ("MASTER_ADDR", "MASTER_PORT")


def join_world() -> World:
    """The rank of this process and related values, from the environment that torchrun sets.

    Raises UserError if a variable is missing in one of several processes, as if srun started them:
    several processes must never train independently by mistake.
    """
    given = {name: os.environ.get(name, "") for name in (*_RANKS, *_ADDRESS)}
    tasks = os.environ.get("SLURM_STEP_NUM_TASKS", "1")  # of srun
    is_alone = not given["WORLD_SIZE"] and not given["RANK"] and tasks == "1"
    if is_alone or given["WORLD_SIZE"] == "1":
        return World()
    if missing := [name for name, value in given.items() if not value]:
        size = f"WORLD_SIZE = {given['WORLD_SIZE']}"
        size = size if given["WORLD_SIZE"] or tasks == "1" else f"srun started {tasks} tasks"
        raise UserError(
            f"this process is one of several ({size}), but {', '.join(missing)} is not set. Start "
            "the processes with torchrun, which sets all of them (with srun, one torchrun for each "
            "machine). For runs that are independent of each other, set WORLD_SIZE=1."
        )
    try:
        return World(*(int(given[name]) for name in _RANKS))
    except ValueError:
        described = ", ".join(f"{name} = {given[name]!r}" for name in _RANKS)
        raise UserError(f"{described}: expected whole numbers. Start the processes with torchrun.")


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
    try:
        _connect(world, device)
    except dist.DistError as error:
        raise UserError(
            f"no connection to {os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']} "
            f"({str(error).splitlines()[0]}). If torchrun was ended, run the same command again."
        )


def _connect(world: World, device: torch.device) -> None:
    # torchrun's own store is there before the processes are. Another launcher's may come later.
    has_store = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    patience = _STORE_WAIT if has_store else dist.default_pg_timeout
    found = dist.rendezvous("env://", world.rank, world.size, timeout=patience)
    store, rank, size = next(found)
    store.set_timeout(dist.default_pg_timeout)
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
    """Raise UserError unless all processes use GPUs or all use CPUs; others cannot connect."""
    store.set(f"kind of device {rank}", device.type)
    kinds = [store.get(f"kind of device {other}").decode() for other in range(size)]
    if len(set(kinds)) > 1:
        raise UserError(
            f"the processes are on different kinds of devices ({', '.join(kinds)}, by rank). "
            "Fix the machine that finds no GPU, or set the same --device= everywhere."
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
