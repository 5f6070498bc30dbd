import contextlib
import datetime
import socket
from collections.abc import Iterator

import pytest
import torch

from impossible import distributed
from impossible.distributed import World
from impossible.settings import Settings, UserError


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch):  # noqa: ANN201
    """Pretend that the machine has some GPUs: this is about which of them is chosen."""

    def pretend(count: int, capability: tuple[int, int] = (8, 6)) -> list[int]:
        chosen: list[int] = []
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
        return chosen

    return pretend


def test_each_process_takes_a_gpu_of_its_own(gpus) -> None:  # noqa: ANN001
    chosen = gpus(2)
    for rank in (0, 1):
        world = World(rank=rank, size=2, local_rank=rank, local_size=2)
        assert distributed.pick_device("auto", world) == torch.device("cuda", rank)
    assert chosen == [0, 1]
    assert distributed.pick_device("cuda:1", World()) == torch.device("cuda", 1)


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize(
    ("count", "device", "size"),
    [(1, "auto", 2), (1, "cuda:0", 2), (0, "cuda", 1), (0, "cuda:0", 1), (2, "cuda:2", 1)],
)
def test_every_process_notices_that_gpus_are_too_few(
    rank: int,
    count: int,
    device: str,
    size: int,
    gpus,  # noqa: ANN001
) -> None:
    gpus(count)
    world = World(rank=rank, size=size, local_rank=rank % size, local_size=size)
    device_and_count = rf"cuda.* for {size} process\(es\), but torch finds {count} GPU\(s\) on"
    with pytest.raises(UserError, match=device_and_count):
        distributed.pick_device(device, world)


def test_16_bits_are_those_that_the_gpu_has(gpus) -> None:  # noqa: ANN001
    cuda = torch.device("cuda", 0)
    for capability, expected in (((8, 6), torch.bfloat16), ((7, 5), torch.float16)):
        gpus(1, capability)
        assert distributed.pick_dtype("auto", cuda) == expected
    assert distributed.pick_dtype("auto", torch.device("cpu")) == torch.float32
    assert distributed.pick_dtype("bfloat16", torch.device("cpu")) == torch.bfloat16


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA GeForce RTX 3090", 71e12),
        ("NVIDIA RTX A6000", 155e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        # Slower devices of nearly the same name are measured.
        ("NVIDIA T400 4GB", None),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("NVIDIA GeForce RTX 4090 D", None),
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", None),
    ],
)
def test_the_peak_of_a_gpu_is_that_of_its_name(
    name: str, peak: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: name)
    measured = pytest.raises((RuntimeError, AssertionError), match=r"(?i)cuda")
    with contextlib.nullcontext() if peak else measured:
        assert distributed.peak_flops(torch.device("cuda", 0), torch.bfloat16) == peak


def test_the_peak_of_a_cpu_is_measured() -> None:
    peak = distributed.peak_flops(torch.device("cpu"), torch.float32)
    assert 1e9 < peak < 1e14


PLACE = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}


@pytest.mark.parametrize(
    ("variables", "world"),
    [
        ({}, World()),
        ({"WORLD_SIZE": "1"}, World()),
        ({"SLURM_NTASKS": "2", "SLURM_PROCID": "1"}, World()),  # the shell of salloc and sbatch
        (
            {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"},
            World(1, 2, 1, 2),
        ),
        ({"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"}, World()),  # srun with one task
        ({"SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "1", "WORLD_SIZE": "1"}, World()),
        (  # a torchrun for each machine, started by srun
            {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}
            | {"SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "1"},
            World(3, 4, 1, 2),
        ),
    ],
)
def test_the_place_of_a_process_is_told_by_torchrun(
    variables: dict[str, str], world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (PLACE | variables).items():
        monkeypatch.setenv(name, value)
    assert distributed.join_world() == world


@pytest.mark.parametrize(
    ("variables", "missing"),
    [
        ({"WORLD_SIZE": "2"}, "RANK, LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR, MASTER_PORT"),
        ({"RANK": "0"}, "WORLD_SIZE"),
        ({"SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "0"}, "RANK, WORLD_SIZE, LOCAL_RANK"),
        ({"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", **PLACE}, "LOCAL_WORLD_SIZE"),
        (
            {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2"},
            "MASTER_ADDR, MASTER_PORT",
        ),
    ],
)
def test_one_of_several_processes_never_trains_alone(
    variables: dict[str, str], missing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=rf"{missing}.* is not set\. Start the .* with torchrun"):
        distributed.join_world()


def test_alone_there_is_nobody_to_wait_for() -> None:
    world = distributed.join_world()
    assert world == World()
    assert world.is_first
    assert world.gather(5) == [5]
    assert world.sum(torch.tensor(2.0)) == 2.0


def test_a_process_does_not_wait_for_a_torchrun_that_is_gone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        monkeypatch.setenv("MASTER_PORT", str(free.getsockname()[1]))  # nobody listens there
        monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
        monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
        monkeypatch.setattr(distributed, "_STORE_WAIT", datetime.timedelta(seconds=1))
        with pytest.raises(UserError, match="If torchrun was ended, run the same command again"):
            distributed.connect(World(rank=0, size=2), torch.device("cpu"))


@pytest.fixture
def kernels() -> Iterator[None]:
    """All kernels of attention are allowed again afterwards."""
    yield
    for name in ("flash", "mem_efficient", "math", "cudnn"):
        getattr(torch.backends.cuda, f"enable_{name}_sdp")(True)


def chosen(wanted: str, dropout: float) -> str:
    settings = Settings(attention=wanted, dropout=dropout)
    return distributed.choose_attention(settings, torch.device("cpu"), torch.float32)


@pytest.mark.usefixtures("kernels")
def test_the_kernel_of_attention_is_chosen_and_named() -> None:
    for wanted, dropout, name in (
        ("auto", 0.0, "flash"),
        ("auto", 0.1, "math"),
        ("math", 0, "math"),
    ):
        assert chosen(wanted, dropout) == name
        assert not torch.backends.cuda.cudnn_sdp_enabled()
    for wanted, dropout in (("efficient", 0.0), ("flash", 0.1)):
        message = f"attention = {wanted} does not work with float32 and dropout {dropout:g} on cpu"
        with pytest.raises(UserError, match=message):
            chosen(wanted, dropout)


@pytest.mark.usefixtures("kernels")
def test_the_kernels_of_attention_agree() -> None:
    q, results = torch.randn(2, 2, 32, 16), []
    for wanted in ("flash", "math"):
        assert chosen(wanted, 0.0) == wanted
        results.append(torch.nn.functional.scaled_dot_product_attention(q, q, q, is_causal=True))
    torch.testing.assert_close(*results)
