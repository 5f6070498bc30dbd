"""What has been done of each run: recorded in its folder by whatever executes its commands."""

import dataclasses
import json
import re
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from impossible import checkpoint, files
from impossible.study.plan import Command, Plan, Run, digest, is_same

NAME = "state.json"
PREPARING = "prepare.txt"  # what prepare.py prints
EXIT_STOPPED = 75  # of train.py: the last whole step is saved
ATTEMPTS = 3  # of a command that is killed
# What torchrun, whose own exit code is 1, says of a process that was killed or asked to end, after
# the heading of the process that ended first. (It then asks the others to end.)
_FIRST = "Root Cause"
_BY_SIGNAL = re.compile(rf"Signal (9|15) \(SIG|exitcode *: {EXIT_STOPPED}\b")
_KILLED = (
    f"killed {ATTEMPTS} times, perhaps because memory ran out. Use a smaller --batch_size= or "
    "--at_once=, or more --memory_gb= on SLURM."
)
_SHOWN = 3  # lines of the output, where it has no error
# What errors of the commands advise, and what helps in a study.
_FOLDERS = re.compile(r"--(data|out|eval)_dir=( or --(data|out|eval)_dir=)*")
_AGAIN = re.compile(r"(R|r)un the same command again")


@dataclass(frozen=True)
class State:
    """What has been done of a run."""

    done: dict[str, str] = field(default_factory=dict)  # command -> hash of its settings
    seconds: dict[str, float] = field(default_factory=dict)  # command -> of all its attempts
    failed: str = ""  # the command that failed and its error
    running: dict[str, Any] = field(default_factory=dict)  # command, since, job (of SLURM)


def read(folder: Path) -> State:
    """The state of a run: empty if it has not begun, and failed if its file is damaged."""
    path = folder / NAME
    try:
        state = State(**json.loads(path.read_text(encoding="utf-8")))
        if [type(value) for value in vars(state).values()] != [dict, dict, str, dict]:
            raise TypeError("a field has another type")
    except FileNotFoundError:
        return State()
    except (ValueError, TypeError) as error:
        return State(
            failed=f"{path} is damaged ({error}). Run the study again with --retry: it starts the "
            "commands of this run again, and they skip what they have done."
        )
    return state


def write(folder: Path, state: State) -> None:
    """Record the state of a run."""
    files.write_json(folder / NAME, dataclasses.asdict(state))


def following(plan: Plan, run: Run) -> Command | None:
    """The next command of a run; None if all are done."""
    done = read(run.folder).done
    for command in plan.commands(run):
        before = done.get(command.key)
        is_done = before is not None and is_same(before, digest(run, command))
        if not is_done or not _is_there(run, command):
            return command
    return None


def _is_there(run: Run, command: Command) -> bool:
    """Whether the result of a finished command still exists."""
    if command.script == "train.py":
        return checkpoint.path_of(run.folder, run.settings.max_steps).exists()
    if command.script == "convert_to_hf.py":
        return (checkpoint.hf_dir(run.folder) / "manifest.json").exists()
    return True


def begin(run: Run, command: Command, job: str = "") -> None:
    """Record that a command of a run is being started. job: the number of the job on SLURM."""
    state = read(run.folder)
    seconds = state.seconds
    if state.running and run.output.exists():  # killed, with what would have recorded its end
        until = run.output.stat().st_mtime
        seconds = _added(seconds, state.running["command"], until - state.running["since"])
    running = {"command": command.key, "since": time.time(), "digest": digest(run, command)}
    running |= {"job": job} if job else {}
    write(run.folder, State(state.done, seconds, running=running))


def end(run: Run, command: Command, code: int, is_stopped: bool, gives_up: bool = False) -> str:
    """Record how a command ended: `done`, `interrupted` or `failed`, which is returned.

    code: its exit code, or minus the signal that killed it. is_stopped: whether it was to end.
    gives_up: it is not resumed any more if it was killed.
    """
    state = read(run.folder)
    since = state.running.get("since", time.time())
    seconds = _added(state.seconds, command.key, time.time() - since)
    if code == 0:
        done = state.done | {command.key: state.running.get("digest", "")}  # at its start
        write(run.folder, State(done, seconds))
        return "done"
    first = _tail(run.output).rpartition(_FIRST)[2]
    under_torchrun = command.processes > 1 and _BY_SIGNAL.search(first)
    is_killed = not is_stopped and (code < 0 or bool(under_torchrun))
    if is_stopped or code == EXIT_STOPPED or (is_killed and not gives_up):
        write(run.folder, State(state.done, seconds))
        return "interrupted"
    reason = _KILLED if is_killed else adapted(error_in(run.output))
    failed = f"{command.script}: {reason} (in {run.output})"
    write(run.folder, State(state.done, seconds, failed=failed))
    return "failed"


def _added(seconds: dict[str, float], key: str, more: float) -> dict[str, float]:
    return seconds | {key: seconds.get(key, 0.0) + max(0.0, more)}


def forget_failure(run: Run) -> None:
    """Let a run that failed be tried again."""
    if (state := read(run.folder)).failed:
        write(run.folder, dataclasses.replace(state, failed=""))


def adapted(error: str) -> str:
    """An error of a run whose advice helps in a study."""
    return _AGAIN.sub(r"\1un the study again with --retry", _FOLDERS.sub("--study_dir=", error))


def error_in(output: Path) -> str:
    """The last error in the output of the latest command, or else its last lines.

    For an unexpected error, this is the last line of its traceback.
    """
    lines = _lines(output)
    errors = [number for number, line in enumerate(lines) if line.startswith("error: ")]
    reason = lines[errors[-1]].removeprefix("error: ") if errors else ""
    if not errors or reason.startswith("unexpected error"):
        cause = _exception(lines[: errors[-1]] if errors else lines)
        reason = cause or " / ".join(lines[-_SHOWN:]) or "no output"
    return _FOLDERS.sub("--study_dir=", reason)


def _exception(lines: list[str]) -> str:
    """The exception of the last traceback that is not torchrun's own; empty if there is none."""
    found = ""
    for number, line in enumerate(lines):
        if line.startswith("Traceback (most recent call last)"):
            after = (line for line in lines[number + 1 :] if not line.startswith(" "))
            exception = next(after, "")
            found = found if "ChildFailedError" in exception else exception
    return found


def problem_of_data(plan: Plan) -> str:
    """Why prepare.py failed when the study last started it; empty if it did not."""
    output = plan.folder / PREPARING
    if "error: " not in _tail(output):
        return ""
    return f"The latest preparation of data failed: {error_in(output)} (in {output})"


def last_line(output: Path) -> str:
    """The last line that a command printed."""
    return (_lines(output) or ["no output"])[-1]


def _lines(output: Path) -> list[str]:
    return [line for line in _tail(output).splitlines() if line.strip()]


def _tail(output: Path) -> str:
    """The end of a file, after the line of the latest command."""
    text = output.read_bytes()[-20_000:].decode(errors="replace") if output.exists() else ""
    return text.rpartition("\n$ ")[2].partition("\n")[2]
