"""A run that is stopped, killed or damaged, at any moment, ends as if nothing had been."""

import contextlib
import dataclasses
import hashlib
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import ROOT, fail, launcher, run, start, succeed, wait_for
from test_train import kill_after_first_state, losses, same, weights

import train
from impossible import checkpoint, files, log
from impossible.settings import load

Config = Callable[..., Path]
LAST = 18
START = 8.0  # seconds that a start takes, and a little more
LONG = {"max_steps": str(LAST), "checkpoint_interval": "2", "eval_interval": "10"}


def digest(out_dir: Path, step: int) -> str:
    """The SHA-256 of the weights of a checkpoint."""
    found = hashlib.sha256()
    for name, tensor in sorted(weights(out_dir, step).items()):
        found.update(name.encode() + tensor.numpy().tobytes())
    return found.hexdigest()


def children(pid: int) -> list[int]:
    done = subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True, check=False)
    return [int(line) for line in done.stdout.split()]


def last_step(out_dir: Path) -> int:
    records = log.read(out_dir)
    return records[-1]["step"] if records else -1


def wait_for_step(out_dir: Path, step: int) -> None:
    wait_for(lambda: last_step(out_dir) >= step)


def kill(victim: str, process: subprocess.Popen[str]) -> None:
    """kill -9 the launcher, one of its workers, or all of them."""
    workers = children(process.pid)
    chosen = {"launcher": [process.pid], "worker": workers[-1:], "all": [process.pid, *workers]}
    for pid in chosen[victim]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.communicate()
    wait_for(lambda: not any(alive(pid) for pid in workers), 60)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def killed_often(
    times: int, steps: int, config: Config, tmp_path: Path
) -> list[tuple[str, str, int, int]]:
    """Kill a run of two processes again and again at random moments, until it ends.

    Every fourth kill comes soon after a start, the others in training or saving. Returns for each:
    whom, doing what, the last step before it, and the step of the state that was left (0: none
    yet). The end is compared with that of a run that was left alone.
    """
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    options = {"max_steps": str(steps), "checkpoint_interval": "1", "batch_size": "2"}
    succeed("train.py", config(**options, out_dir=str(whole)), processes=2)
    path = config(**options, out_dir=str(killed))
    rng = random.Random(times)
    seen = []
    for number in range(times):
        process = start("train.py", path, processes=2)
        first = last_step(killed)
        is_start = number % 4 == 3
        if is_start:
            time.sleep(rng.uniform(0, START))
        else:
            wait_for_step(killed, min(first + rng.randint(1, 4), steps - 2))
            time.sleep(rng.uniform(0, 0.05))
        writing = [p.name for p in killed.glob("*.unfinished")]
        victim = ("worker", "all", "launcher")[number % 3]
        kill(victim, process)
        state = checkpoint.state_path(killed)
        saved = checkpoint.load(state).step if state.exists() else 0
        doing = f"writing {writing[0]}" if writing else "starting" if is_start else "training"
        seen.append((victim, doing, last_step(killed), saved))
    printed = succeed("train.py", path, processes=2)
    assert "resuming at step" in printed
    assert digest(killed, steps) == digest(whole, steps)
    assert losses(killed) == losses(whole)
    assert [record["step"] for record in log.read(killed)] == list(range(steps + 1)), "each once"
    assert not list(killed.glob("*.unfinished"))
    return seen


def test_a_run_killed_three_times_ends_with_the_same_weights(
    config: Config, tmp_path: Path
) -> None:
    killed_often(3, 18, config, tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_run_killed_twenty_times_ends_with_the_same_weights(
    config: Config, tmp_path: Path
) -> None:
    for row in killed_often(20, 160, config, tmp_path):
        print("|", " | ".join(map(str, row)), "|")


@pytest.mark.parametrize(
    "number",
    [
        signal.SIGTERM,
        signal.SIGHUP,
        pytest.param(signal.SIGUSR1, marks=pytest.mark.slow),
        pytest.param(signal.SIGUSR2, marks=pytest.mark.slow),
        pytest.param(signal.SIGXCPU, marks=pytest.mark.slow),
        pytest.param(signal.SIGINT, marks=pytest.mark.slow),
    ],
)
def test_a_signal_saves_the_last_whole_step_and_the_run_goes_on(
    number: signal.Signals, config: Config, trained: Path, tmp_path: Path
) -> None:
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    options = LONG | {"checkpoint_interval": "60", "max_steps": "60"}
    succeed("train.py", config(**options, out_dir=str(whole)))
    path = config(**options, out_dir=str(stopped))
    process = start("train.py", path)
    wait_for_step(stopped, 7)
    process.send_signal(number)
    printed, errors = process.communicate(timeout=60)
    assert process.returncode == train.EXIT_STOPPED == 75, errors
    assert f"{number.name}: stopping, and saving the last whole step" in errors
    state = checkpoint.load(checkpoint.state_path(stopped))
    assert state.step == last_step(stopped) >= 7
    assert f"stopped after step {state.step}, as requested" in printed.splitlines()[-1]
    assert not list(stopped.glob("checkpoint-*.pt"))
    succeed("train.py", path)
    assert losses(stopped) == losses(whole)
    assert digest(stopped, 60) == digest(whole, 60)
    kept = [checkpoint.list_checkpoints(folder) for folder in (whole, stopped)]
    assert [path.name for path in kept[1]] == [path.name for path in kept[0]]


def test_a_signal_that_was_ignored_at_the_start_stays_ignored(
    config: Config, tmp_path: Path
) -> None:
    path = config(**LONG | {"max_steps": "60", "checkpoint_interval": "60"})
    process = start("train.py", path, ignored=[signal.SIGHUP])  # as nohup does
    wait_for_step(tmp_path / "out", 3)
    process.send_signal(signal.SIGHUP)
    printed, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert "stopping" not in errors
    assert "done in" in printed


@pytest.mark.parametrize("at", [0, *(pytest.param(n, marks=pytest.mark.slow) for n in (2, 4)), 6])
def test_a_run_that_is_stopped_while_validating_goes_on_there(
    at: int, config: Config, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Validation is at steps 0, 2, 3, 4 and 6; checkpoints are at 3 and 6."""
    settings = load("train.py", [str(config(eval_interval="2", eval_blocks="0"))])[0]
    whole = dataclasses.replace(settings, out_dir=str(tmp_path / "whole"))
    train.main(whole)
    right, seen = train.validate, []

    def validate(run: train.Run) -> float | None:
        seen.append(len(seen))
        if seen[-1] == [0, 2, 3, 4, 6].index(at):
            os.kill(os.getpid(), signal.SIGTERM)
        return right(run)

    monkeypatch.setattr(train, "validate", validate)
    numbers = [getattr(signal, name) for name in train.STOP_SIGNALS]
    handlers = {number: signal.getsignal(number) for number in numbers}
    try:
        with pytest.raises(SystemExit) as end:
            train.main(settings)
        assert end.value.code == train.EXIT_STOPPED
        out_dir = Path(settings.out_dir)
        if at:
            state = checkpoint.load(checkpoint.state_path(out_dir))
            assert (state.step, state.state["unfinished_record"]["step"]) == (at, at)
            assert last_step(out_dir) < at, "its record waits for the loss"
            assert not checkpoint.path_of(out_dir, at).exists()
        train.main(settings)
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    assert losses(out_dir) == losses(Path(whole.out_dir))
    assert [r.get("val_loss") for r in log.read(out_dir)] == [
        r.get("val_loss") for r in log.read(Path(whole.out_dir))
    ]
    for step in (3, 6):
        assert digest(out_dir, step) == digest(Path(whole.out_dir), step)


@pytest.mark.slow
def test_processes_that_are_stopped_while_validating_agree(config: Config, tmp_path: Path) -> None:
    """Nearly all the time of this run is validation, of unequal shares."""
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    options = LONG | {"eval_interval": "1", "eval_blocks": "0", "batch_size": "2"}
    succeed("train.py", config(**options, out_dir=str(whole)), processes=2)
    path = config(**options, out_dir=str(stopped))
    for step in (2, 9):
        process = start("train.py", path, processes=2)
        wait_for_step(stopped, step)
        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
        printed, _ = process.communicate(timeout=60)
        assert time.monotonic() - began < 15
        assert "as requested" in printed
    succeed("train.py", path, processes=2)
    assert losses(stopped) == losses(whole)
    assert digest(stopped, LAST) == digest(whole, LAST)


@pytest.mark.parametrize("target", ["one worker", "the launcher", "all, by Ctrl-C"])
def test_all_processes_stop_after_the_same_step(
    target: str, config: Config, tmp_path: Path
) -> None:
    path = config(**LONG | {"max_steps": "2000", "checkpoint_interval": "2000"}, batch_size="2")
    out_dir = tmp_path / "out"
    process = start("train.py", path, processes=2)
    wait_for_step(out_dir, 5)
    if target == "one worker":
        os.kill(children(process.pid)[-1], signal.SIGUSR1)
    elif target == "all, by Ctrl-C":
        for pid in [*children(process.pid), process.pid]:
            os.kill(pid, signal.SIGINT)
    else:
        process.send_signal(signal.SIGTERM)
    printed, _ = process.communicate(timeout=60)
    assert process.returncode != 0
    step = checkpoint.load(checkpoint.state_path(out_dir)).step
    assert f"stopped after step {step}, as requested" in printed
    assert step == last_step(out_dir)


def as_two(path: Path) -> list[subprocess.Popen[str]]:
    """Two processes of one run without torchrun, so that each has an exit code of its own."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    places = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"} | address
    ranks = [{"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(2)]
    return [start("train.py", path, env=places | rank) for rank in ranks]


def test_all_processes_stop_with_75_right_after_a_saved_step(
    config: Config, tmp_path: Path
) -> None:
    options = {"checkpoint_interval": "1", "eval_interval": "2000", "batch_size": "2"}
    processes = as_two(config(max_steps="2000", **options))
    wait_for_step(tmp_path / "out", 3)
    for process in processes:
        process.send_signal(signal.SIGTERM)
    outputs = [process.communicate(timeout=60) for process in processes]
    assert [process.returncode for process in processes] == [75, 75], outputs
    step = checkpoint.load(checkpoint.state_path(tmp_path / "out")).step
    assert f"stopped after step {step}, as requested" in outputs[0][0]
    assert checkpoint.path_of(tmp_path / "out", step).exists()


def test_a_second_ctrl_c_ends_the_processes_of_torchrun(config: Config, tmp_path: Path) -> None:
    code = """
import runpy, sys, time
from impossible import checkpoint
checkpoint.save = lambda *_: time.sleep(600)  # a stop that takes long
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
    (tmp_path / "slow.py").write_text(code)
    path = config(**LONG | {"max_steps": "2000", "checkpoint_interval": "2000"}, batch_size="2")
    env = {"PYTHONPATH": str(ROOT)}
    process = start(tmp_path / "slow.py", "train.py", path, processes=2, env=env)
    wait_for_step(tmp_path / "out", 2)
    workers = children(process.pid)
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    time.sleep(1)
    assert any(map(alive, workers)), "the first one waits for the step to be saved"
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert time.monotonic() - began < 8, "torchrun kills them after 30 s"
    assert not any(map(alive, workers))


def test_torchrun_restarts_a_run_where_it_was(config: Config, tmp_path: Path) -> None:
    whole, restarted = tmp_path / "whole", tmp_path / "restarted"
    options = LONG | {"batch_size": "2"}
    succeed("train.py", config(**options, out_dir=str(whole)), processes=2)
    path = config(**options, out_dir=str(restarted))
    command = [*launcher(2), "--max-restarts=2", ROOT / "train.py", path]
    process = subprocess.Popen(
        command, env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE, text=True
    )
    wait_for((restarted / "training_state.pt").exists)
    os.kill(children(process.pid)[-1], signal.SIGKILL)
    printed, _ = process.communicate(timeout=200)
    assert process.returncode == 0
    assert "resuming at step" in printed
    assert digest(restarted, LAST) == digest(whole, LAST)
    assert losses(restarted) == losses(whole)


@pytest.mark.slow
def test_two_machines_give_the_losses_of_one(config: Config, tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    succeed("train.py", config(batch_size="2", out_dir=str(one)), processes=2)
    path = config(batch_size="2", out_dir=str(two))
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    agents = [
        subprocess.Popen(
            [
                *launcher(1),
                *("-m", "torch.distributed.run", "--nnodes=2", "--nproc_per_node=1"),
                *("--rdzv_backend=c10d", f"--rdzv_endpoint=127.0.0.1:{port}", "--rdzv_id=two"),
                *(ROOT / "train.py", path),
            ],
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        for _ in range(2)
    ]
    assert [agent.wait(timeout=200) for agent in agents] == [0, 0]
    assert losses(two) == losses(one)
    assert digest(two, 6) == digest(one, 6)


@pytest.mark.parametrize(
    ("lost", "told"),
    [
        ("checkpoint-6.pt", "is trained already"),  # between the state and its checkpoint
        ("training_state.pt", "resuming at step 3"),  # between the names of two states
    ],
)
def test_a_crash_between_two_files_is_made_good(
    lost: str, told: str, config: Config, trained: Path, tmp_path: Path
) -> None:
    out_dir = tmp_path / "crashed"
    shutil.copytree(trained, out_dir)
    (out_dir / lost).unlink()
    assert told in succeed("train.py", config(out_dir=str(out_dir)))
    assert same(weights(out_dir, 6), weights(trained, 6))


def damaged(trained: Path, tmp_path: Path, *names: str) -> Path:
    """A copy of a run in which one bit in the middle of some files is another."""
    out_dir = tmp_path / "damaged"
    shutil.copytree(trained, out_dir)
    for name in names:
        data = bytearray((out_dir / name).read_bytes())
        data[len(data) // 2] ^= 1
        (out_dir / name).write_bytes(data)
    return out_dir


def test_a_damaged_state_is_named_and_the_one_before_goes_on(
    config: Config, trained: Path, tmp_path: Path
) -> None:
    out_dir = damaged(trained, tmp_path, "training_state.pt")
    error = fail("train.py", config(out_dir=str(out_dir)))
    assert "training_state.pt is damaged" in error
    assert "(the checksum of its part" in error
    assert "restore it from training_state.previous.pt, by renaming that" in error
    shutil.move(out_dir / "training_state.previous.pt", out_dir / "training_state.pt")
    succeed("train.py", config(out_dir=str(out_dir)))
    assert same(weights(out_dir, 6), weights(trained, 6))


def test_a_state_that_was_cut_short_is_named(config: Config, trained: Path, tmp_path: Path) -> None:
    out_dir = damaged(trained, tmp_path)
    data = (out_dir / "training_state.pt").read_bytes()
    (out_dir / "training_state.pt").write_bytes(data[: len(data) // 2])
    error = fail("train.py", config(out_dir=str(out_dir)))
    assert "training_state.pt is damaged" in error
    assert "--out_dir=" in error


def test_a_damaged_checkpoint_is_named_and_not_exported(trained: Path, tmp_path: Path) -> None:
    out_dir = damaged(trained, tmp_path, "checkpoint-3.pt")
    error = fail("convert_to_hf.py", f"--out_dir={out_dir}")
    assert "checkpoint-3.pt is damaged" in error
    assert "the checksum of its part" in error
    assert "restore it from a copy, or delete it if training_state.pt has the same step" in error


@pytest.mark.parametrize(
    ("megabytes", "processes"),
    [
        (1, 2),
        pytest.param(1, 1, marks=pytest.mark.slow),
        pytest.param(9, 1, marks=pytest.mark.slow),
    ],
)
def test_a_disk_that_takes_no_more_costs_nothing_that_was_saved(
    megabytes: int, processes: int, config: Config, tmp_path: Path
) -> None:
    """No file may grow beyond a size: a checkpoint has 3 MB here, a training state 10 MB."""
    whole, full = tmp_path / "whole", tmp_path / "full"
    succeed("train.py", config(**LONG, out_dir=str(whole)))
    path = config(**LONG, out_dir=str(full))
    limits = {"largest_file": megabytes << 20, "processes": processes}
    assert "training_state.pt: File too large" in fail("train.py", path, **limits)
    assert not list(full.glob("*.pt*")), "no file that looks whole"

    kill_after_first_state(path, full)
    before = {p.name: files.sha256(p) for p in full.glob("*.pt")}
    step = checkpoint.load(checkpoint.state_path(full)).step
    # Of the next state; or of the checkpoint that the kill came before.
    assert re.search(
        r"(training_state|checkpoint-2)\.pt: File too large", fail("train.py", path, **limits)
    )
    after = {p.name: files.sha256(p) for p in full.glob("*.pt*")}
    after.pop(
        "checkpoint-2.pt", None
    )  # there was room for the checkpoint that the kill came before
    before.pop("checkpoint-2.pt", None)
    assert after == before
    assert f"resuming at step {step}" in succeed("train.py", path)
    assert digest(full, LAST) == digest(whole, LAST)


def test_two_processes_do_not_write_to_one_folder(config: Config, tmp_path: Path) -> None:
    path = config(max_steps="100000", checkpoint_interval="100000")
    first = start("train.py", path)
    wait_for_step(tmp_path / "out", 1)
    assert "another process is writing to" in fail("train.py", path)
    first.send_signal(signal.SIGTERM)
    first.communicate(timeout=60)


def test_what_a_killed_process_left_half_written_is_removed(
    config: Config, trained: Path, tmp_path: Path
) -> None:
    out_dir = tmp_path / "left"
    shutil.copytree(trained, out_dir)
    (out_dir / "checkpoint-9.pt.unfinished").write_bytes(b"half")
    succeed("train.py", config(out_dir=str(out_dir)))
    assert not list(out_dir.glob("*.unfinished"))


def test_the_last_line_of_a_crash_says_how_to_go_on(config: Config, tmp_path: Path) -> None:
    code = """
import runpy, sys
import model
def forward(*_):
    raise KeyError("a bug")
model.GPT.forward = forward
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
    done = run("-c", code, "train.py", config())
    assert done.returncode == 1
    assert "KeyError" in done.stderr
    assert done.stderr.splitlines()[-1] == (
        "error: unexpected error (see above). The saved files are intact: once the cause is "
        "removed, run the same command again to resume."
    )
