import json
import sys
from pathlib import Path

import pytest

from impossible import log
from impossible.log import Log
from impossible.settings import Settings


def make(out_dir: Path, first_step: int = 0, is_first: bool = True) -> Log:
    settings = Settings(max_steps=10, warmup_steps=0, tokens_per_step=1024, batch_size=1)
    return Log(out_dir, is_first, first_step, first_step + 1 if first_step else 0, settings)


def test_a_run_that_goes_on_drops_what_came_after_and_what_was_cut_short(tmp_path: Path) -> None:
    first = make(tmp_path)
    for step in range(5):
        first.write({"step": step, "val_loss": 1.0 / (step + 1)})
    with open(tmp_path / log.NAME, "a") as file:
        file.write('{"step": 5, "val')
    assert [r["step"] for r in log.read(tmp_path)] == [0, 1, 2, 3, 4]
    second = make(tmp_path, first_step=3)
    second.write({"step": 4, "val_loss": 0.5})
    assert [r["step"] for r in log.read(tmp_path)] == [0, 1, 2, 3, 4]
    assert log.read(tmp_path)[-1]["val_loss"] == 0.5
    make(tmp_path)
    assert log.read(tmp_path) == [], "a run from scratch begins a new log"


def test_other_processes_write_nothing(tmp_path: Path, capsys) -> None:  # noqa: ANN001
    silent = make(tmp_path, is_first=False)
    silent.say("hello")
    silent.write({"step": 0, "val_loss": 1.0})
    assert capsys.readouterr().out == ""
    assert log.read(tmp_path) == []


def test_a_record_is_strict_json_and_the_line_is_for_people(tmp_path: Path, capsys) -> None:  # noqa: ANN001
    record = {
        "step": 5,
        "loss": 6.0,
        "learning_rate": 1e-4,
        "grad_norm": float("inf"),
        "tokens_per_second": 12345.6,
        "mfu": 0.31,
    }
    make(tmp_path).write(record)

    def refuse(name: str) -> None:
        raise AssertionError(name)

    written = json.loads((tmp_path / log.NAME).read_text(), parse_constant=refuse)
    assert written["grad_norm"] is None
    assert written["loss"] == 6.0
    assert written["minutes_left"] >= 0
    line = capsys.readouterr().out
    assert line.startswith(
        "step 5/10 | loss 6.0000 | lr 1.00e-04 | grad norm inf | 12,346 tokens/s"
    )
    assert line.endswith("left\n")


def test_on_a_terminal_a_step_is_written_over_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    made = make(tmp_path)
    record = dict.fromkeys(("loss", "learning_rate", "grad_norm", "tokens_per_second", "mfu"), 1.0)
    made.write({"step": 1} | record)
    made.write({"step": 2} | record | {"val_loss": 1.0})
    first, second, end = capsys.readouterr().out.split("\r\033[K")[1:] + [""]
    assert first.startswith("step 1/10")
    assert "\n" not in first
    assert second.endswith("\n")
    assert end == ""


def test_a_line_of_a_terminal_is_cut_to_it_and_ended_before_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "40")
    made = make(tmp_path)
    record = dict.fromkeys(("loss", "learning_rate", "grad_norm", "tokens_per_second", "mfu"), 1.0)
    made.write({"step": 1} | record)
    made.__exit__()
    printed = capsys.readouterr().out
    assert len(printed) == len("\r\033[K") + 39 + len("\n")
    assert printed.endswith("\n")


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0.04, "0.0 s"), (3.21, "3.2 s"), (59.4, "59 s"), (61, "1 min 01 s"), (86400, "24 h 00 min")],
)
def test_durations_are_said_as_people_say_them(seconds: float, said: str) -> None:
    assert log.duration(seconds) == said
