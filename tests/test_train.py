import contextlib
import dataclasses
import itertools
import json
import math
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from conftest import ROOT, fail, kill, run, start, succeed
from parity import pair, relative

import train
from impossible import checkpoint, log
from impossible.distributed import World
from impossible.hub.export import transformers_weights
from impossible.settings import Settings, UserError, load
from impossible.text import token_files

Config = Callable[..., Path]
Whole = Callable[..., Path]
PUBLISHED = Settings()
BFLOAT16 = {"dtype": "bfloat16"}


def losses(out_dir: Path) -> dict[int, float]:
    return {r["step"]: r["loss"] for r in log.read(out_dir) if "loss" in r}


def opened_run(config: Path, *options: str) -> train.Run:
    """The parts of a training, as of one process."""
    return train.open_run(load("train.py", [str(config), *options])[0], World())


def trained_here(run: train.Run) -> None:
    """Train within this process, whose signals stay as they are."""
    with train.opened(run):
        train.resume(run)
        train.train(run)


def weights(out_dir: Path, step: int) -> dict[str, torch.Tensor]:
    return checkpoint.load(checkpoint.path_of(out_dir, step)).model


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def require_same(out_dir: Path, whole: Path) -> None:
    """The same losses, checkpoints and state, to the last bit."""
    names = ("step", "loss", "grad_norm", "val_loss")
    records = [[[r.get(n) for n in names] for r in log.read(path)] for path in (out_dir, whole)]
    assert records[0] == records[1]
    kept, others = (checkpoint.list_checkpoints(folder) for folder in (out_dir, whole))
    assert [path.name for path in kept] == [path.name for path in others]
    assert all(map(same, *([checkpoint.load(p).model for p in paths] for paths in (kept, others))))
    states = [checkpoint.load(checkpoint.state_path(folder)).state for folder in (out_dir, whole)]
    assert states[0]["scaler"] == states[1]["scaler"]
    optimizers = [state["optimizer"]["state"] for state in states]
    assert all(same(values, optimizers[1][key]) for key, values in optimizers[0].items())


def test_the_learning_rate_is_transformers_linear_schedule() -> None:
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.AdamW([parameter], lr=PUBLISHED.learning_rate)
    schedule = transformers.get_linear_schedule_with_warmup(optimizer, 300, 3000)
    for step in range(3000):
        ours = train.learning_rate_at(step, PUBLISHED)
        assert ours == pytest.approx(schedule.get_last_lr()[0], abs=1e-12), step
        optimizer.step()
        schedule.step()
    assert train.learning_rate_at(0, PUBLISHED) == 0.0
    always = dataclasses.replace(PUBLISHED, warmup_steps=0)
    assert train.learning_rate_at(0, always) == PUBLISHED.learning_rate


def test_weight_decay_is_for_matrices_and_embeddings() -> None:
    model = pair(True)[0]
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    decayed, others = train.make_optimizer(model, PUBLISHED).param_groups
    assert (decayed["weight_decay"], others["weight_decay"]) == (0.1, 0.0)
    assert {names[id(p)].split(".")[-1] for p in decayed["params"]} == {"weight"}
    assert all(names[id(p)].endswith("bias") or ".ln_" in names[id(p)] for p in others["params"])
    assert len(decayed["params"]) + len(others["params"]) == len(names)
    assert (decayed["betas"], decayed["eps"]) == ((0.9, 0.999), 1e-8)


def test_twenty_updates_are_those_of_transformers(config: Config) -> None:
    path = config(dropout="0.0", max_steps="20", warmup_steps="5", grad_clip="0.5")
    run = opened_run(path)
    settings = run.settings
    vocabulary = run.meta.vocab_size
    theirs = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            vocab_size=vocabulary,
            n_positions=settings.block_size,
            n_embd=settings.n_embd,
            n_layer=settings.n_layer,
            n_head=settings.n_head,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            scale_attn_by_inverse_layer_idx=True,
            attn_implementation="eager",
        )
    )
    unscaled = dataclasses.replace(run.model.config, scale_attn_by_inverse_layer_idx=False)
    same_weights = type(run.model)(unscaled)
    same_weights.load_state_dict(run.model.state_dict())
    theirs.load_state_dict(transformers_weights(same_weights), strict=False)
    matrices = [p for p in theirs.parameters() if p.dim() >= 2]
    vectors = [p for p in theirs.parameters() if p.dim() < 2]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, settings.learning_rate, (0.9, 0.999), 1e-8)
    schedule = transformers.get_linear_schedule_with_warmup(optimizer, 5, 20)
    for step in range(20):
        run.step = step
        ours, norm = train.update(run, train.learning_rate_at(step, settings))
        blocks = token_files.step_blocks(len(run.train_blocks), 8, settings.seed, step)
        batch = train.load(run.train_blocks, blocks, torch.device("cpu"))
        loss = theirs(batch, labels=batch).loss
        loss.backward()
        their_norm = torch.nn.utils.clip_grad_norm_(theirs.parameters(), 0.5)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        assert abs(ours.item() - loss.item()) <= 1e-4, step
        assert norm.item() == pytest.approx(their_norm.item(), rel=1e-3)
    assert loss.item() < 10.6, "it learned"
    ours = run.model.transformer.wte.weight[:vocabulary]
    assert relative(ours, theirs.transformer.wte.weight) < 1e-3


class Alone(World):
    """One of several processes, without the others."""

    def any(self, value: bool) -> bool:
        return value


def loss_of(run: train.Run, step: int, rank: int = 0, size: int = 1) -> float:
    """The loss of a step in one of some processes; the weights stay as they are."""
    run.step, run.world = step, Alone(rank, size)
    return train.update(run, learning_rate=0.0)[0].item()


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_dropout_is_another_in_each_step_and_process(dropout: float, config: Config) -> None:
    """All blocks are the same one, so nothing else differs."""
    run = opened_run(config(dropout=str(dropout)))
    run.train_blocks = np.repeat(run.train_blocks[:1], 8, axis=0)
    train.validate(run)  # after which dropout is on again
    places = [(0, 0, 1), (1, 0, 1), (2, 0, 1), (0, 0, 2), (0, 1, 2), (1, 1, 2)]
    first = [loss_of(run, *place) for place in places]
    assert [loss_of(run, *place) for place in places] == first, "a function of seed, step, process"
    apart = [abs(a - b) > 1e-4 for a, b in itertools.combinations(first, 2)]
    assert apart == [dropout > 0] * len(apart)
    other = opened_run(config(dropout=str(dropout), seed="7", init_seed="41"))
    other.train_blocks = run.train_blocks
    assert (abs(loss_of(other, 0) - first[0]) > 1e-4) == (dropout > 0)


def test_validation_is_without_dropout(config: Config) -> None:
    plain, dropped = (opened_run(config(dropout=rate)) for rate in ("0.0", "0.9"))
    loss = train.validate(plain)
    assert loss == pytest.approx(math.log(50258), abs=0.1)
    assert train.validate(dropped) == train.validate(dropped) == loss


def test_the_gradient_is_clipped_without_the_loss_scale_of_fp16(config: Config) -> None:
    updates = {}
    for dtype in ("float32", "float16"):
        run = opened_run(config(dtype=dtype, dropout="0.0", grad_clip="0.5"))
        before = run.model.transformer.wte.weight.detach().clone()
        norm = train.update(run, learning_rate=0.0)[1].item()
        moments = [state["exp_avg"].norm() for state in run.optimizer.state.values()]
        updates[dtype] = norm, torch.stack(moments).norm().item()
        assert torch.equal(run.model.transformer.wte.weight, before)
    assert updates["float32"][0] > 0.5, "there is something to clip"
    assert updates["float32"][1] == pytest.approx(0.5 * (1 - 0.9), rel=1e-4)
    assert updates["float16"] == pytest.approx(updates["float32"], rel=1e-2)


def test_a_run_leaves_its_log_its_checkpoints_and_its_state(trained: Path) -> None:
    assert {p.name for p in trained.iterdir()} == {
        "checkpoint-3.pt",
        "checkpoint-6.pt",
        "training_state.pt",
        "training_state.previous.pt",
        "log.jsonl",
        ".lock",
    }
    records = log.read(trained)
    assert [r["step"] for r in records] == [0, 1, 2, 3, 4, 5, 6]
    assert [r["step"] for r in records if "val_loss" in r] == [0, 3, 6]
    assert records[0]["val_loss"] == pytest.approx(math.log(50258), abs=0.1)
    assert records[-1]["val_loss"] < records[0]["val_loss"]
    keys = {"step", "loss", "learning_rate", "grad_norm", "tokens_per_second", "mfu"}
    assert keys <= records[1].keys()
    kept = torch.load(trained / "checkpoint-3.pt", weights_only=True)
    assert kept["step"] == 3
    assert kept["val_loss"] == records[3]["val_loss"]
    assert kept["settings"]["n_layer"] == 2
    assert json.loads(json.dumps(kept["settings"])) == kept["settings"]
    assert kept["data"]["markers"] == {"🅁": 50257}
    assert not any(name.startswith("_orig_mod.") for name in kept["model"])
    assert kept["state"] is None


# Losses of ten steps, fp32, without dropout.
GOLDEN = [10.8307, 10.8229, 10.8124, 10.7112, 10.5862, 10.5068, 10.4014, 10.348, 10.2851, 10.2592]
TEN = {"max_steps": "10", "eval_interval": "5", "dropout": "0.0"}


def test_losses_do_not_depend_on_processes_and_micro_batches(
    config: Config, whole: Whole, tmp_path: Path
) -> None:
    expected = log.read(whole(**TEN, batch_size="8"))
    golden = pytest.approx(GOLDEN, abs=1e-3)
    assert [r["loss"] for r in expected[1:]] == golden, "not meant to change: the results"
    for batch_size, processes in (("2", 1), ("4", 2), ("1", 2)):
        out_dir = tmp_path / f"{batch_size}-{processes}"
        path = config(**TEN, batch_size=batch_size, out_dir=str(out_dir))
        several = {"processes": processes} if processes > 1 else {}
        printed = succeed("train.py", path, **several)
        count = 8 // int(batch_size) // processes
        assert f"{processes} process(es) x {count} micro-batches x {batch_size} blocks" in printed
        for name, tolerance in (("loss", 1e-5), ("val_loss", 1e-5), ("grad_norm", 1e-3)):
            values, others = ([r.get(name, 0) for r in rs] for rs in (log.read(out_dir), expected))
            assert values == pytest.approx(others, rel=tolerance), out_dir.name


@pytest.mark.parametrize(
    ("processes", "options"),
    [
        (1, {"dtype": "float16"}),
        pytest.param(1, {}, marks=pytest.mark.slow),
        pytest.param(1, {"compile": "true"}, marks=pytest.mark.slow),
        pytest.param(2, BFLOAT16, marks=pytest.mark.slow),
        pytest.param(2, {"dtype": "float16"}, marks=pytest.mark.slow),
        pytest.param(2, BFLOAT16 | {"compile": "true"}, marks=pytest.mark.slow),
    ],
)
def test_a_run_that_was_stopped_goes_on_bit_for_bit(
    processes: int, options: dict[str, str], config: Config, whole: Whole, tmp_path: Path
) -> None:
    """Dropout is on. The stop is a kill of all processes after the first checkpoint."""
    options = options | {"max_steps": "12", "batch_size": "2"}
    several = {"processes": processes} if processes > 1 else {}
    path = config(**options)
    kill_after_first_state(path, tmp_path / "out", processes)
    assert 0 < checkpoint.load(checkpoint.state_path(tmp_path / "out")).step < 12
    succeed("train.py", path, **several)
    require_same(tmp_path / "out", whole(**several, **options))


def kill_after_first_state(path: Path, out_dir: Path, processes: int = 1) -> None:
    """Train until there is a training state, and kill all processes at once."""
    process = start("train.py", path, processes=processes)
    end = time.time() + 200
    while not (out_dir / "training_state.pt").exists() and time.time() < end:
        assert process.poll() is None
        time.sleep(0.005)
    kill(process)


@pytest.mark.slow
def test_another_number_of_processes_may_take_a_run_up(
    config: Config, whole: Whole, tmp_path: Path
) -> None:
    path = config(**TEN, batch_size="4")
    kill_after_first_state(path, tmp_path / "out")
    assert "resuming at step" in succeed("train.py", path, "--batch_size=2", processes=2)
    expected = losses(whole(**TEN, batch_size="8"))
    assert losses(tmp_path / "out") == pytest.approx(expected, abs=1e-5)


def test_a_run_is_not_continued_with_other_settings_or_other_data(
    config: Config, trained: Path, data_dir: Path, tmp_path: Path
) -> None:
    before = {p: p.stat().st_mtime_ns for p in trained.iterdir()}
    options = {"seed": "7", "learning_rate": "0.02", "max_steps": "9"}
    error = fail("train.py", config(**options, out_dir=str(trained)))
    assert "belongs to a run with other settings" in error
    assert "max_steps = 6, not 9; learning_rate = 0.01, not 0.02; seed = 41, not" in error
    for split, other in (("train", "val"), ("val", "train")):
        path = config(data_dir=str(with_other(data_dir, split, tmp_path)), out_dir=str(trained))
        error = fail("train.py", path)
        assert f"the SHA-256 of {split}.bin = " in error and f"{other}.bin" not in error
    assert {p: p.stat().st_mtime_ns for p in trained.iterdir()} == before


def with_other(data_dir: Path, split: str, tmp_path: Path) -> Path:
    """A copy of the data in which two tokens of a split have changed places."""
    folder = tmp_path / f"other_{split}"
    shutil.copytree(data_dir, folder)
    tokens = np.fromfile(folder / f"{split}.bin", token_files.DTYPE)
    tokens[:2] = tokens[1::-1]
    meta = token_files.read_meta(folder)
    meta.splits[split] |= token_files.write_split(folder / f"{split}.bin", [tokens])
    token_files.write_meta(folder, meta)
    return folder


def test_checkpoints_of_a_run_without_its_state_are_not_overwritten(
    config: Config, trained: Path, tmp_path: Path
) -> None:
    out_dir = tmp_path / "old"
    out_dir.mkdir()
    shutil.copy(trained / "checkpoint-3.pt", out_dir)
    assert "no training_state.pt to resume from" in fail("train.py", config(out_dir=str(out_dir)))


def test_a_run_that_diverges_in_its_first_step_saves_nothing(
    config: Config, tmp_path: Path
) -> None:
    steps = {"checkpoint_interval": "1", "eval_interval": "1", "warmup_steps": "0"}
    error = fail("train.py", config(learning_rate="1e30", grad_clip="0", **steps))
    assert "step 1: the validation loss is" in error and "Last good checkpoint: none yet" in error
    assert not list((tmp_path / "out").glob("*.pt"))


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_run_that_diverges_later_keeps_its_last_good_state(
    processes: int, config: Config, tmp_path: Path
) -> None:
    """The first update has rate 0, so its state is good; the second ruins the weights."""
    intervals = {"checkpoint_interval": "1", "eval_interval": "6", "log_interval": "6"}
    path = config(**intervals, learning_rate="1e30", grad_clip="0", warmup_steps="6")
    error = fail("train.py", path, **({"processes": 2} if processes == 2 else {}))
    assert "step 2: the " in error
    assert "Last good checkpoint: " + str(tmp_path / "out" / "checkpoint-1.pt") in error
    state = checkpoint.load(checkpoint.state_path(tmp_path / "out"))
    assert state.step == 1
    assert all(tensor.isfinite().all() for tensor in state.model.values())


@pytest.mark.parametrize("stopped", [False, True])
def test_the_step_that_diverged_is_named_though_it_was_not_logged(
    stopped: bool, config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = config(log_interval="6", eval_interval="6", checkpoint_interval="6", grad_clip="0")
    run = opened_run(path)

    def ruinous(step: int, _: Settings) -> float:
        if step == 4 and stopped:
            run.stop_signals.append(signal.SIGTERM)
        return 1e30

    monkeypatch.setattr(train, "learning_rate_at", ruinous)
    blocks = token_files.step_blocks(len(run.train_blocks), 8, run.settings.seed, 1)
    with pytest.raises(UserError, match="step 2: the loss is nan") as error:
        trained_here(run)
    assert f"the step read the blocks {', '.join(map(str, blocks))} of train.bin" in str(
        error.value
    )
    assert not list((tmp_path / "out").glob("*.pt"))


def test_a_gradient_that_no_loss_scale_makes_finite_is_an_error(config: Config) -> None:
    path = config(dtype="float16", max_steps="60", eval_interval="60", checkpoint_interval="60")
    run = opened_run(path)
    weight = run.model.transformer.ln_f.weight
    weight.register_hook(lambda gradient: torch.full_like(gradient, math.inf))
    before = weight.clone()
    with pytest.raises(UserError, match="the gradient norm at any loss scale is inf"):
        trained_here(run)
    assert 16 + 20 <= log.read(Path(run.settings.out_dir))[-1]["step"] <= 16 + 21
    assert torch.equal(weight, before), "no step was taken"


def test_too_little_memory_is_an_error_with_what_helps(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail_to_allocate(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nMore.")

    monkeypatch.setattr(train, "update", fail_to_allocate)
    with pytest.raises(UserError, match=r"Tried to allocate 2 GiB\.\).*smaller --batch_size="):
        train.main(load("train.py", [str(config())])[0])


MAY_DIFFER = {"device", "data_dir", "out_dir", "tracker", "tracker_project", "sample_seed"}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("learning_rate", 0.5), ("dtype", "float16"), ("batch_size", 1), ("eval_interval", 2)),
        *(("the SHA-256 of train.bin", "0"), ("the SHA-256 of val.bin", "0")),
        ("the step to resume from", 3),
    ],
)
def test_another_setting_file_or_step_of_one_process_is_refused(
    name: str, value: object, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gather(_: World, facts: dict[str, object]) -> list[dict[str, object]]:
        assert name in facts and not MAY_DIFFER & facts.keys()
        return [facts, facts | {name: value}]

    run = opened_run(config())
    monkeypatch.setattr(World, "gather", gather)
    with pytest.raises(UserError, match=f"process 1 has {name} = {value!r}, process 0 has "):
        train.require_agreement(run)


def test_processes_with_another_option_are_refused(config: Config, tmp_path: Path) -> None:
    """As on two machines, of which one was given another option."""
    script = tmp_path / "each.sh"
    options = "[ $RANK = 0 ] && option=--eval_blocks=4 || option=--eval_blocks=5"
    script.write_text(f"{options}\nexec {sys.executable} {ROOT / 'train.py'} {config()} $option\n")
    done = run("--no-python", "bash", script, processes=2)
    assert done.returncode == 1
    assert "error: process 1 has eval_blocks = 5, process 0 has 4" in done.stderr
    assert not list((tmp_path / "out").glob("*.pt"))


def test_processes_take_turns_at_the_micro_batches_of_a_step(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, read, load_blocks = opened_run(config(batch_size="2")), [], train.load

    def noted(blocks: np.ndarray, indices: np.ndarray, device: torch.device) -> torch.Tensor:
        read.append(indices.tolist())
        return load_blocks(blocks, indices, device)

    monkeypatch.setattr(train, "load", noted)
    monkeypatch.setattr(run.model, "no_sync", contextlib.nullcontext, raising=False)
    for rank in (0, 1):
        loss_of(run, 3, rank, size=2)
    first, second, third, fourth = run.blocks(3).reshape(4, 2).tolist()
    assert read == [first, third, second, fourth]


@pytest.mark.parametrize(
    ("batch_size", "processes", "advice"),
    [
        ("8", 2, "Use a --batch_size= of 1, 2, 4, or another number of processes."),
        ("4", 3, "Use another number of processes."),
    ],
)
def test_processes_that_cannot_share_a_step_are_told_what_would_do(
    batch_size: str, processes: int, advice: str, config: Config
) -> None:
    settings = load("train.py", [str(config(batch_size=batch_size))])[0]
    with pytest.raises(UserError) as error:
        train.open_run(settings, World(size=processes, local_size=processes))
    assert str(error.value) == (
        f"{processes} processes cannot take equal shares of a step of 8 blocks in micro-batches "
        f"of {batch_size}. {advice}"
    )


@pytest.mark.slow
def test_processes_compiled_in_16_bits_train_the_same_model(
    config: Config, whole: Whole, tmp_path: Path
) -> None:
    """The README's own combination, on a model of more than one bucket of gradients."""
    options = {"dropout": "0.0", "batch_size": "2", "n_embd": "192", "learning_rate": "0.001"}
    path = config(**BFLOAT16, **options, compile="true")
    succeed("train.py", path, processes=2, timeout=390)
    expected = losses(whole(processes=2, **BFLOAT16, **options))
    assert losses(tmp_path / "out") == pytest.approx(expected, rel=2e-3)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_gpu_trains_the_same_model(
    dtype: str, config: Config, whole: Whole, tmp_path: Path
) -> None:
    options = {"device": "cuda", "dtype": dtype, "compile": "true", "dropout": "0.0"}
    succeed("train.py", config(**options))
    expected = losses(whole(dropout="0.0"))
    assert losses(tmp_path / "out") == pytest.approx(expected, rel=1e-2)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_the_host_never_waits_for_the_gpu_within_a_step(dtype: str, config: Config) -> None:
    run = opened_run(config(device="cuda", dtype=dtype, compile="true"))
    train.wrap(run)
    for step in range(3):  # compiles, and makes the optimizer's state
        run.step = step
        train.update(run, 1e-3)
    torch.cuda.set_sync_debug_mode("error")
    try:
        train.update(run, 1e-3)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_two_gpus_go_on_from_where_they_were_stopped(
    dtype: str, config: Config, whole: Whole, tmp_path: Path
) -> None:
    options = {"device": "cuda", "dtype": dtype, "compile": "true", "max_steps": "12"}
    path = config(**options, batch_size="2")
    kill_after_first_state(path, tmp_path / "out", 2)
    succeed("train.py", path, processes=2)
    expected = losses(whole(processes=2, **options, batch_size="2"))
    assert losses(tmp_path / "out") == pytest.approx(expected, rel=1e-3)
