"""What has been done of each run: recorded in its folder by whatever executes its commands."""

import dataclasses
import json
import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from impossible import files
from impossible.errors import UserError
from impossible.study.plan import Command, Plan, Run
from impossible.training import checkpoint

NAME = "state.json"
EXIT_STOPPED = 75  # of train.py: the last whole step is saved
_KILLED = "SIGKILL"  # in what torchrun says of a process that was killed
_LINES = 3  # of the output, where it has no line that begins with "error: "


@dataclass(frozen=True)
class State:
    """What has been done of a run."""

    done: dict[str, float] = field(default_factory=dict)  # command -> seconds, over all attempts
    spent: dict[str, float] = field(default_factory=dict)  # the same, of commands not yet done
    failed: str = ""  # the command that failed and its error
    running: dict[str, Any] = field(default_factory=dict)  # command, since, job


def read(folder: Path) -> State:
    """The state of a run; an empty one if it has not begun. Raises UserError if it is damaged."""
    path = folder / NAME
    try:
        return State(**json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return State()
    except (ValueError, TypeError) as error:
        raise UserError(
            f"{path} is damaged ({error}). Delete it: the commands of the run will be started "
            "again, and skip what they have done."
        )


def write(folder: Path, state: State) -> None:
    """Record the state of a run."""
    files.write_json(folder / NAME, dataclasses.asdict(state))


def following(plan: Plan, run: Run) -> Command | None:
    """The next command of a run; None if all are done."""
    done = read(run.folder).done
    for command in plan.commands(run):
        if str(command) not in done or not _is_there(run, command):
            return command
    return None


def _is_there(run: Run, command: Command) -> bool:
    """Whether the result of a finished command still exists."""
    if command.script == "train.py":
        return checkpoint.path_of(run.folder, run.training.max_steps).exists()
    if command.script == "convert_to_hf.py":
        return (checkpoint.hf_dir(run.folder) / "manifest.json").exists()
    return True


def begin(run: Run, command: Command) -> None:
    """Record that a command of a run is being started."""
    running = {"command": str(command), "since": time.time()}
    if "SLURM_JOB_ID" in os.environ:
        running["job"] = os.environ["SLURM_JOB_ID"]
    write(run.folder, dataclasses.replace(read(run.folder), failed="", running=running))


def end(run: Run, command: Command, code: int, is_stopped: bool) -> str:
    """Record how a command ended: `done`, `interrupted` or `failed`, which is returned.

    code: its exit code, or minus the signal that killed it. is_stopped: whether it was asked to.
    """
    state, key = read(run.folder), str(command)
    seconds = state.spent.get(key, 0.0) + time.time() - state.running["since"]
    spent = {name: value for name, value in state.spent.items() if name != key}
    if code == 0:
        write(run.folder, State(state.done | {key: seconds}, spent))
        return "done"
    spent[key] = seconds
    is_killed = code < 0 or (command.processes > 1 and _KILLED in _tail(run.output))
    if is_stopped or is_killed or code == EXIT_STOPPED:
        write(run.folder, State(state.done, spent))
        return "interrupted"
    write(run.folder, State(state.done, spent, failed=f"{command.script}: {error_in(run.output)}"))
    return "failed"


def forget_failure(run: Run) -> None:
    """Let a run that failed go on."""
    if (state := read(run.folder)).failed:
        write(run.folder, dataclasses.replace(state, failed=""))


def error_in(output: Path) -> str:
    """The last error in the output of the latest command, or else its last lines."""
    lines = [line for line in _tail(output).splitlines() if line.strip()]
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return errors[-1] if errors else " / ".join(lines[-_LINES:]) or "no output"


def last_line(output: Path) -> str:
    """The last line that a command printed."""
    return ([line for line in _tail(output).splitlines() if line.strip()] or ["no output"])[-1]


def _tail(output: Path) -> str:
    """The end of a file, after the line of the latest command."""
    text = output.read_bytes()[-20_000:].decode(errors="replace") if output.exists() else ""
    return text.rpartition("\n$ ")[2].partition("\n")[2]
