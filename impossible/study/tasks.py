"""The tasks of a study: commands that follow each other, and the record of those that are done.

The record is beside the output of the commands: `output.json` lists the finished ones, and
`output.error` contains the error of one that failed.
"""

import contextlib
import functools
import hashlib
import json
import shlex
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from impossible import files
from impossible.settings import ROOT


class Command(NamedTuple):
    """One of the project's commands, with its arguments."""

    script: str
    configs: tuple[str, ...]
    options: tuple[str, ...] = ()
    processes: int = 1  # torchrun for several

    @property
    def key(self) -> str:
        """The script and its options, which are the same wherever the command is started."""
        return shlex.join([self.script, *self.options])

    def __str__(self) -> str:
        """The command line that a user would type."""
        start = ["python"]
        if self.processes > 1:
            start = ["torchrun", "--standalone", f"--nproc_per_node={self.processes}"]
        return shlex.join([*start, self.script, *self.configs, *self.options])

    @property
    def line(self) -> list[str]:
        """The program (this Python) and the arguments that start the command."""
        start = [sys.executable, "-u"]
        if self.processes > 1:
            torchrun = ["-m", "torch.distributed.run", "--standalone"]
            start += [*torchrun, f"--nproc_per_node={self.processes}"]
        return [*start, str(ROOT / self.script), *self.configs, *self.options]


@dataclass
class State:
    """The record of a task: its finished commands, their results, and the time they took."""

    # Command -> its inputs when it was started.
    finished: dict[str, dict[str, str]] = field(default_factory=dict)
    # Command -> the tables and pictures that it wrote: path from the folder -> SHA-256.
    results: dict[str, dict[str, str]] = field(default_factory=dict)
    seconds: float = 0.0  # of all attempts of all commands
    since: float = 0.0  # when the present attempt was started; 0: there is none


@dataclass(frozen=True)
class Task:
    """Commands that are executed one after the other, and the file with all that they print."""

    name: str
    output: Path
    commands: list[Command]
    is_repeated: ClassVar[bool] = True  # it is executed each time, even if it is done

    @property
    def folder(self) -> Path:
        """The folder of the output and of the results."""
        return self.output.parent

    @property
    def state_file(self) -> Path:
        """The path of the record of finished commands."""
        return self.output.with_suffix(".json")

    @property
    def error_file(self) -> Path:
        """The path of the file with the error of a failed command."""
        return self.output.with_suffix(".error")

    @property
    def state(self) -> State:
        """The record: empty if the task has not begun.

        It is also empty if the file is damaged: the commands then run again, and skip what is done.
        """
        try:
            return State(**json.loads(self.state_file.read_text(encoding="utf-8")))
        except (FileNotFoundError, ValueError, TypeError):
            return State()

    @property
    def error(self) -> str:
        """The error of the command that failed; empty if none has."""
        return self.error_file.read_text(encoding="utf-8") if self.error_file.exists() else ""

    @property
    def following(self) -> Command | None:
        """The next command; None if all are done."""
        state = self.state
        for command in self.commands:
            results = state.results.get(command.key, {})
            if command.key not in state.finished or not self.has_result(command):
                return command
            is_same = self.inputs(command).items() <= state.finished[command.key].items()
            if not is_same or results != self.unchanged(results):
                return command
        return None

    def inputs(self, command: Command) -> dict[str, str]:
        """A hash of each thing that the result of a command depends on, by name.

        A file or folder that no longer exists is left out, and commands that read it stay finished.
        """
        return {}

    def has_result(self, command: Command) -> bool:
        """Whether the files that a finished command wrote still exist."""
        return True

    def results_since(self, time_ns: int) -> dict[str, str]:
        """The SHA-256 of tables and pictures written since `time_ns`, by path from the folder."""
        return {}

    def unchanged(self, results: dict[str, str]) -> dict[str, str]:
        """The results (path -> SHA-256) whose files still have the recorded SHA-256."""
        paths = {name: self.folder / name for name in results}
        hashes = {name: files.sha256(path) for name, path in paths.items() if path.is_file()}
        return dict(results.items() & hashes.items())

    def note_finished(self, state: State, command: Command, inputs: dict[str, str]) -> None:
        """Record that a command is done, and delete older results that no command has now."""
        older = {name: sha256 for some in state.results.values() for name, sha256 in some.items()}
        state.finished[command.key] = inputs
        state.results[command.key] = self.results_since(self.state_file.stat().st_mtime_ns)
        keys = [command.key for command in self.commands]
        state.finished = {key: state.finished[key] for key in keys if key in state.finished}
        state.results = {key: state.results[key] for key in keys if key in state.results}
        names = {name for some in state.results.values() for name in some}
        for name in self.unchanged(older).keys() - names:
            path = self.folder / name
            path.unlink()
            with contextlib.suppress(OSError):  # it is not empty
                path.parent.rmdir()


def hash_of(value: Any) -> str:
    """A short hash of a value that JSON can hold."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def content_hash(path: Path) -> str:
    """A hash of a file, or of the names and contents of a folder's files."""
    paths = [path] if path.is_file() else sorted(path.rglob("*"))
    stats = [(p, p.stat()) for p in paths if p.is_file() and not p.name.startswith(".")]
    return _hash_of_files(path, tuple((p, stat.st_size, stat.st_mtime_ns) for p, stat in stats))


@functools.lru_cache  # a file is read again when its size or its time has changed
def _hash_of_files(folder: Path, described: tuple[tuple[Path, int, int], ...]) -> str:
    return hash_of([(str(p.relative_to(folder)), files.sha256(p)) for p, *_ in described])
