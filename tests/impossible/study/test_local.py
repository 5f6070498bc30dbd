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

import pandas as pd
import pytest
from conftest import ROOT, wait_for

import study
from impossible import checkpoint, files
from impossible.settings import UserError
from impossible.study import children, local, overview, results, states
from impossible.study import plan as plans
from impossible.study.local import Stop
from impossible.study.plan import Command, Plan, Run

Scripts = dict[str, list[str]]  # language -> the scripts of its runs, one after the other
NOTE = "import sys, time, pathlib; out = pathlib.Path(sys.argv[1]); "
# Is killed twice.
TWICE = (
    "import os; log = open(out / '{0}', 'a+'); log.write('.'); log.flush(); log.seek(0); "
    "len(log.read()) < 3 and os.kill(os.getpid(), 9)"
)
# Starts a process of its own, and is killed once.
LEAVES = (
    "import os, subprocess; first = not (out / 'pid').exists(); "
    "first and (out / 'pid').write_text(str(subprocess.Popen(['sleep', '600']).pid)); "
    "first and os.kill(os.getpid(), 9)"
)


class Script(Command):
    """A script in place of a command; its argument is the folder of the run."""

    @property
    def line(self) -> list[str]:
        return [sys.executable, "-c", NOTE + self.script, *self.arguments]


class Scripted(Plan):
    """A plan whose commands are scripts."""

    scripts: Scripts
    preparing = Script("pass", ["."])
    evaluation = "pass"  # of all runs together; its argument is the folder of the results

    def commands(self, run: Run) -> list[Command]:
        return [Script(script, [str(run.folder)]) for script in self.scripts[run.language]]

    def joint(self, runs: list[Run]) -> list[Command]:
        before = "out = pathlib.Path(sys.argv[-1].removeprefix('--eval_dir=')); "
        return [Script(before + self.evaluation, [run.name for run in runs])]


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
    assert states.read(run.folder).failed.endswith(f": no memory. Do this. (in {run.output})")
    told = capfd.readouterr().out
    assert "no_shuffle-seed-1: failed. " in told
    assert "no memory. Do this. (in " in told
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


def test_each_command_of_a_run_has_attempts_of_its_own(scripted: Callable[..., Plan]) -> None:
    plan = scripted({"no_shuffle": [TWICE.format("one"), TWICE.format("two")]})
    local.execute(plan, Stop())
    assert set(words(plan).values()) == {"done"}, "each was killed twice, and three are allowed"
    assert (plan.runs[0].folder / "two").read_text() == "..."


def test_what_a_killed_command_has_started_ends_too(scripted: Callable[..., Plan]) -> None:
    plan = scripted({"no_shuffle": [LEAVES]})
    local.execute(plan, Stop())
    for run in plan.runs:
        pid = int((run.folder / "pid").read_text())
        wait_for(lambda pid=pid: not is_alive(pid), seconds=10)


def is_alive(pid: int) -> bool:
    command = ["ps", "-o", "stat=", "-p", str(pid)]
    state = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    return bool(state.strip()) and not state.startswith("Z")


def test_the_time_of_an_attempt_that_was_killed_with_its_study_counts(
    scripted: Callable[..., Plan],
) -> None:
    plan = scripted({"no_shuffle": ["pass"]})
    run, command = plan.runs[0], plan.commands(plan.runs[0])[0]
    states.begin(run, command)
    run.output.write_text("the last that it printed")
    since = states.read(run.folder).running["since"]
    os.utime(run.output, (since + 40, since + 40))
    states.begin(run, command)  # nobody recorded the end of the attempt before
    assert states.read(run.folder).seconds[command.key] == pytest.approx(40, abs=0.1)
    assert states.end(run, command, 0, False) == "done"
    assert states.read(run.folder).seconds[command.key] == pytest.approx(40, abs=5)


class Torchrun(Script):
    """The script in two processes of torchrun."""

    @property
    def line(self) -> list[str]:
        script = Path(self.arguments[0]) / "script.py"
        script.write_text(NOTE + self.script)
        torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
        return [sys.executable, *torchrun, str(script), *self.arguments]


def test_a_kill_is_recognised_under_torchrun_too(scripted: Callable[..., Plan]) -> None:
    plan = scripted({"no_shuffle": []})
    for run, script, expected in (
        (plan.runs[0], "import os; os.kill(os.getpid(), 9)", "interrupted"),
        (plan.runs[0], "sys.exit(75)", "interrupted"),
        (plan.runs[1], "sys.exit('error: no memory')", "failed"),
    ):
        # torchrun asks the other process to end, which it does.
        of_one = f"import os; os.environ['RANK'] == '1' or time.sleep(60); {script}"
        command = Torchrun(of_one, [str(run.folder)], processes=2)
        states.begin(run, command)
        code = children.start(command, run.output, {}).wait()
        assert code == 1, "torchrun's own"
        assert states.end(run, command, code, is_stopped=False) == expected
    assert ": no memory (in " in states.read(plan.runs[1].folder).failed
    states.begin(plan.runs[0], command)
    assert states.end(plan.runs[0], command, -9, is_stopped=False, gives_up=True) == "failed"


def test_the_reason_of_a_failure_is_its_exception_and_the_advice_helps(
    scripted: Callable[..., Plan],
) -> None:
    unexpected = "from impossible.settings import guarded; guarded(lambda: [][5])"
    advises = "sys.exit('error: it is full. Run the same command again, or set --out_dir=.')"
    plan = scripted({"no_shuffle": [unexpected], "no_hop": ["1 / 0"], "no_reverse": [advises]})
    local.execute(plan, Stop())
    crashed, raised, advised = plan.runs[0], plan.runs[2], plan.runs[4]
    for run, reason in (
        (crashed, "IndexError: list index out of range"),
        (raised, "ZeroDivisionError: division by zero"),
        (advised, "it is full. Run the study again with --retry, or set --study_dir=."),
    ):
        assert states.read(run.folder).failed.endswith(f": {reason} (in {run.output})")


def test_the_exception_is_that_of_a_process_and_not_that_of_torchrun(tmp_path: Path) -> None:
    traceback = "Traceback (most recent call last):\n  File x\n    call()\n"
    output = tmp_path / "output.txt"
    output.write_text(
        f"\n$ torchrun\n{traceback}ImportError: no module\n  \n{traceback}"
        "torch.distributed.elastic.multiprocessing.errors.ChildFailedError: \n====\ntrain.py FAILED"
    )
    assert states.error_in(output) == "ImportError: no module"


def test_joint_results_replace_only_what_the_study_wrote(
    scripted: Callable[..., Plan], tmp_path: Path
) -> None:
    plan, folder = scripted({"no_shuffle": ["pass"]}), tmp_path / "study"
    for name in ("other/perplexity.csv", "other/pairs.png", "entropies.csv", "notes/markers.csv"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("of another run")
    for run in plan.runs:
        checkpoint.path_of(run.folder, run.settings.max_steps).touch()
    local.execute(plan, Stop())

    def write(script: str) -> dict[str, str]:
        object.__setattr__(plan, "evaluation", script)
        try:
            results.write(plan, Stop())
        finally:
            own = ("config.py", "state.json", "output.txt", "runs.csv", "report.html")
            own += ("results.json", "results.txt", ".lock")
            paths = [p for p in folder.rglob("*") if p.is_file() and p.name not in own]
            texts = {str(p.relative_to(folder)): p.read_text() for p in paths if p.stat().st_size}
        return texts

    others = dict.fromkeys(
        ("other/perplexity.csv", "other/pairs.png", "entropies.csv", "notes/markers.csv"),
        "of another run",
    )
    first = (
        "(out / 'a.csv').write_text('1'); (out / 'b').mkdir(); "
        "(out / 'b' / 'pairs.png').write_text('1')"
    )
    assert write(first) == others | {"a.csv": "1", "b/pairs.png": "1"}
    page = (folder / "report.html").read_text()
    assert "b/pairs.png" in page
    assert "other/pairs.png" not in page, "another run's"
    assert "tables are beside this page: a.csv, runs.csv." in " ".join(page.split())

    with pytest.raises(UserError, match=r"error after a table \(in .*results\.txt\)"):
        write("(out / 'c.csv').write_text('2'); sys.exit('error: error after a table')")
    assert write(first) == others | {"a.csv": "1", "b/pairs.png": "1"}, "nothing is half new"
    assert write("(out / 'a.csv').write_text('3')") == others | {"a.csv": "3"}
    assert not (folder / "b").exists()

    (folder / "a.csv").unlink()
    assert write("(out / 'a.csv').write_text('3')") == others | {"a.csv": "3"}, "it is written anew"
    (folder / "a.csv").write_text("edited by a person")
    with pytest.raises(UserError, match=r"or which were changed since: \S*a\.csv\."):
        write("(out / 'a.csv').write_text('3')")
    assert (folder / "a.csv").read_text() == "edited by a person"
    (folder / "a.csv").unlink()
    write("(out / 'a.csv').write_text('3')")

    names = "('a.csv', 'entropies.csv', 'notes/markers.csv')"
    with pytest.raises(UserError, match=r"did not write.*: \S*entropies\.csv, \S*markers\.csv\."):
        write(f"(out / 'notes').mkdir(); [(out / name).write_text('4') for name in {names}]")
    assert write("(out / 'a.csv').write_text('3')") == others | {"a.csv": "3"}


def test_data_are_prepared_or_checked_while_runs_are_left(
    scripted: Callable[..., Plan], monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = scripted({"no_shuffle": ["pass"]})
    gone = Script("sys.exit('error: there is no corpus')", [str(plan.folder)])
    monkeypatch.setattr(Scripted, "preparing", gone)
    with pytest.raises(UserError, match="could not be prepared: there is no corpus"):
        study.execute(plan)
    local.execute(plan, Stop())
    for run in plan.runs:
        checkpoint.path_of(run.folder, run.settings.max_steps).touch()
    study.execute(plan)
    assert (plan.folder / "report.html").exists()


def test_a_damaged_file_is_the_problem_of_its_run_alone(
    scripted: Callable[..., Plan], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    saves = "(out / 'checkpoint-3000.pt').write_bytes(b'PK damaged')"
    plan = scripted({"no_shuffle": [saves], "no_reverse": ["pass"], "no_hop": ["pass"]})
    local.execute(plan, Stop())
    damaged, table, other = plan.runs[0], plan.runs[2], plan.runs[4]
    for text in ("", '{"done": ', "[1]", '{"done": null}', "\0\0"):
        (damaged.folder / states.NAME).write_text(text)
        assert "state.json is damaged" in states.read(damaged.folder).failed
    (table.folder / "evaluation").mkdir()
    (table.folder / "evaluation" / "perplexity.csv").touch()
    (plan.folder / "results.json").write_text("{")
    (plan.folder / "jobs.json").write_text("[")  # of a cluster; there is no SLURM here
    for run in plan.runs:
        checkpoint.path_of(run.folder, run.settings.max_steps).touch()

    overview.show_states(plan)
    told = capfd.readouterr().out
    assert "jobs.json" not in told
    assert f"{damaged.name}: {damaged.folder / 'state.json'} is damaged" in told
    assert "checkpoint-3000.pt is damaged" in told
    assert "File is not a zip file" in told
    assert "start again in another --study_dir=" in told
    assert "--out_dir=" not in told, "a study refuses it"
    assert f"{plan.folder / 'results.json'} is damaged" in told
    assert f"{table.name}: a file in {table.folder} is damaged: EmptyDataError" in told
    assert "6 runs: 5 done, 1 failed" in told

    with pytest.raises(UserError, match=r"results\.json is damaged.*Delete it together with these"):
        study.execute(plan)
    shown = pd.read_csv(plan.folder / "runs.csv").set_index("run")
    assert shown.loc[damaged.name, "state"] == "failed"
    assert shown.loc[other.name, "state"] == "done"
    page = (plan.folder / "report.html").read_text()
    assert "state.json is damaged" in page
    assert "results.json is damaged" in page
    assert "There are no results yet" not in page, "there may be some"
    (plan.folder / "results.json").unlink()
    states.forget_failure(damaged)  # --retry
    study.execute(plan)
    assert set(words(plan).values()) == {"done"}


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
    assert states.end(run, command, states.EXIT_STOPPED, False) == "interrupted", "no failure"
    states.begin(run, command)
    assert states.end(run, command, 3, False) == "failed"
    states.begin(run, command)
    assert states.end(run, command, 0, False) == "done"
    assert results.state_of(plan, other, True, {}) == "waiting"
    monkeypatch.setattr(states, "digest", lambda run, command: "of other settings")
    assert word() == "outdated", "not as if it had been interrupted"
    assert not files.is_locked(run.folder)
