"""The log of a run: `log.jsonl`, lines on the terminal, and a tracker if the settings name one."""

import importlib
import json
import math
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from impossible import files
from impossible.settings import Settings, UserError

NAME = "log.jsonl"
_TRACKER_ID = "tracker_id"  # a file in out_dir with the id of the tracker's run
_SHOWN = {
    "loss": "loss {:.4f}",
    "learning_rate": "lr {:.2e}",
    "grad_norm": "grad norm {:.2f}",
    "tokens_per_second": "{:,.0f} tokens/s",
    "mfu": "MFU {:.1%}",
    "val_loss": "validation loss {:.4f}",
}


class Log:
    """The log of one run; only the first process writes it.

    In a record, `loss` and `val_loss` are in nats per token; `mfu` is a share of the peak FLOP/s.
    """

    def __init__(
        self, settings: Settings, is_first: bool, first_step: int, first_record: int
    ) -> None:
        """Open the log of a run that is at `first_step`; drop records from `first_record` on."""
        self._settings, self._is_first = settings, is_first
        self._path = Path(settings.out_dir) / NAME
        self._first_step = self._last_step = first_step
        self._began = self._last_time = time.perf_counter()
        self._tracker: Any = None
        if is_first:
            records = [r for r in read(self._path.parent) if r["step"] < first_record]
            with files.atomic_write(self._path) as file:
                file.write("".join(json.dumps(r) + "\n" for r in records).encode())
            if settings.tracker != "none":
                self._tracker = _open_tracker(settings, is_new=first_record == 0)

    def __enter__(self) -> "Log":
        return self

    def __exit__(self, *_: object) -> None:
        self._track(lambda tracker: tracker.finish())

    def say(self, text: str) -> None:
        """Print text that does not belong in the log file."""
        if self._is_first:
            print(text, flush=True)

    def speed(self, step: int, flops_per_token: int, peak: float) -> dict[str, float]:
        """Tokens per second since the last record or pause, and their share of the peak FLOP/s."""
        now = time.perf_counter()
        tokens = (step - self._last_step) * self._settings.tokens_per_step
        speed = tokens / (now - self._last_time)
        self._last_step, self._last_time = step, now
        return {"tokens_per_second": speed, "mfu": speed * flops_per_token / peak}

    def end_pause(self, step: int) -> None:
        """Exclude the time since the last record (validation, saving) from the speed."""
        self._last_step, self._last_time = step, time.perf_counter()

    def minutes(self) -> float:
        """Minutes since the run was started or resumed."""
        return (time.perf_counter() - self._began) / 60

    def write(self, record: dict[str, float]) -> None:
        """Add the record of a step to the file (null where not finite), and print it."""
        if not self._is_first:
            return
        if done := record["step"] - self._first_step:
            steps = self._settings.max_steps - record["step"]
            record = record | {"minutes_left": self.minutes() / done * steps}
        finite = {k: v if math.isfinite(v) else None for k, v in record.items()}
        try:
            with open(self._path, "a", encoding="utf-8") as file:
                file.write(json.dumps(finite) + "\n")
        except OSError as error:
            raise files.named(error, self._path)
        values = {name: value for name, value in finite.items() if name != "step"}
        self._track(lambda tracker: tracker.log(values, step=record["step"]))
        self.say(self._line(record))

    def _line(self, record: dict[str, float]) -> str:
        parts = [text.format(record[name]) for name, text in _SHOWN.items() if name in record]
        if "minutes_left" in record:
            parts.append(f"{duration(record['minutes_left'] * 60)} left")
        return " | ".join([f"step {record['step']}/{self._settings.max_steps}", *parts])

    def _track(self, call: Callable[[Any], None]) -> None:
        """Call the tracker. An error only prints a warning, because log.jsonl holds all records."""
        try:
            if self._tracker:
                call(self._tracker)
        except Exception as error:
            print(f"warning: nothing more is sent to the tracker ({type(error).__name__}: {error})")
            self._tracker = None


def _open_tracker(settings: Settings, is_new: bool) -> Any:
    """Start or continue the tracker's run for out_dir. Returns the tracker's package.

    Raises UserError if the package is missing or cannot start.
    """
    name, out_dir = settings.tracker, Path(settings.out_dir)
    id_file = out_dir / _TRACKER_ID
    if is_new or not id_file.exists():
        with files.atomic_write(id_file) as file:
            file.write(uuid.uuid4().hex[:8].encode())
    run_id = id_file.read_text()
    try:
        tracker = importlib.import_module(name)
        tracker.init(
            project=settings.tracker_project,
            name=f"{out_dir.name}-{run_id}",
            resume="allow",
            config=settings.read_by("train.py"),
            **({"id": run_id} if name == "wandb" else {}),  # Trackio identifies runs by name
        )
    except Exception as error:  # each package has its own
        raise UserError(
            f"{name} could not start ({type(error).__name__}: {error}). Install it (pip install "
            f"{name}), correct its settings, or set --tracker=none: training does not need it."
        )
    return tracker


def read(out_dir: Path) -> list[dict[str, Any]]:
    """The records of a run's log, by step; [] if there is none."""
    path, records = out_dir / NAME, []
    for line in path.read_bytes().splitlines() if path.exists() else []:
        with suppress(ValueError):  # the line that a crash cut short
            records.append(json.loads(line))
    return records


def duration(seconds: float) -> str:
    """A readable duration, in hours, minutes and seconds."""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {seconds:02d} s"
