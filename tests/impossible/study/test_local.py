"""Runs at a time on one machine: real processes, with small scripts in place of the commands."""

import dataclasses
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import ROOT, wait_for

from impossible import files
from impossible.errors import UserError
from impossible.study import local, results, states
from impossible.study import plan as plans
from impossible.study.local import Stop
from impossible.study.plan import Command, Plan, Run

Scripts = dict[str, list[str]]  # language -> the scripts of its runs, one after the other
NOTE = "import sys, time, pathlib; out = pathlib.Path(sys.argv[1]); "


class Script(Command):
    """A script in place of a command; its argument is the folder of the run."""

    @property
    def line(self) -> list[str]:
        return [sys.executable, "-c", NOTE + self.script, *self.arguments]


class Scripted(Plan):
    """A plan whose commands are scripts."""

    scripts: Scripts

    def commands(self, run: Run) -> list[Command]:
        return [Script(script, [str(run.folder)]) for script in self.scripts[run.language]]


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scripts have none."""
    monkeypatch.setattr(states, "digest", lambda run, command: "")


@pytest.fixture
def scripted(tmp_path: Path) -> Callable[..., Plan]:
    """Makes a plan of two seeds for each of these languages."""

    def make(scripts: Scripts, *options: str) -> Plan:
        config = tmp_path / "study.py"
        config.write_text(f"languages = {list(scripts)}\nseeds = [1, 2]\ndevice = 'cpu'\n")
        options = (f"--study_dir={tmp_path / 'study'}", "--at_once=2", *options)
        found = plans.read([str(config), *options], "usage")
        plans.write_configs(found)
        made = Scripted(**vars(found))
        object.__setattr__(made, "scripts", scripts)
        return made

    return make


@pytest.fixture(autouse=True)
def own_signals() -> None:
    """A study takes note of signals; pytest gets them back."""
    before = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    signal.signal(signal.SIGINT, signal.default_int_handler)  # `&` in a script has it ignored
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def words(plan: Plan) -> dict[str, str]:
    return {r.name: results.state_of(plan, r, False, {}) for r in plan.runs}


def test_commands_follow_each_other_and_so_many_runs_are_executed_at_a_time(
    scripted: Callable[..., Plan], tmp_path: Path
) -> None:
    note = (
        "import os; log = open(out.parent / 'log', 'a'); name = out.name; "
        "print('begin', name, file=log, flush=True); time.sleep(0.5); "
        "print('end', name, file=log, flush=True); print(os.environ['OMP_NUM_THREADS'])"
    )
    plan = scripted({"no_shuffle": [note, note + "  # again"], "no_reverse": [note]})
    local.execute(plan, Stop())
    lines = (tmp_path / "study" / "runs" / "log").read_text().splitlines()
    open_runs: set[str] = set()
    most = 0
    for line in lines:
        kind, name = line.split()
        open_runs.add(name) if kind == "begin" else open_runs.remove(name)
        most = max(most, len(open_runs))
    assert most == 2
    assert len(lines) == 2 * (2 * 2 + 2)
    assert set(words(plan).values()) == {"done"}
    threads = str(max(1, local.cores() // 2))
    assert all(states.last_line(run.output) == threads for run in plan.runs)
    assert all(sum(states.read(run.folder).seconds.values()) >= 0.5 for run in plan.runs)

    local.execute(plan, Stop())  # nothing is left to do
    assert (tmp_path / "study" / "runs" / "log").read_text().splitlines() == lines


def test_a_run_that_fails_does_not_stop_the_others_and_is_tried_again_on_request(
    scripted: Callable[..., Plan], capfd: pytest.CaptureFixture[str]
) -> None:
    fails = "print('a', 'b'); (out / 'ok').exists() or sys.exit('error: no memory. Do this.')"
    plan = scripted({"no_shuffle": [fails], "no_reverse": ["print('well')"]})
    local.execute(plan, Stop())
    assert list(words(plan).values()) == ["failed", "failed", "done", "done"]
    run = plan.runs[0]
    assert states.read(run.folder).failed.endswith(": no memory. Do this.")
    told = capfd.readouterr().out
    assert "no_shuffle-seed-1: failed. " in told
    assert "no memory. Do this.\n" in told
    assert "(2 of 4 runs are done)" in told

    for one in plan.runs:
        (one.folder / "ok").touch()
    local.execute(plan, Stop())
    assert list(words(plan).values()) == ["failed", "failed", "done", "done"], "not by itself"
    states.forget_failure(run)
    local.execute(plan, Stop())
    assert list(words(plan).values()) == ["done", "failed", "done", "done"]


def test_a_run_that_is_killed_is_resumed_but_not_for_ever(
    scripted: Callable[..., Plan],
) -> None:
    once = (
        "import os; first = not (out / 'x').exists(); (out / 'x').touch(); "
        "first and os.kill(os.getpid(), 9)"
    )
    always = "import os; open(out / 'y', 'a').write('.'); os.kill(os.getpid(), 9)"
    plan = scripted({"no_shuffle": [once], "no_reverse": [always]})
    local.execute(plan, Stop())
    assert list(words(plan).values()) == ["done", "done", "failed", "failed"]
    assert (plan.runs[2].folder / "y").read_text() == "..."
    assert "perhaps because memory ran out" in states.read(plan.runs[2].folder).failed


def test_ctrl_c_asks_all_runs_to_end_and_a_second_one_ends_them(
    scripted: Callable[..., Plan],
) -> None:
    saves = (
        "import signal; signal.signal(signal.SIGTERM, lambda *_: ((out / 'saved').touch(), "
        "sys.exit(75))); (out / 'ready').touch(); time.sleep(60)"
    )
    hangs = (
        "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); (out / 'ready').touch(); "
    )
    hangs += "time.sleep(60)"
    plan = scripted({"no_shuffle": [saves]})

    def interrupt(times: int) -> None:
        wait_for(lambda: all((run.folder / "ready").exists() for run in plan.runs))
        for _ in range(times):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.5)

    for scripts, times in (([saves], 1), ([hangs], 2)):
        plan = scripted({"no_shuffle": scripts})
        for run in plan.runs:
            (run.folder / "ready").unlink(missing_ok=True)
        stop, thread = Stop(), threading.Thread(target=interrupt, args=(times,))
        thread.start()
        began = time.monotonic()
        local.execute(plan, stop)
        thread.join()
        assert time.monotonic() - began < 30
        assert list(words(plan).values()) == ["interrupted"] * 2
    assert all((run.folder / "saved").exists() for run in plan.runs)


def test_a_run_that_another_process_writes_to_waits_for_it(
    scripted: Callable[..., Plan], capfd: pytest.CaptureFixture[str]
) -> None:
    plan = scripted({"no_shuffle": ["(out / 'x').touch()"]})
    holds = (
        "import sys, time; from pathlib import Path; from impossible import files\n"
        "with files.locked(Path(sys.argv[1])):\n    print('held', flush=True); time.sleep(3)"
    )
    command = [sys.executable, "-c", holds, str(plan.runs[0].folder)]
    other = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE)
    other.stdout.readline()
    local.execute(plan, Stop())
    assert other.poll() == 0, "it has ended"
    assert "no_shuffle-seed-1: waiting for another process" in capfd.readouterr().out
    assert set(words(plan).values()) == {"done"}


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells children of a parent's death")
def test_commands_end_with_the_process_that_started_them(tmp_path: Path) -> None:
    ending = (
        "import signal, sys, time\n"
        f"def end(*_): open({str(tmp_path / 'saved')!r}, 'w').close(); sys.exit(75)\n"
        "signal.signal(signal.SIGTERM, end); print('ready', flush=True); time.sleep(60)"
    )
    starts = (
        "import sys, time; from pathlib import Path; from impossible.study import children, plan\n"
        "class Script(plan.Command):\n"
        "    line = property(lambda self: [sys.executable, '-c', self.script])\n"
        f"children.start(Script({ending!r}, []), Path({str(tmp_path / 'output.txt')!r}), {{}})\n"
        "time.sleep(60)"
    )
    parent = subprocess.Popen([sys.executable, "-c", starts], cwd=ROOT)
    output = tmp_path / "output.txt"
    wait_for(lambda: output.exists() and output.read_text().endswith("ready\n"))
    parent.kill()
    parent.wait()
    wait_for((tmp_path / "saved").exists, seconds=20)


def test_gpus_are_shared_out(
    scripted: Callable[..., Plan], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = scripted({"no_shuffle": []})

    def shares(visible: str, gpus: int, at_once: int = 0) -> list[str]:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        asked = dataclasses.replace(made.settings, gpus=gpus, at_once=at_once)
        plan = plans.Plan(asked, made.runs, "", "", {"device": "cuda"}, gpus)
        return [share["CUDA_VISIBLE_DEVICES"] for share in local.shares_of(plan)]

    assert shares("0,1,2,3", 1) == ["0", "1", "2", "3"]
    assert shares("4,5,6,7", 2) == ["4,5", "6,7"]
    assert shares("4,5,6", 2) == ["4,5"]
    assert shares("GPU-1,GPU-2", 1, at_once=4) == ["GPU-1", "GPU-2", "GPU-1", "GPU-2"]
    with pytest.raises(UserError, match=r"and this machine has 1\. Set --gpus=1 or fewer"):
        shares("0", 2)


def test_the_state_of_a_run_in_a_word(
    scripted: Callable[..., Plan], monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = scripted({"no_shuffle": ["pass"]})
    run, other = plan.runs
    command = plan.commands(run)[0]

    def word(is_open: bool = False, **jobs: str) -> str:
        return results.state_of(plan, run, is_open, jobs)

    assert word() == "waiting"
    assert results.state_of(plan, run, False, {run.name: "PENDING"}) == "queued"
    states.begin(run, command)
    assert word(is_open=True) == "running"
    assert word(is_open=False) == "interrupted", "the study was killed"
    assert results.state_of(plan, run, False, {run.name: "RUNNING"}) == "running"
    run.output.write_text("")
    assert states.end(run, command, -9, False) == "interrupted"
    states.begin(run, command)
    assert states.end(run, command, 3, False) == "failed"
    states.begin(run, command)
    assert states.end(run, command, 0, False) == "done"
    assert results.state_of(plan, other, True, {}) == "waiting"
    monkeypatch.setattr(states, "digest", lambda run, command: "of other settings")
    assert word() == "outdated", "not as if it had been interrupted"
    assert not files.is_locked(run.folder)
