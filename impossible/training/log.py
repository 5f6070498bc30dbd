"""The log of a run: `log.jsonl`, with one record per step, and readable lines on the terminal."""

import json
import math
import shutil
import sys
import time
from pathlib import Path
from typing import Any

from impossible import files
from impossible.settings import Train
from impossible.training.tracker import Tracker
from model import GPT

NAME = "log.jsonl"
_CLEAR = "\r\033[K"  # to the beginning of the terminal's line, and empty it


class Log:
    """Writes the log of one run; silent in all processes but the first.

    Of the records, `loss` and `val_loss` are in nats per token, `mfu` is a share of the peak. On a
    terminal, each step overwrites the line of the step before; in a file, all lines are kept.
    """

    def __init__(
        self,
        out_dir: Path,
        is_first: bool,
        first_step: int,
        first_record: int,
        settings: Train,
    ) -> None:
        """Open the log of a run that is at `first_step`; drop records from `first_record` on."""
        self._path = out_dir / NAME
        self._is_first = is_first
        self._first_step = self._last_step = first_step
        self._max_steps = settings.max_steps
        self._tokens_per_step = settings.tokens_per_step
        self._is_live = sys.stdout.isatty()
        self._is_open = False  # whether the terminal's last line may be written over
        self._began = self._last_time = time.perf_counter()
        if is_first:
            self._drop_from(first_record)
            self._tracker = Tracker(settings, out_dir, is_new=first_record == 0)

    def say(self, text: str) -> None:
        """Print a line that is no record."""
        if self._is_first:
            self._print(text)

    def __enter__(self) -> "Log":
        return self

    def __exit__(self, *_: object) -> None:
        """Finish the line on the terminal, and the run of the tracker."""
        if self._is_open:
            print(flush=True)
        if self._is_first:
            self._tracker.finish()

    def speed(self, step: int, model: GPT, peak: float) -> dict[str, float]:
        """Tokens per second since the last record or pause, and their share of the peak FLOP/s."""
        now = time.perf_counter()
        speed = (step - self._last_step) * self._tokens_per_step / (now - self._last_time)
        self._last_step, self._last_time = step, now
        return {"tokens_per_second": speed, "mfu": speed * model.flops_per_token() / peak}

    def pause_ends(self, step: int) -> None:
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
            left = self.minutes() / done * (self._max_steps - record["step"])
            record = record | {"minutes_left": left}
        finite = {k: v if math.isfinite(v) else None for k, v in record.items()}
        files.append_line(self._path, json.dumps(finite, allow_nan=False))
        self._tracker.log(finite)
        self._print(self._line(record), passes="val_loss" not in record)

    def _print(self, text: str, passes: bool = False) -> None:
        """Print a line; on a terminal one that `passes` is cut to it, and the next replaces it."""
        self._is_open = self._is_live and passes
        if self._is_open:
            # One row: only that can be cleared. The last column would wrap.
            text = text[: shutil.get_terminal_size().columns - 1]
        if self._is_live:
            text = _CLEAR + text
        print(text, end="" if self._is_open else "\n", flush=True)

    def _line(self, record: dict[str, float]) -> str:
        step = record["step"]
        parts = [f"step {step}/{self._max_steps}"]
        if "loss" in record:
            parts += [
                f"loss {record['loss']:.4f}",
                f"lr {record['learning_rate']:.2e}",
                f"grad norm {record['grad_norm']:.2f}",
                f"{record['tokens_per_second']:,.0f} tokens/s",
                f"MFU {record['mfu']:.1%}",
            ]
        if "val_loss" in record:
            parts.append(f"validation loss {record['val_loss']:.4f}")
        if "minutes_left" in record:
            parts.append(f"{duration(record['minutes_left'] * 60)} left")
        return " | ".join(parts)

    def _drop_from(self, step: int) -> None:
        if self._path.exists():
            lines = self._path.read_bytes().splitlines()
            kept = [line for line in lines if _step_of(line) < step]
            with files.atomic_write(self._path) as file:
                file.write(b"".join(line + b"\n" for line in kept))


def read(out_dir: Path) -> list[dict[str, Any]]:
    """The records of a run's log, by step; [] if there is none."""
    path = out_dir / NAME
    if not path.exists():
        return []
    lines = path.read_bytes().splitlines()
    return [json.loads(line) for line in lines if _step_of(line) < math.inf]


def _step_of(line: bytes) -> float:
    try:
        return json.loads(line)["step"]
    except ValueError:
        return math.inf  # the line that a crash cut short


def duration(seconds: float) -> str:
    """A readable duration, in hours, minutes and seconds."""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {seconds:02d} s"
