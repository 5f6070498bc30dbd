"""Start commands without importing torch anew each time, which takes longer than most commands.

multiprocessing's fork server imports torch once; each command is a fork of it, a process of its own
with its own environment, signals and exit code.
"""

import atexit
import multiprocessing
import os
import resource
import runpy
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from unittest import mock

ROOT = Path(__file__).parent.parent
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["torch", "torch._dynamo", "tiktoken"])
# Otherwise, Python would wait at its end for the commands of failed tests.
atexit.register(lambda: [process.kill() for process in multiprocessing.active_children()])


class Forked:
    """A command in a process of its own, with the methods of subprocess.Popen that tests use."""

    def __init__(self, command: list[str], env: dict[str, str], *limits: object) -> None:
        files = [tempfile.NamedTemporaryFile() for _ in range(2)]  # noqa: SIM115
        self._outputs, names = files, [file.name for file in files]
        self._process = _CONTEXT.Process(target=_run, args=(command, env, names, *limits))
        with mock.patch.dict(os.environ, OMP_NUM_THREADS="1"):  # torch reads it in the server
            self._process.start()
        self.pid = self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired(str(self.pid), timeout)
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        self.wait(timeout)
        stdout, stderr = (Path(file.name).read_text(encoding="utf-8") for file in self._outputs)
        return stdout, stderr

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def kill(self) -> None:
        self._process.kill()


def limit(largest_file: int | None, ignored: Sequence[signal.Signals]) -> None:
    """Set up a new process: its signal handlers, and its limit on the size of files, in bytes."""
    for number in (signal.SIGHUP, signal.SIGINT):  # nohup and `&` in a script ignore them
        signal.signal(number, signal.SIG_DFL)
    for number in ignored:
        signal.signal(number, signal.SIG_IGN)
    if largest_file:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # the write fails instead
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))


def _run(command: list[str], env: dict[str, str], outputs: list[str], *limits: object) -> None:
    for number, name in enumerate(outputs, 1):
        os.dup2(os.open(name, os.O_WRONLY), number)
    os.environ.clear()
    os.environ.update(env)
    os.chdir(ROOT)
    limit(*limits)
    if signal.getsignal(signal.SIGINT) == signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)  # as Python does when it starts
    sys.argv = command
    runpy.run_path(str(ROOT / command[0]), run_name="__main__")
