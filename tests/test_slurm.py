"""The files in examples/ on a real SLURM of one node, and on one machine in place of two.

Needs slurm-wlm and munge of Debian or Ubuntu, and root, who may start their daemons.
"""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import ROOT, wait_for
from test_train import require_same

from impossible import checkpoint, log

Config = Callable[..., Path]
# So many steps that a run is still going when its first minute ends.
LONG = {
    "max_steps": "1000",
    "checkpoint_interval": "500",
    "eval_interval": "500",
    "log_interval": "10",
}
CONF = """
ClusterName=one
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
AuthType=auth/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
SlurmctldPort={port}
SlurmdPort={node_port}
JobAcctGatherType=jobacct_gather/none
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
GresTypes=gpu
NodeName={host} NodeAddr=127.0.0.1 CPUs={cores} RealMemory=8000 Gres=gpu:2 State=UNKNOWN
PartitionName=debug Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[dict[str, str]]:
    """The environment of a user of a cluster of one node, which ends with the test."""
    if not shutil.which("slurmctld") or not shutil.which("munged") or os.getuid() != 0:
        pytest.skip("no SLURM here, or not root: apt-get install slurm-wlm munge")
    folder = tmp_path / "slurm"
    (folder / "state").mkdir(parents=True)
    conf = folder / "slurm.conf"
    values = {"port": free_port(), "node_port": free_port(), "cores": os.cpu_count()}
    conf.write_text(CONF.format(host=socket.gethostname(), folder=folder, **values))
    for number in range(2):  # two GPUs that SLURM may lend, and nobody opens
        (folder / f"gpu{number}").touch()
    (folder / "gres.conf").write_text(f"Name=gpu File={folder}/gpu[0-1]\n")
    env = os.environ | {"SLURM_CONF": str(conf)}
    Path("/run/munge").mkdir(exist_ok=True)
    shutil.chown("/run/munge", "munge", "munge")
    had_munge = bool(output("pgrep", "munged"))
    if not had_munge:
        subprocess.run(["runuser", "-u", "munge", "--", "munged", "--force"], check=True)
    try:
        for daemon in ("slurmctld", "slurmd"):
            subprocess.run([daemon, "-f", conf], check=True, env=env)
        wait_for(lambda: "idle" in output("sinfo", env=env))
        yield env
    finally:
        for daemon in ("slurmd", "slurmctld"):
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                os.kill(int((folder / f"{daemon}.pid").read_text()), signal.SIGTERM)
        if not had_munge:
            os.kill(int(Path("/run/munge/munged.pid").read_text()), signal.SIGTERM)
            wait_for(lambda: not output("pgrep", "munged"))  # the next cluster starts its own


def output(*command: str, env: dict[str, str] | None = None) -> str:
    """What a command prints; nothing while the daemons of SLURM begin."""
    return subprocess.run(command, env=env, capture_output=True, text=True, check=False).stdout


def shown(job: str, env: dict[str, str]) -> dict[str, str]:
    """What SLURM says of a job."""
    words = output("scontrol", "show", "job", job, env=env).split()
    return dict(word.split("=", 1) for word in words if "=" in word)


def submit(env: dict[str, str], config: Path, output: Path, *options: str) -> str:
    """Submit the example with a config; the number of the job."""
    options = ("--cpus-per-task=2", "--mem=6G", f"--output={output}", *options)
    return subprocess.run(
        ["sbatch", "--parsable", *options, "examples/train.slurm", config],
        cwd=ROOT,
        env=env | {"OMP_NUM_THREADS": "1", "VENV": sys.prefix, "PROCESSES": "2"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()


FAKES = {
    "bin/activate": "",
    # As torchrun does, it ends with 1 after a signal.
    "bin/torchrun": "trap 'kill $!; exit 1' TERM\ntouch started\nsleep 60 &\nwait\n",
    "bin/squeue": 'echo "$STATE"\n',
    "bin/scontrol": 'echo "$@" > requeued\n',
}


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
@pytest.mark.parametrize("state", ["RUNNING", "COMPLETING"])
def test_a_job_that_is_stopped_ends_with_75_and_goes_back_into_the_queue_unless_cancelled(
    number: signal.Signals, state: str, tmp_path: Path
) -> None:
    """SLURM and torchrun are played: the state says whether the job was cancelled."""
    (tmp_path / "bin").mkdir()
    for name, content in FAKES.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{content}")
        (tmp_path / name).chmod(0o755)
    env = {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "VENV": str(tmp_path)}
    job = subprocess.Popen(
        ["bash", ROOT / "examples" / "train.slurm", "a config"],
        cwd=tmp_path,
        env=os.environ | env | {"STATE": state, "SLURM_JOB_ID": "7"},
    )
    wait_for((tmp_path / "started").exists)
    job.send_signal(number)
    assert job.wait(timeout=60) == 75
    assert (tmp_path / "requeued").exists() == (state == "RUNNING")
    if state == "RUNNING":
        assert (tmp_path / "requeued").read_text() == "requeue 7\n"


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_a_job_that_slurm_stops_goes_back_into_the_queue_and_ends_with_the_same_weights(
    cluster: dict[str, str], config: Config, whole: Callable[..., Path], tmp_path: Path
) -> None:
    options = ("--time=1", "--signal=B:USR1@20")
    job = submit(cluster, config(**LONG), tmp_path / "job.log", *options)
    states = [""]
    while states[-1] not in ("COMPLETED", "FAILED", "TIMEOUT", "CANCELLED"):
        state = shown(job, cluster)["JobState"]
        if state != states[-1]:
            states.append(state)
        if state == "PENDING" and "RUNNING" in states:  # once stopped, it may run to its end
            update = ["scontrol", "update", f"JobId={job}", "TimeLimit=15"]
            subprocess.run(update, env=cluster, check=True)
        time.sleep(1)
    printed = (tmp_path / "job.log").read_text()
    assert states[-1] == "COMPLETED", printed
    assert int(shown(job, cluster)["Restarts"]) >= 1, "it ended before SLURM stopped it"
    assert "as requested. Run the same command again to resume." in printed
    assert "back into the queue" in printed
    require_same(tmp_path / "out", whole(processes=2, **LONG))


@pytest.mark.slow
def test_a_job_that_is_cancelled_saves_its_last_step_and_ends(
    cluster: dict[str, str], config: Config, tmp_path: Path
) -> None:
    job = submit(cluster, config(**LONG), tmp_path / "job.log")
    wait_for(lambda: len(log.read(tmp_path / "out")) > 5)
    subprocess.run(["scancel", job], env=cluster, check=True)
    wait_for(lambda: shown(job, cluster)["JobState"] not in ("RUNNING", "COMPLETING"))
    wait_for(lambda: "stopped after step" in (tmp_path / "job.log").read_text())
    assert "back into the queue" not in (tmp_path / "job.log").read_text()
    assert shown(job, cluster)["JobState"] == "CANCELLED"
    assert checkpoint.load(checkpoint.state_path(tmp_path / "out")).step > 0


@pytest.mark.slow
def test_two_machines_train_as_one_machine_does(
    config: Config, whole: Callable[..., Path], tmp_path: Path
) -> None:
    command = ["examples/two_machines.sh", "localhost", str(config())]
    env = os.environ | {"OMP_NUM_THREADS": "1", "VENV": sys.prefix, "PROCESSES": "1"}
    machines = [
        subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    outputs = [machine.communicate(timeout=200)[0] for machine in machines]
    assert [machine.returncode for machine in machines] == [0, 0], outputs
    require_same(tmp_path / "out", whole(processes=2))
