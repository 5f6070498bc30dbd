from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import succeed

from impossible import checkpoint
from impossible.checkpoint import TrainingState
from impossible.training.saving import copied


class Elsewhere(torch.Tensor):
    """A tensor that is on another device, as far as saving can tell."""

    def detach(self) -> torch.Tensor:
        return self

    def to(self, device: str, copy: bool) -> torch.Tensor:
        assert device == "cpu" and copy
        return torch.tensor([2.0, 3.0])


def devices(value: Any) -> set[str]:
    """The devices of all tensors within a value."""
    if isinstance(value, torch.Tensor):
        return {value.device.type}
    if isinstance(value, dict | list | tuple):
        items = value.values() if isinstance(value, dict) else value
        return set().union(*(devices(item) for item in items))
    return set()


def test_tensors_are_saved_as_of_the_cpu(tmp_path: Path) -> None:
    there = torch.zeros(2).as_subclass(Elsewhere)
    state = TrainingState(
        step=1,
        model=copied({"weight": there}),
        settings={},
        data={},
        val_loss=1.0,
        sessions=[],
        optimizer=copied(
            {"state": {0: {"exp_avg": there}}, "param_groups": [{"betas": (0.9, 0.999)}]}
        ),
        scaler={},
    )
    checkpoint.save_state(tmp_path, state)
    loaded = checkpoint.load(checkpoint.state_path(tmp_path))
    for tensor in (loaded.model["weight"], loaded.optimizer["state"][0]["exp_avg"]):
        assert type(tensor) is torch.Tensor
        assert tensor.tolist() == [2.0, 3.0]
    assert loaded.optimizer["param_groups"] == [{"betas": (0.9, 0.999)}]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_what_a_gpu_saved_loads_where_there_is_none(
    config: Callable[..., Path], tmp_path: Path
) -> None:
    succeed("train.py", config(device="cuda", out_dir=str(tmp_path / "out")))
    paths = list((tmp_path / "out").glob("*.pt"))
    assert len(paths) == 4
    for path in paths:
        assert devices(torch.load(path, weights_only=True)) == {"cpu"}


def test_what_is_saved_in_the_background_does_not_change_with_training() -> None:
    weight, moment = torch.zeros(3), [{"minutes": 1.0}]
    kept = copied({"weight": weight, "sessions": moment})
    weight += 1
    moment[0]["minutes"] = 2.0
    assert kept["weight"].tolist() == [0.0, 0.0, 0.0]
    assert kept["sessions"] == [{"minutes": 1.0}]
