"""Starting the commands of a study as processes that end with it."""

import contextlib
import ctypes
import functools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from impossible.study.plan import Command

_PR_SET_PDEATHSIG = 1  # of Linux's prctl.h
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None  # before a process is forked


def start(command: Command, output: Path, env: dict[str, str]) -> "subprocess.Popen[bytes]":
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
            preexec_fn=functools.partial(_end_with, os.getpid()) if _LIBC else None,
        )


def _end_with(parent: int) -> None:
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:  # it has been killed already
        os._exit(1)


def end(process: "subprocess.Popen[bytes]", at_once: bool = False) -> None:
    """Ask a command to end, as train.py does after a whole step; or end it at once.

    The processes of a torchrun that is killed save the last whole step and end.
    """
    if at_once:
        os.killpg(process.pid, signal.SIGKILL)
    else:
        process.terminate()


def end_group(process: "subprocess.Popen[bytes]") -> None:
    """Ask what a command has started, and has left behind when it was killed, to end."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
