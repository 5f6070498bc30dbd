"""The files of a run: what they hold, which are kept, and what makes two runs different."""

import csv
import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import fail, succeed, write_config
from test_train import losses, opened_run, same, trained_here, weights

import train
from impossible import checkpoint
from impossible.settings import RECIPE, Settings, UserError

Config = Callable[..., Path]
DATA = {"splits": {"train": {"words": 100, "tokens": 150}}}


# What a run cannot be resumed with another value of.
FIXED = """
language position_embeddings n_layer n_head n_embd block_size dropout tokens_per_step max_steps
scale_attn_by_inverse_layer_idx warmup_steps learning_rate beta1 beta2 weight_decay grad_clip dtype
seed init_seed order_seed checkpoint_interval extra_checkpoints eval_blocks
"""


def test_what_cannot_change_when_a_run_is_resumed() -> None:
    data = {"splits": {split: {"sha256": split} for split in ("train", "val", "test")}}
    before = Settings()
    assert checkpoint.differences(before, data, before, data) == []
    assert sorted(RECIPE) == sorted(FIXED.split())
    others = {bool: lambda v: not v, str: lambda v: "float32" if v == "auto" else v + "1"}
    for field in dataclasses.fields(Settings):
        value = getattr(before, field.name)
        if isinstance(value, float):
            value /= 2
        elif type(value) is int:
            value += 1
        else:
            value = others[type(value)](value)
        changed = Settings.__new__(Settings)  # not checked: any other value
        changed.__dict__.update(dataclasses.asdict(before) | {field.name: value})
        unequal = checkpoint.differences(before, data, changed, data)
        is_fixed = field.name in FIXED.split()
        assert [text.split(" = ")[0] for text in unequal] == [field.name] * is_fixed
    for split in ("train", "val", "test"):
        other = {"splits": data["splits"] | {split: {"sha256": "another"}}}
        unequal = checkpoint.differences(before, data, before, other)
        expected = [f"the SHA-256 of {split}.bin = {split}, not another"]
        assert unequal == (expected if split != "test" else [])


def test_a_run_of_an_earlier_version_is_resumed(
    config: Config, trained: Path, tmp_path: Path
) -> None:
    """Its files hold settings that no longer exist."""
    shutil.copytree(trained, tmp_path / "out")
    path = checkpoint.state_path(tmp_path / "out")
    values = torch.load(path, weights_only=True)
    values["settings"] |= {"shares": "auto", "verify_data": False}
    values["state"] |= {"accumulation_steps": [2], "measured_on": ["cpu"]}
    torch.save(values, path)
    assert "is trained already: 6 of 6 steps" in succeed("train.py", config())


class Elsewhere(torch.Tensor):
    """A tensor that is on another device, as far as saving can tell."""

    def detach(self) -> torch.Tensor:
        return self

    def to(self, device: str, copy: bool) -> torch.Tensor:
        assert device == "cpu" and copy
        return torch.tensor([2.0, 3.0])


def test_tensors_are_copied_to_the_cpu_before_they_are_saved() -> None:
    value = {"a": torch.zeros(2).as_subclass(Elsewhere), "betas": (0.9, 0.999)}
    copy = train.copied({"state": [value]})["state"][0]
    assert type(copy["a"]) is torch.Tensor and copy["a"].tolist() == [2.0, 3.0]
    assert copy["betas"] == (0.9, 0.999)


def devices(value: Any) -> set[str]:
    """The devices of all tensors within a value."""
    if isinstance(value, torch.Tensor):
        return {value.device.type}
    if isinstance(value, dict | list | tuple):
        items = value.values() if isinstance(value, dict) else value
        return set().union(*(devices(item) for item in items))
    return set()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_what_a_gpu_saved_loads_where_there_is_none(config: Config, tmp_path: Path) -> None:
    succeed("train.py", config(device="cuda"))
    paths = list((tmp_path / "out").glob("*.pt"))
    assert len(paths) == 4
    for path in paths:
        assert devices(torch.load(path, weights_only=True)) == {"cpu"}


def settings(**values: object) -> Settings:
    return Settings(
        **{"checkpoint_interval": 100, "max_steps": 250, "tokens_per_step": 3_000_000} | values
    )


def test_the_published_steps_are_kept_unless_others_are_asked_for() -> None:
    published = settings(max_steps=3000)
    assert list(checkpoint.kept_steps(published, DATA)) == list(range(100, 3001, 100))
    assert list(checkpoint.kept_steps(settings(), DATA)) == [100, 200, 250]
    extra = checkpoint.kept_steps(settings(extra_checkpoints="0,1,7,250"), DATA)
    assert list(extra) == [0, 1, 7, 100, 200, 250]
    powers = checkpoint.kept_steps(settings(extra_checkpoints="log2"), DATA)
    assert list(powers) == [0, 1, 2, 4, 8, 16, 32, 64, 100, 200, 250]


def test_words_are_counted_from_the_tokens_of_a_step() -> None:
    """A step of 3M tokens has 2M words here."""
    asked = settings(extra_checkpoints="babylm")
    steps = checkpoint.kept_steps(asked, DATA)
    assert steps[1] == ["chck_1M", "chck_2M"], "the first step after which they have been seen"
    assert steps[2] == ["chck_3M", "chck_4M"]
    assert steps[10] == ["chck_20M"]
    assert steps[100] == ["chck_200M"]
    assert steps[250] == ["chck_500M"]
    names = [name for names in steps.values() for name in names]
    assert [name for name in checkpoint.BABYLM if name not in names] == [
        f"chck_{millions}M" for millions in (600, 700, 800, 900, 1000)
    ]
    with pytest.raises(UserError, match="the number of words"):
        checkpoint.kept_steps(asked, {"splits": {"train": {"tokens": 150}}})


@pytest.mark.parametrize("value", ["0,1,7", "log3", "1,,2", "-1", "1.5"])
def test_steps_that_cannot_be_kept_are_refused(value: str, config: Config) -> None:
    error = fail("train.py", config(max_steps="6"), f"--extra_checkpoints={value}")
    assert "It must be log2, babylm, or steps from 0 to 6 such as 0,1,2,4" in error


@pytest.fixture(scope="module")
def early(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with early checkpoints, exported and evaluated."""
    out_dir = tmp_path_factory.mktemp("early") / "out"
    places = {"data_dir": str(data_dir), "out_dir": str(out_dir)}
    path = write_config(out_dir.parent / "config.py", **places)
    succeed("train.py", path, "--extra_checkpoints=0,1,2")
    succeed("convert_to_hf.py", f"--out_dir={out_dir}")
    succeed("eval.py", f"--out_dir={out_dir}", "--device=cpu", "--sentences_per_genre=5")
    return out_dir


def test_every_command_follows_the_early_checkpoints(early: Path) -> None:
    names = [f"checkpoint-{step}" for step in (0, 1, 2, 3, 6)]
    assert [path.stem for path in checkpoint.list_checkpoints(early)] == names
    manifest = json.loads((early / "hf" / "manifest.json").read_text())
    assert list(manifest) == names
    card = (early / "hf" / "checkpoint-0" / "README.md").read_text(encoding="utf-8")
    assert "after step 0 of 6" in card
    with open(early / "evaluation" / "perplexity.csv", newline="") as file:
        assert [row["checkpoint"] for row in csv.DictReader(file) if row["genre"] == "all"] == names
    shown = succeed("sample.py", f"--out_dir={early}", "--checkpoint=0,2", "--device=cpu")
    assert shown.count("checkpoint-0:") == shown.count("checkpoint-2:") == 1
    (early / "checkpoint-1.pt").rename(early / "gone")
    assert "lacks checkpoint-1.pt" in fail("convert_to_hf.py", f"--out_dir={early}")
    (early / "gone").rename(early / "checkpoint-1.pt")


def test_early_checkpoints_change_nothing_else(early: Path, trained: Path, config: Config) -> None:
    assert losses(early) == losses(trained)
    assert same(weights(early, 6), weights(trained, 6))
    assert same(weights(early, 0), dict(opened_run(config()).model.state_dict()))
    assert checkpoint.load(early / "checkpoint-0.pt").val_loss > 0


def test_a_run_that_is_stopped_at_step_0_resumes(
    early: Path, config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object) -> None:
        raise train.Stopped

    options = (config(), "--extra_checkpoints=0,1,2")
    with monkeypatch.context() as patch:
        patch.setattr(train, "update", stop)
        trained_here(opened_run(*options))
    assert checkpoint.load(checkpoint.state_path(tmp_path / "out")).step == 0
    assert "resuming at step 0" in succeed("train.py", *options)
    assert losses(tmp_path / "out") == losses(early)
    assert same(weights(tmp_path / "out", 6), weights(early, 6))


def test_weights_and_order_have_seeds_of_their_own(config: Config) -> None:
    def opened(**values: str) -> tuple[torch.Tensor, list[int]]:
        run = opened_run(config(**values))
        return run.model.transformer.wte.weight.detach().clone(), run.blocks(0).tolist()

    weight, order = opened(seed="1")
    for values, is_weight, is_order in (
        ({"seed": "2"}, False, False),
        ({"seed": "2", "init_seed": "1"}, True, False),
        ({"seed": "2", "order_seed": "1"}, False, True),
        ({"seed": "2", "init_seed": "1", "order_seed": "1"}, True, True),
    ):
        other_weight, other_order = opened(**values)
        assert torch.equal(weight, other_weight) == is_weight, values
        assert (order == other_order) == is_order, values
