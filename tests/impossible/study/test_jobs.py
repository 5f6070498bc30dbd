"""Jobs of SLURM, with scripts in place of its commands (tests/test_study.py has a real SLURM)."""

import multiprocessing
import os
import re
import signal
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import wait_for
from test_local import LEAVES, TWICE, is_alive, no_settings, scripted  # noqa: F401 (fixtures)

from impossible.settings import UserError
from impossible.study import overview, results, slurm, states
from impossible.study import plan as plans
from impossible.study.plan import Plan

SAVES = (
    "import signal; signal.signal(signal.SIGTERM, lambda *_: ((out / 'saved').touch(), "
    "sys.exit(75))); (out / 'ready').touch(); time.sleep(60)"
)


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


def execute(job: slurm.Chain | slurm.Results, is_ready: Callable[[], bool]) -> int | None:
    """Execute a job in a process of its own, which gets SIGTERM once it is ready: its exit code."""
    process = multiprocessing.get_context("fork").Process(target=job)
    process.start()
    wait_for(lambda: is_ready() or not process.is_alive(), seconds=30)
    os.kill(process.pid, signal.SIGTERM)
    process.join(30)
    return process.exitcode


@pytest.mark.parametrize(
    ("state", "is_requeued"), [("RUNNING", True), ("PREEMPTED", True), ("COMPLETING", False)]
)
def test_a_preempted_job_saves_ends_with_75_and_goes_back_into_the_queue(
    scripted: Callable[..., Plan],  # noqa: F811
    slurm_says: Callable[[str, str], Path],
    state: str,
    is_requeued: bool,
) -> None:
    called = slurm_says("scontrol", f"echo 'JobId=17 JobName=x'; echo '   JobState={state} Reason'")
    plan = scripted({"no_shuffle": [SAVES, "pass"]})
    run = plan.runs[0]
    code = execute(slurm.Chain(plan, run), (run.folder / "ready").exists)
    assert code == states.EXIT_STOPPED
    assert (run.folder / "saved").exists()
    assert results.state_of(plan, run, False, {}) == "interrupted"
    assert ("requeue 17" in called.read_text()) == is_requeued, "cancelled jobs are not"


def test_so_do_the_jobs_that_prepare_the_data_and_write_the_results(
    scripted: Callable[..., Plan],  # noqa: F811
    slurm_says: Callable[[str, str], Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    called = slurm_says("scontrol", "echo JobState=RUNNING")
    plan = scripted({"no_shuffle": [SAVES.replace("time.sleep(60)", "")]})
    first = plan.runs[0]
    script = plan.commands(first)[0]._replace(script="(out / 'ready').touch(); time.sleep(60)")
    monkeypatch.setattr(type(plan), "preparing", script)
    assert execute(slurm.Chain(plan, None), (first.folder / "ready").exists) == 75
    assert called.read_text().count("requeue 17") == 1

    for run in plan.runs:
        slurm.Chain(plan, run)()
        plans.checkpoint.path_of(run.folder, run.settings.max_steps).touch()
    marker = plan.folder / "evaluating"
    object.__setattr__(plan, "evaluation", f"open({str(marker)!r}, 'w'); time.sleep(60)")
    assert execute(slurm.Results(plan), marker.exists) == 75
    assert called.read_text().count("requeue 17") == 2


@pytest.mark.parametrize("scripts", [[TWICE.format("one"), TWICE.format("two")], [LEAVES]])
def test_a_command_that_is_killed_is_resumed_by_its_job(
    scripted: Callable[..., Plan],  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    scripts: list[str],
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    plan = scripted({"no_shuffle": scripts})
    run = plan.runs[0]
    slurm.Chain(plan, run)()
    assert results.state_of(plan, run, False, {}) == "done", "each command has attempts of its own"
    if (run.folder / "pid").exists():
        pid = int((run.folder / "pid").read_text())
        wait_for(lambda: not is_alive(pid), seconds=10)  # it had been left behind


def test_a_command_that_is_always_killed_fails_its_job(
    scripted: Callable[..., Plan],  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    always = "import os; open(out / 'y', 'a').write('.'); os.kill(os.getpid(), 9)"
    plan = scripted({"no_shuffle": [always]})
    with pytest.raises(RuntimeError, match="killed 3 times"):
        slurm.Chain(plan, plan.runs[0])()
    assert (plan.runs[0].folder / "y").read_text() == "..."


def test_the_data_are_checked_before_every_run_is_trained(
    scripted: Callable[..., Plan],  # noqa: F811
    slurm_says: Callable[[str, str], Path],
    capfd: pytest.CaptureFixture[str],
) -> None:
    slurm_says("squeue", "true")
    slurm_says("srun", "true")
    slurm_says("sbatch", f"echo Submitted batch job $(wc -l < {slurm_says('sbatch', '')})")
    plan = scripted({"no_shuffle": ["pass"]}, "--cluster=slurm", "--gpus=0")
    for first in (1, 5):  # also when there are token files
        slurm.submit(plan)
        told = capfd.readouterr().out
        assert re.findall(r"(\S+): job (\d+)(?: \((.*)\))?", told) == [
            ("prepare", f"{first}", ""),
            ("no_shuffle-seed-1", f"{first + 1}", f"afterok:{first}"),
            ("no_shuffle-seed-2", f"{first + 2}", f"afterok:{first}"),
            ("results", f"{first + 3}", f"afterany:{first + 1}:{first + 2}"),
        ]
        for run in plan.runs:
            run.data_dir.mkdir(parents=True, exist_ok=True)
            (run.data_dir / "meta.json").touch()

    (plan.folder / slurm.NAME).write_text("{")
    with pytest.raises(UserError, match=r"jobs\.json is damaged.*squeue --me shows jobs named"):
        slurm.submit(plan)
    overview.show_states(plan)
    told = capfd.readouterr().out
    assert f"warning: {plan.folder / slurm.NAME} is damaged" in told
    assert "2 runs: 2 waiting" in told


def test_a_folder_whose_name_slurm_would_change_is_refused(
    scripted: Callable[..., Plan],  # noqa: F811
    slurm_says: Callable[[str, str], Path],
    tmp_path: Path,
) -> None:
    slurm_says("sbatch", "")
    slurm.require(scripted({"no_shuffle": []}))
    with pytest.raises(UserError, match=r"100%j contains %, which SLURM replaces"):
        slurm.require(scripted({"no_shuffle": []}, f"--study_dir={tmp_path / '100%j'}"))
