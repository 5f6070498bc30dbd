"""A run that is stopped, killed or damaged, at any moment, ends as if nothing had happened."""

import contextlib
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import (
    ROOT,
    children,
    fail,
    launcher,
    own_signals,
    run,
    start,
    start_each,
    succeed,
    wait_for,
)
from test_train import require_same, same, weights

import model
import train
from impossible import checkpoint, files, log
from impossible.settings import load

Config = Callable[..., Path]
Whole = Callable[..., Path]
START = 8.0  # seconds that a start takes, and a little more
LONG = {"max_steps": "18", "checkpoint_interval": "2", "eval_interval": "10"}
OFTEN = {"checkpoint_interval": "1", "batch_size": "2"}
ENDLESS = {"max_steps": "2000", "checkpoint_interval": "2000", "eval_interval": "2000"}


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def last_step(out_dir: Path) -> int:
    records = log.read(out_dir)
    return records[-1]["step"] if records else -1


def wait_for_step(out_dir: Path, step: int) -> None:
    wait_for(lambda: last_step(out_dir) >= step)


def kill(victim: str, process: subprocess.Popen[str]) -> None:
    """kill -9 the launcher, one of its workers, or all of them."""
    if victim == "worker":
        wait_for(lambda: children(process.pid))
    workers = children(process.pid)
    chosen = {"launcher": [process.pid], "worker": workers[-1:], "all": [process.pid, *workers]}
    for pid in chosen[victim]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.communicate()
    wait_for(lambda: not any(alive(pid) for pid in workers), 60)


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("times", "steps"), [(2, 12), pytest.param(20, 160, marks=pytest.mark.slow)]
)
def test_a_run_killed_again_and_again_ends_with_the_same_weights(
    times: int, steps: int, config: Config, whole: Whole, tmp_path: Path
) -> None:
    """Two processes; every fourth kill comes soon after a start, the others while training."""
    options = OFTEN | {"max_steps": str(steps)}
    out_dir, path = tmp_path / "out", config(**options)
    rng = random.Random(times)
    for number in range(times):
        process = start("train.py", path, processes=2)
        first = last_step(out_dir)
        if number % 4 == 3:
            time.sleep(rng.uniform(0, START))
        else:
            wait_for_step(out_dir, min(first + rng.randint(1, 4), steps - 2))
            time.sleep(rng.uniform(0, 0.05))
        writing = [p.name for p in out_dir.glob("*.unfinished")]
        victim = ("worker", "launcher", "all")[number % 3]
        kill(victim, process)
        print(f"killed {victim} after step {last_step(out_dir)}, writing {writing}")
    resumed = run("train.py", path, processes=2)
    assert resumed.returncode == 0 and "resuming at step" in resumed.stdout, resumed.stderr
    require_same(out_dir, whole(processes=2, **options))
    assert [record["step"] for record in log.read(out_dir)] == list(range(steps + 1)), "each once"
    assert not list(out_dir.glob("*.unfinished"))


SLOW_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGXCPU, signal.SIGINT)


@pytest.mark.parametrize(
    "number",
    [signal.SIGHUP, *(pytest.param(number, marks=pytest.mark.slow) for number in SLOW_SIGNALS)],
)
def test_a_signal_saves_the_last_whole_step_and_the_run_goes_on(
    number: signal.Signals, config: Config, whole: Whole, tmp_path: Path
) -> None:
    options, out_dir = LONG | {"checkpoint_interval": "30", "max_steps": "30"}, tmp_path / "out"
    path = config(**options)
    process = start("train.py", path)
    wait_for_step(out_dir, 2)
    process.send_signal(number)
    printed, errors = process.communicate(timeout=60)
    assert process.returncode == train.EXIT_STOPPED == 75, errors
    assert f"{number.name}: stopping, and saving the last whole step" in errors
    state = checkpoint.load(checkpoint.state_path(out_dir))
    assert state.step == last_step(out_dir) >= 2
    assert f"stopped after step {state.step}, as requested" in printed.splitlines()[-1]
    assert not list(out_dir.glob("checkpoint-*.pt"))
    succeed("train.py", path)
    require_same(out_dir, whole(**options))


@pytest.mark.slow
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
    at: int, config: Config, whole: Whole, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Validation is at steps 0, 2, 3, 4 and 6; checkpoints are at 3 and 6."""
    options = {"eval_interval": "2"}
    settings = load("train.py", [str(config(**options))])[0]
    validate, calls, out_dir = train.validate, [], Path(settings.out_dir)

    def interrupted(run: train.Run) -> float:
        assert files.is_locked(out_dir), "no other process writes there"
        calls.append(run.step)
        if calls == [step for step in (0, 2, 3, 4, 6) if step <= at]:
            os.kill(os.getpid(), signal.SIGTERM)
        return validate(run)

    monkeypatch.setattr(train, "validate", interrupted)
    with own_signals():
        with pytest.raises(SystemExit) as end:
            train.main(settings)
        assert end.value.code == train.EXIT_STOPPED
        if at:
            state = checkpoint.load(checkpoint.state_path(out_dir))
            assert (state.step, state.state["unfinished_record"]["step"]) == (at, at)
            assert last_step(out_dir) < at, "its record waits for the loss"
            assert not checkpoint.path_of(out_dir, at).exists()
        train.main(settings)
    require_same(out_dir, whole(**options))


@pytest.mark.slow
def test_processes_that_are_stopped_while_validating_agree(
    config: Config, whole: Whole, tmp_path: Path
) -> None:
    """Nearly all the time of this run is validation, of unequal shares."""
    options = LONG | {"eval_interval": "1", "eval_blocks": "0", "batch_size": "2"}
    path = config(**options)
    for step in (2, 9):
        process = start("train.py", path, processes=2)
        wait_for_step(tmp_path / "out", step)
        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
        printed, _ = process.communicate(timeout=60)
        assert time.monotonic() - began < 15
        assert "as requested" in printed
    succeed("train.py", path, processes=2)
    require_same(tmp_path / "out", whole(processes=2, **options))


@pytest.mark.parametrize(("interval", "to_all"), [("2000", False), ("1", True)])
def test_all_processes_stop_with_75_after_the_same_step(
    interval: str, to_all: bool, config: Config, tmp_path: Path
) -> None:
    """Without torchrun, each has its own exit code. With 1, the last step is saved already."""
    path = config(**ENDLESS | {"checkpoint_interval": interval}, batch_size="2")
    processes = start_each("train.py", path)
    wait_for_step(tmp_path / "out", 2)
    for process in processes if to_all else processes[1:]:
        process.send_signal(signal.SIGUSR1)
    outputs = [process.communicate(timeout=60) for process in processes]
    assert [process.returncode for process in processes] == [75, 75], outputs
    require_stopped(tmp_path / "out", outputs[0][0])


def require_stopped(out_dir: Path, printed: str) -> None:
    """The last step that a stopped run has logged is saved."""
    step = checkpoint.load(checkpoint.state_path(out_dir)).step
    assert f"stopped after step {step}, as requested" in printed
    assert step == last_step(out_dir)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_processes_of_torchrun_stop_after_the_same_step(
    number: signal.Signals, config: Config, tmp_path: Path
) -> None:
    """SIGTERM goes to the launcher alone; Ctrl-C goes to all."""
    process = start("train.py", config(**ENDLESS, batch_size="2"), processes=2)
    wait_for_step(tmp_path / "out", 5)
    for pid in [*(children(process.pid) if number == signal.SIGINT else []), process.pid]:
        os.kill(pid, number)
    printed, _ = process.communicate(timeout=60)
    assert process.returncode != 0
    require_stopped(tmp_path / "out", printed)


@pytest.mark.slow
def test_a_second_ctrl_c_ends_the_processes_of_torchrun(config: Config, tmp_path: Path) -> None:
    code = """
import runpy, sys, time
from impossible import checkpoint
checkpoint.save = lambda *_: time.sleep(600)  # a stop that takes long
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
    (tmp_path / "slow.py").write_text(code)
    path = config(**ENDLESS, batch_size="2")
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


@pytest.mark.slow
def test_torchrun_restarts_a_run_where_it_was(config: Config, whole: Whole, tmp_path: Path) -> None:
    options, out_dir = OFTEN | {"max_steps": "18"}, tmp_path / "out"
    process = subprocess.Popen(
        [*launcher(2), "--max-restarts=2", ROOT / "train.py", config(**options)],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        text=True,
    )
    wait_for((out_dir / "training_state.pt").exists)
    os.kill(children(process.pid)[-1], signal.SIGKILL)
    printed, _ = process.communicate(timeout=200)
    assert process.returncode == 0
    assert "resuming at step" in printed
    require_same(out_dir, whole(processes=2, **options))


def copy(trained: Path, tmp_path: Path) -> Path:
    """A copy of a finished run, as of a process that was killed while it wrote."""
    shutil.copytree(trained, tmp_path / "out")
    (tmp_path / "out" / "checkpoint-9.pt.unfinished").write_bytes(b"half")
    return tmp_path / "out"


@pytest.mark.parametrize(
    ("lost", "message"),
    [
        ("checkpoint-6.pt", "is trained already"),  # between the state and its checkpoint
        ("training_state.pt", "resuming at step 3"),  # between the names of two states
    ],
)
def test_a_crash_between_two_files_is_made_good(
    lost: str, message: str, config: Config, trained: Path, tmp_path: Path
) -> None:
    out_dir = copy(trained, tmp_path)
    (out_dir / lost).unlink()
    assert message in succeed("train.py", config())
    assert same(weights(out_dir, 6), weights(trained, 6))
    assert not list(out_dir.glob("*.unfinished"))


def flip(data: bytes) -> bytes:
    """The same bytes with another bit in the middle."""
    half = len(data) // 2
    return data[:half] + bytes([data[half] ^ 1]) + data[half + 1 :]


@pytest.mark.parametrize("damage", [flip, lambda data: data[: len(data) // 2], lambda data: b""])
def test_a_damaged_state_is_named_and_the_one_before_goes_on(
    damage: Callable[[bytes], bytes], config: Config, trained: Path, tmp_path: Path
) -> None:
    out_dir = copy(trained, tmp_path)
    state = out_dir / "training_state.pt"
    state.write_bytes(damage(state.read_bytes()))
    error = fail("train.py", config())
    assert "training_state.pt is damaged" in error
    assert ("(the checksum of its part" in error) == (damage is flip)
    assert "rename training_state.previous.pt to training_state.pt" in error
    shutil.move(out_dir / "training_state.previous.pt", state)
    succeed("train.py", config())
    assert same(weights(out_dir, 6), weights(trained, 6))


def test_a_damaged_checkpoint_is_named_and_not_exported(trained: Path, tmp_path: Path) -> None:
    path = copy(trained, tmp_path) / "checkpoint-3.pt"
    path.write_bytes(flip(path.read_bytes()))
    error = fail("convert_to_hf.py", f"--out_dir={path.parent}")
    assert "checkpoint-3.pt is damaged" in error
    assert "the checksum of its part" in error
    assert "Restore it from a copy; delete it if training_state.pt has the same step" in error


@pytest.mark.parametrize("is_resumed", [False, True])
@pytest.mark.parametrize(
    ("megabytes", "processes"), [(9, 0), pytest.param(1, 2, marks=pytest.mark.slow)]
)
def test_a_disk_that_takes_no_more_costs_nothing_that_was_saved(
    megabytes: int, processes: int, is_resumed: bool, config: Config, whole: Whole, tmp_path: Path
) -> None:
    """No file may grow beyond a size: a checkpoint has 3 MB here, a training state 10 MB."""
    path, out_dir = config(), tmp_path / "out"
    if is_resumed:  # as after a kill in step 6
        shutil.copytree(whole(processes=processes), out_dir)
        (out_dir / "checkpoint-6.pt").unlink()
        (out_dir / "training_state.previous.pt").replace(out_dir / "training_state.pt")
    before = {path.name: files.sha256(path) for path in out_dir.glob("*.pt*")}
    error = fail("train.py", path, largest_file=megabytes << 20, processes=processes)
    assert "training_state.pt: File too large" in error
    assert {path.name: files.sha256(path) for path in out_dir.glob("*.pt*")} == before
    beginning = "resuming at step 3" if is_resumed else "starting from scratch"
    assert beginning in succeed("train.py", path, processes=processes)
    require_same(out_dir, whole(processes=processes))


def test_the_last_line_of_a_crash_says_how_to_go_on(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model.GPT, "forward", lambda *_: {}["a bug"])
    done = run("train.py", config())
    assert done.returncode == 1
    assert "KeyError" in done.stderr
    assert done.stderr.splitlines()[-1] == (
        "error: unexpected error (see above). The saved files are intact: once the cause is "
        "removed, run the same command again to resume."
    )
