"""Tasks on this machine and in jobs of SLURM: real processes, with small scripts as commands."""

import dataclasses
import os
import re
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import ROOT, wait_for

import study
from impossible import files
from impossible.settings import UserError
from impossible.study import execute, report
from impossible.study import plan as plans
from impossible.study.execute import Stop
from impossible.study.plan import Plan
from impossible.study.tasks import Command, Task

START = "import os, pathlib, signal, sys, time; out = pathlib.Path(sys.argv[1]); "
ONCE = "first = not (out / 'x').exists(); (out / 'x').touch(); first and os.kill(os.getpid(), 9)"
TWICE = (
    "log = open(out / '{0}', 'a+'); log.write('.'); log.flush(); log.seek(0); "
    "len(log.read()) < 3 and os.kill(os.getpid(), 9)"
)
ALWAYS = "open(out / 'x', 'a').write('.'); os.kill(os.getpid(), 9)"
# Starts a process of its own, and is killed once.
LEAVES = (
    "import subprocess; first = not (out / 'pid').exists(); "
    "first and (out / 'pid').write_text(str(subprocess.Popen(['sleep', '600']).pid)); "
    "first and os.kill(os.getpid(), 9)"
)
WAITS = "(out / 'ready').touch(); time.sleep(60)"
SAVES = f"signal.signal(15, lambda *_: ((out / 'saved').touch(), sys.exit(75))); {WAITS}"
HANGS = f"signal.signal(signal.SIGTERM, signal.SIG_IGN); {WAITS}"
FOUR = [{"OMP_NUM_THREADS": "1"}] * 4


class Script(Command):
    """A script in place of a command; its argument is a folder."""

    @property
    def line(self) -> list[str]:
        return [sys.executable, "-c", START + self.script, *self.configs]


class Torchrun(Script):
    """The script in two processes of torchrun."""

    @property
    def line(self) -> list[str]:
        script = Path(self.configs[0]) / "script.py"
        script.write_text(START + self.script)
        torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
        return [sys.executable, *torchrun, str(script), *self.configs]


@pytest.fixture
def task(tmp_path: Path) -> Callable[..., Task]:
    """Makes a task of scripts, in a folder of its own."""

    def make(*scripts: str, name: str = "task") -> Task:
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        return Task(name, folder / "output.txt", [Script(s, (str(folder),)) for s in scripts])

    return make


@pytest.fixture
def scripted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Plan]:
    """Makes the plan of a study whose runs consist of scripts: two seeds for each language."""

    def make(scripts: dict[str, list[str]], *options: str) -> Plan:
        config = tmp_path / "study.py"
        config.write_text(f"languages = {list(scripts)}\nseeds = [1, 2]\ndevice = 'cpu'\n")
        arguments = [str(config), f"--study_dir={tmp_path / 'study'}", "--at_once=2", *options]
        made = plans.read(arguments, "usage")
        for run in made.runs:
            commands = [Script(script, (str(run.folder),)) for script in scripts[run.language]]
            object.__setattr__(run, "commands", commands)
        plans.write_configs(made.runs)
        monkeypatch.setattr(plans.Run, "inputs", lambda run, command: {})
        return made

    return make


@pytest.fixture(autouse=True)
def own_signals() -> None:
    """A study takes note of signals; pytest gets them back."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR2)
    before = {n: signal.getsignal(n) for n in numbers}
    signal.signal(signal.SIGINT, signal.default_int_handler)  # `&` in a script has it ignored
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def text(task: Task, name: str) -> str:
    return (task.output.parent / name).read_text()


def is_alive(pid: int) -> bool:
    command = ["ps", "-o", "stat=", "-p", str(pid)]
    state = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    return bool(state.strip()) and not state.startswith("Z")


def test_commands_follow_each_other_and_so_many_tasks_are_executed_at_a_time(
    task: Callable[..., Task], tmp_path: Path
) -> None:
    note = (
        "log = open(out.parent / 'log', 'a'); print('begin', out.name, file=log, flush=True); "
        "time.sleep(0.4); print('end', out.name, file=log); print(os.environ['SLOT'])"
    )
    tasks = [task(note, note + "  # again", name="a"), *(task(note, name=name) for name in "bc")]
    execute.execute(tasks, [{"SLOT": "one"}, {"SLOT": "two"}], Stop())
    lines = (tmp_path / "log").read_text().splitlines()
    at_once = [sum(1 if line.startswith("b") else -1 for line in lines[:n]) for n in range(9)]
    assert (max(at_once), len(lines)) == (2, 8)
    assert [one.following for one in tasks] == [None] * 3
    assert all(text(one, "output.txt").endswith(("one\n", "two\n")) for one in tasks)
    assert all(one.state.seconds >= 0.4 for one in tasks)
    execute.execute(tasks, FOUR, Stop())  # nothing is left to do
    assert (tmp_path / "log").read_text().splitlines() == lines


def test_a_task_that_fails_does_not_stop_the_others_and_is_tried_again_on_request(
    task: Callable[..., Task], capfd: pytest.CaptureFixture[str]
) -> None:
    fails = "print('a', 'b'); (out / 'ok').exists() or sys.exit('error: no memory. Do this.')"
    bad, good = task(fails, name="bad"), task("print('well')", name="good")
    execute.execute([bad, good], FOUR, Stop())
    assert good.following is None
    assert bad.error.endswith(f": no memory. Do this. (in {bad.output})")
    printed = capfd.readouterr().out
    assert "no memory. Do this. (in " in printed
    assert "(1 of 2 runs are done)" in printed
    (bad.output.parent / "ok").touch()
    execute.execute([bad, good], FOUR, Stop())
    assert bad.error, "not by itself"
    execute.perform(bad, Stop())
    assert bad.following is None


@pytest.mark.parametrize(
    ("scripts", "error", "is_done", "content"),
    [
        ([ONCE], "", True, ""),
        ([TWICE.format("one"), TWICE.format("x")], "", True, "..."),  # each has three attempts
        ([ALWAYS], "killed 3 times, perhaps because memory ran out", False, "..."),
        (
            ["open(out / 'x', 'a').write('.'); sys.exit(75)"],
            "",
            False,
            "...",
        ),  # it was asked to end
    ],
)
def test_a_command_that_is_killed_is_resumed_but_not_for_ever(
    scripts: list[str], error: str, is_done: bool, content: str, task: Callable[..., Task]
) -> None:
    killed = task(*scripts)
    execute.execute([killed], FOUR, Stop())
    assert error in killed.error
    assert bool(killed.error) == bool(error)
    assert (killed.following is None) == is_done
    assert text(killed, "x") == content


def test_what_a_killed_command_has_started_ends_too(task: Callable[..., Task]) -> None:
    killed = task(LEAVES)
    execute.execute([killed], FOUR, Stop())
    pid = int(text(killed, "pid"))
    wait_for(lambda: not is_alive(pid), seconds=10)


def test_the_time_of_an_attempt_that_was_killed_with_its_study_counts(
    task: Callable[..., Task],
) -> None:
    again = task("pass")
    again.output.write_text("the last that it printed")
    began = time.time() - 100
    files.write_json(again.state_file, {"seconds": 3.0, "since": began})
    os.utime(again.output, (began + 40, began + 40))
    execute.execute([again], FOUR, Stop())
    assert again.state.seconds == pytest.approx(43, abs=5)


@pytest.mark.parametrize(
    ("script", "error"),
    [
        ("os.kill(os.getpid(), 9)", "killed 3 times"),
        pytest.param("sys.exit(75)", "killed 3 times", marks=pytest.mark.slow),
        ("sys.exit('error: no memory')", ": no memory (in "),
    ],
)
def test_a_kill_is_recognised_under_torchrun_too(
    script: str, error: str, task: Callable[..., Task], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(execute, "_ATTEMPTS", 1)
    both = task()
    # torchrun asks the other process to end, which it does.
    of_one = f"os.environ['RANK'] == '1' or time.sleep(60); {script}"
    both.commands.append(Torchrun(of_one, (str(both.output.parent),), processes=2))
    execute.execute([both], FOUR, Stop())
    assert error in both.error


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        (
            "from impossible.settings import guarded; guarded(lambda: [][5])",
            "IndexError: list index out of range",
        ),
        ("1 / 0", "ZeroDivisionError: division by zero"),
        (
            "sys.exit('error: it is full. Run the same command again, or set --out_dir=.')",
            "it is full. Run the study again with --retry, or set --study_dir=.",
        ),
        (  # of a process of torchrun, which adds one of its own
            "print('Traceback (most recent call last):\\n  File\\nImportError: no\\n\\nTraceback "
            "(most recent call last):\\n  File\\nx.ChildFailedError: \\n==\\nfailed'); sys.exit(1)",
            "ImportError: no",
        ),
        ("print('one\\n\\ntwo'); sys.exit(1)", "one / two"),
        ("sys.exit(1)", "no output"),
    ],
)
def test_the_reason_of_a_failure_is_its_exception_and_the_advice_helps(
    script: str, reason: str, task: Callable[..., Task]
) -> None:
    failing = task(script)
    execute.execute([failing], FOUR, Stop())
    assert failing.error.endswith(f": {reason} (in {failing.output})")


@pytest.mark.parametrize(("script", "times"), [(SAVES, 1), (HANGS, 2)])
def test_ctrl_c_asks_all_runs_to_end_and_a_second_one_ends_them(
    script: str, times: int, task: Callable[..., Task]
) -> None:
    tasks = [task(script, name="a"), task(script, name="b")]

    def interrupt() -> None:
        wait_for(lambda: all((one.output.parent / "ready").exists() for one in tasks))
        for _ in range(times):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.5)

    stop, thread = Stop(), threading.Thread(target=interrupt)
    thread.start()
    began = time.monotonic()
    execute.execute(tasks, FOUR, stop)
    thread.join()
    assert time.monotonic() - began < 30
    assert all(one.following and not one.error for one in tasks)
    assert all((one.output.parent / "saved").exists() == (times == 1) for one in tasks)


def test_a_run_that_another_process_writes_to_waits_for_it(
    scripted: Callable[..., Plan], capfd: pytest.CaptureFixture[str]
) -> None:
    plan = scripted({"no_shuffle": ["(out / 'x').touch()"]})
    holds = (
        "import sys, time; from pathlib import Path; from impossible import files\n"
        "with files.locked(Path(sys.argv[1])):\n    print('held', flush=True); time.sleep(2)"
    )
    command = [sys.executable, "-c", holds, str(plan.runs[0].folder)]
    other = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE)
    other.stdout.readline()
    execute.execute(plan.runs, FOUR, Stop())
    assert other.poll() == 0, "it has ended"
    assert "no_shuffle-seed-1: waiting for another process" in capfd.readouterr().out
    assert all((run.folder / "x").exists() for run in plan.runs)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells children of a parent's death")
def test_commands_end_with_the_process_that_started_them(tmp_path: Path) -> None:
    command = [sys.executable, "-c", START + SAVES, str(tmp_path)]
    starts = (
        "import time, types; from pathlib import Path; from impossible.study import execute\n"
        f"command = types.SimpleNamespace(line={command!r})\n"
        f"execute.start(command, Path({str(tmp_path / 'output.txt')!r}), {{}})\n"
        "time.sleep(60)"
    )
    parent = subprocess.Popen([sys.executable, "-c", starts], cwd=ROOT)
    wait_for((tmp_path / "ready").exists)
    parent.kill()
    parent.wait()
    wait_for((tmp_path / "saved").exists, seconds=20)


def test_gpus_are_shared_out(
    scripted: Callable[..., Plan], monkeypatch: pytest.MonkeyPatch
) -> None:
    def slots(visible: str, gpus: int, at_once: int = 0) -> list[str]:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        plan = scripted({"no_shuffle": []}, f"--gpus={gpus}", f"--at_once={at_once}")
        (run, *_) = plan.runs
        object.__setattr__(run, "commands", [Command("train.py", (), processes=gpus)])
        run.__dict__["settings"] = dataclasses.replace(run.settings, device="cuda")
        return [slot["CUDA_VISIBLE_DEVICES"] for slot in execute.slots_of(plan)]

    assert slots("0,1,2,3", 1) == ["0", "1", "2", "3"]
    assert slots("4,5,6,7", 2) == ["4,5", "6,7"]
    assert slots("4,5,6", 2) == ["4,5"]
    assert slots("GPU-1,GPU-2", 1, at_once=4) == ["GPU-1", "GPU-2", "GPU-1", "GPU-2"]
    with pytest.raises(UserError, match=r"and this machine has 1\. Set --gpus=1 or fewer"):
        slots("0", 2)


def test_cores_are_shared_out(scripted: Callable[..., Plan]) -> None:
    threads = {"OMP_NUM_THREADS": str(max(1, execute.cores() // 2))}
    assert execute.slots_of(scripted({"no_shuffle": ["pass"]})) == [threads] * 2
    job = scripted({"no_shuffle": ["pass"]}, "--job=prepare", "--cpus=6", "--cluster=slurm")
    assert execute.slots_of(job) == [{"OMP_NUM_THREADS": "6"}]


def evaluation(folder: Path, *results: str, first: str = "pass") -> str:
    """A script that writes files and their record into a folder, as eval.py does."""
    return (
        f"import hashlib, json; {first}; folder = pathlib.Path({str(folder)!r}); "
        f"folder.mkdir(exist_ok=True); texts = {dict(r.split('=') for r in results)}; "
        "[(folder / name).write_text(text) for name, text in texts.items()]; "
        "hashes = {k: hashlib.sha256(v.encode()).hexdigest() for k, v in texts.items()}; "
        "(folder / '.perplexity.json').write_text(json.dumps({'source': '', 'files': hashes}))"
    )


def test_joint_results_are_shown_and_removed_only_if_the_study_wrote_them(
    scripted: Callable[..., Plan], monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = scripted({"no_shuffle": ["pass"]})
    folder, scripts = plan.folder, []
    monkeypatch.setattr(
        Plan,
        "joint",
        lambda _, runs: plans.Joint(
            "results", folder / "results.txt", [Script(s, (str(folder),)) for s in scripts], runs
        ),
    )
    for name in ("other/a.csv", "entropies.csv", "b/mine.csv"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("another's")
    for run in plan.runs:
        run.last_checkpoint.touch()
    execute.execute(plan.runs, FOUR, Stop())

    def write(*new: str) -> tuple[set[str], str]:
        """The results in the folder, and the tables that the report names."""
        scripts[:] = new
        study.evaluate(plan, Stop())
        paths = {str(path.relative_to(folder)) for path in folder.rglob("*.[cp][sn][vg]")}
        page = " ".join((folder / "report.html").read_text().split())
        assert {"other/a.csv", "entropies.csv", "b/mine.csv"} < paths
        paths -= {"other/a.csv", "entropies.csv", "b/mine.csv", "runs.csv"}
        return paths, ", ".join(sorted(re.findall(r'href="(.*?\.csv)"', page)))

    both = evaluation(folder, "a.csv=1"), evaluation(folder / "b", "c.csv=2", "pairs.png=3")
    whole = {"a.csv", "b/c.csv", "b/pairs.png"}, "a.csv, b/c.csv, runs.csv"
    assert write(*both) == whole
    printed = (folder / "results.txt").read_text()
    assert write(*both) == whole
    assert (folder / "results.txt").read_text() == printed, "what is done is not repeated"

    fails = evaluation(folder, "a.csv=2", first="sys.exit('error: no room')")
    with pytest.raises(UserError, match=r"results failed: .*no room \(in .*results\.txt\)"):
        write(both[1], fails)
    assert "not be evaluated together" in (folder / "report.html").read_text()
    assert write(*both) == whole, "nothing is half new"
    (folder / "a.csv").unlink()
    assert write(*both) == whole, "it is written anew"
    (folder / "a.csv").write_text("edited by a person")
    assert write(evaluation(folder, "x.csv=1")) == ({"a.csv", "x.csv"}, "runs.csv, x.csv")
    assert (folder / "a.csv").read_text() == "edited by a person"
    assert write(both[1]) == ({"a.csv", *whole[0]}, "b/c.csv, runs.csv")
    assert (folder / "b" / "mine.csv").read_text() == "another's"


def test_data_are_prepared_or_checked_while_runs_are_left(
    scripted: Callable[..., Plan], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> None:
    plan = scripted({"no_shuffle": ["pass"]})
    command = Script("sys.exit('error: there is no corpus')", (str(plan.folder),))
    preparing = Task("prepare", plan.folder / "prepare.txt", [command])
    monkeypatch.setattr(Plan, "preparing", preparing)
    reason = r".* there is no corpus \(in .*prepare\.txt\)"
    for _ in range(2):  # it is tried again each time
        with pytest.raises(UserError, match=f"prepare failed: {reason}"):
            study.do_here(plan, Stop())
    report.show_states(plan)
    shown = capfd.readouterr().out
    assert re.search(f"The latest preparation of data failed: {reason}", shown)
    assert "2 runs: 2 waiting" in shown
    execute.execute(plan.runs, FOUR, Stop())
    for run in plan.runs:
        run.last_checkpoint.touch()
    monkeypatch.setattr(Plan, "joint", lambda plan, runs: Task("x", plan.folder / "x.txt", []))
    study.do_here(plan, Stop())
    assert "2 done" not in (plan.folder / "report.html").read_text()


# Jobs of SLURM, with scripts in place of its commands (tests/test_study.py has a real SLURM).


@pytest.fixture
def slurm_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], Path]:
    """Puts a command of SLURM on the path that prints a text; the file of its arguments."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_ID", "17")

    def write(command: str, script: str) -> Path:
        path = folder / command
        path.write_text(f'#!/bin/sh\necho "$@" >> {folder}/{command}.txt\n{script}\n')
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
        return folder / f"{command}.txt"

    return write


@pytest.mark.parametrize(
    ("job", "number", "state", "is_requeued"),
    [
        ("no_shuffle-seed-1", signal.SIGTERM, "RUNNING", True),
        ("no_shuffle-seed-1", signal.SIGUSR2, "PREEMPTED", True),
        ("no_shuffle-seed-1", signal.SIGTERM, "COMPLETING", False),
        ("prepare", signal.SIGUSR2, "RUNNING", True),
        ("results", signal.SIGTERM, "RUNNING", True),
    ],
)
def test_a_job_that_has_to_give_way_saves_ends_with_75_and_goes_back_into_the_queue(
    job: str,
    number: signal.Signals,
    state: str,
    is_requeued: bool,
    scripted: Callable[..., Plan],
    slurm_says: Callable[[str, str], Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    called = slurm_says("scontrol", f"echo 'JobId=17 JobName=x'; echo '   JobState={state} Reason'")
    plan = scripted({"no_shuffle": [SAVES, "pass"]}, f"--job={job}")
    folder = plan.runs[0].folder
    script = Task("task", folder / "task.txt", [Script(SAVES, (str(folder),))])
    monkeypatch.setattr(Plan, "preparing", script)
    if job == "results":
        monkeypatch.setattr(Plan, "joint", lambda plan, runs: script)
        for run in plan.runs:
            object.__setattr__(run, "commands", [])

    def interrupt() -> None:
        wait_for((folder / "ready").exists)
        locked.append(files.is_locked(plan.locked_folder))
        for _ in range(2):  # a second one changes nothing
            os.kill(os.getpid(), number)
            time.sleep(0.1)

    locked: list[bool] = []
    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(SystemExit, match="75"):
        study.do_job(plan)
    thread.join()
    assert locked == [False], "runs can be submitted again while a job is executed"
    assert (folder / "saved").exists()
    assert ("requeue 17" in called.read_text()) == is_requeued, "cancelled jobs are not"


def test_a_job_whose_run_fails_fails(scripted: Callable[..., Plan]) -> None:
    plan = scripted({"no_shuffle": ["sys.exit('error: no room')"]}, "--job=no_shuffle-seed-2")
    with pytest.raises(UserError, match="no room"):
        study.do_job(plan)
    assert not plan.runs[0].output.exists(), "another job's"
    with pytest.raises(UserError, match=r"Did you mean .prepare."):
        study.do_job(scripted({"no_shuffle": []}, "--job=prepared"))


def test_runs_are_submitted_with_what_they_wait_for_and_nothing_twice(
    scripted: Callable[..., Plan],
    slurm_says: Callable[[str, str], Path],
    capfd: pytest.CaptureFixture[str],
) -> None:
    called = slurm_says("sbatch", "")
    slurm_says("sbatch", f"wc -l < {called}")
    slurm_says("scancel", "")
    plan = scripted({"no_shuffle": ["pass"]}, "--cluster=slurm", "--gpus=1", "--retry", "--cpus=3")

    def submitted() -> list[tuple[str, str, str]]:
        capfd.readouterr()
        execute.submit(plan)
        return re.findall(r"(\S+): job (\d+)(?: \((.*)\))?", capfd.readouterr().out)

    slurm_says("squeue", "")
    for first in (1, 5):  # the data are also checked when there are token files
        assert submitted() == [
            ("prepare", f"{first}", ""),
            ("no_shuffle-seed-1", f"{first + 1}", f"afterok:{first}"),
            ("no_shuffle-seed-2", f"{first + 2}", f"afterok:{first}"),
            ("results", f"{first + 3}", f"afterany:{first + 1}:{first + 2}"),
        ]
    lines = called.read_text().splitlines()
    assert [("--gpus-per-node=1" in line) for line in lines[:4]] == [False, True, True, False]
    assert all("--cpus-per-task=3 " in line and "--signal=USR2@120" in line for line in lines)
    assert re.search(r"/study\.py \S+/study\.py --study_dir=.* --job=no_shuffle-seed-1$", lines[1])
    names = re.findall(r"--job-name=(\S+)", "\n".join(lines[:4]))
    running = "".join(f"echo {n} RUNNING {name}\n" for n, name in enumerate(names, 1))
    slurm_says("squeue", running + "echo 9 RUNNING another-prepare")
    assert submitted() == [], "all are there already"
    with pytest.raises(UserError, match=r"SLURM has jobs of this study \(prepare, no_sh"):
        study.do_here(plan, Stop())

    slurm_says("squeue", running.replace("2 RUNNING", "2 COMPLETING"))
    assert submitted() == [
        ("prepare", "9", "afterany:1"),
        ("no_shuffle-seed-1", "10", "afterok:9"),
        ("results", "11", "afterany:10:3"),
    ]
    report.show_states(plan)
    assert re.search(r"seed-1 +waiting.*\n.*seed-2 +running", capfd.readouterr().out)
    slurm_says("squeue", "echo no answer >&2; exit 1")
    with pytest.raises(UserError, match=r"squeue failed \(no answer\)"):
        execute.submit(plan)
    report.show_states(plan)
    assert "warning: squeue failed" in capfd.readouterr().out
    slurm_says("squeue", "")
    slurm_says("sbatch", "echo no such partition >&2; exit 1")
    with pytest.raises(UserError, match=r"did not accept the job prepare \(no such partition\)"):
        execute.submit(plan)
