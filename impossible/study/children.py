"""Starting the commands of a study as processes that end with it."""

import ctypes
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from impossible.study.plan import Command

_PR_SET_PDEATHSIG = 1  # of Linux's prctl.h


def start(command: Command, output: Path, env: dict[str, str]) -> subprocess.Popen[bytes]:
    """Start a command whose output is added to a file.

    It has a process group of its own, so that Ctrl-C on the terminal does not reach it. If this
    process is killed, Linux sends it SIGTERM, after which train.py saves the last whole step.
    """
    output.parent.mkdir(parents=True, exist_ok=True)
    with open(output, "ab") as file:
        file.write(f"\n$ {command}  # {time.strftime('%Y-%m-%d %H:%M:%S')}\n".encode())
        file.flush()
        return subprocess.Popen(
            command.line,
            env=os.environ | env,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=_end_with_parent if sys.platform == "linux" else None,
        )


def _end_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def ask_to_end(process: subprocess.Popen[bytes]) -> None:
    """Ask a command to end; train.py does so after a whole step."""
    process.terminate()


def kill(process: subprocess.Popen[bytes]) -> None:
    """End a command and all that it started, at once."""
    os.killpg(process.pid, signal.SIGKILL)
