import json
import sqlite3
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest.mock import Mock

import pytest
import wandb
from wandb.proto.wandb_internal_pb2 import Record

from impossible import log
from impossible.log import Log
from impossible.settings import Settings, UserError


def make(out_dir: Path, first_step: int = 0, is_first: bool = True) -> Log:
    settings = Settings(out_dir=str(out_dir), max_steps=10, tokens_per_step=1024)
    return Log(settings, is_first, first_step, first_step + 1 if first_step else 0)


def test_a_run_that_goes_on_drops_what_came_after_and_what_was_cut_short(tmp_path: Path) -> None:
    first = make(tmp_path)
    assert log.read(tmp_path) == []
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


def test_other_processes_write_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    silent = make(tmp_path, is_first=False)
    silent.say("hello")
    silent.write({"step": 0, "val_loss": 1.0})
    assert capsys.readouterr().out == ""
    assert log.read(tmp_path) == []


def test_a_full_disk_is_an_error_with_the_name_of_the_log(tmp_path: Path) -> None:
    full = make(tmp_path)
    (tmp_path / log.NAME).unlink()
    (tmp_path / log.NAME).symlink_to("/dev/full")
    with pytest.raises(OSError, match=r"No space left on device.*log\.jsonl"):
        full.write({"step": 0, "val_loss": 1.0})


def test_a_record_is_strict_json_and_the_line_is_for_people(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    speed = {"tokens_per_second": 12345.6, "mfu": 0.31}
    record = {"step": 5, "loss": 6.0, "learning_rate": 1e-4, "grad_norm": float("inf")}
    make(tmp_path).write(record | speed)

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


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0.04, "0.0 s"), (3.21, "3.2 s"), (59.4, "59 s"), (61, "1 min 01 s"), (86400, "24 h 00 min")],
)
def test_durations_are_said_as_people_say_them(seconds: float, said: str) -> None:
    assert log.duration(seconds) == said


Sent = list[tuple[str, int, dict]]  # name of the run, step, values


@pytest.fixture(autouse=True)
def new_session() -> Iterator[None]:
    """wandb reads its variables once in a session."""
    yield
    wandb.teardown()


def sent_to_trackio(folder: Path) -> Sent:
    """What Trackio has stored."""
    with sqlite3.connect(folder / "mine.db") as database:
        rows = database.execute("SELECT run_name, step, metrics FROM metrics ORDER BY id")
        return [(name, step, json.loads(values)) for name, step, values in rows]


def sent_to_wandb(folder: Path) -> Sent:
    """What Weights & Biases would send: `wandb sync` reads the same files."""
    wandb.teardown()  # waits until its process has written all
    sent = []
    for path in sorted(folder.glob("wandb/offline-run-*/*.wandb")):
        records = list(map(Record.FromString, leveldb_records(path.read_bytes())))
        (name,) = {r.run.display_name for r in records if r.HasField("run")}
        for record in records:
            if record.HasField("history"):
                items = {item.key or item.nested_key[0]: item for item in record.history.item}
                values = {key: json.loads(item.value_json) for key, item in items.items()}
                sent.append((name, record.history.step.num, values))
    return sent


def leveldb_records(data: bytes) -> Iterator[bytes]:
    """The records of a file in LevelDB's log format, after a header of 7 bytes."""
    at, whole = 7, b""
    while at < len(data):
        if (room := 32768 - at % 32768) < 7:  # no record begins so near the end of a block
            at += room
            continue
        end = at + 7 + int.from_bytes(data[at + 4 : at + 6], "little")
        whole += data[at + 7 : end]
        if data[at + 6] in (1, 4):  # a whole record, or the last part of one
            yield whole
            whole = b""
        at = end


@pytest.mark.parametrize(
    ("package", "variables", "sent_to"),
    [
        ("trackio", {"TRACKIO_DIR": ""}, sent_to_trackio),
        ("wandb", {"WANDB_DIR": "", "WANDB_MODE": "offline"}, sent_to_wandb),
    ],
)
def test_a_tracker_gets_the_same_records_and_goes_on_with_a_run_that_is_resumed(
    package: str,
    variables: dict[str, str],
    sent_to: Callable[[Path], Sent],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder, out_dir = tmp_path / "tracker", tmp_path / "partial_reverse"
    folder.mkdir()
    out_dir.mkdir()
    for name, value in variables.items():
        monkeypatch.setenv(name, value or str(folder))
    settings = Settings(out_dir=str(out_dir), tracker=package, tracker_project="mine")
    with Log(settings, True, 0, 0) as first:
        first.write({"step": 0, "val_loss": 5.5})
        first.write(
            {"step": 1, "loss": 5.0, "learning_rate": 0.0, "grad_norm": float("inf")} | SPEED
        )
    with Log(settings, True, 1, 2) as resumed:
        resumed.write({"step": 2, "val_loss": 4.0})
    written = log.read(out_dir)

    sent = sent_to(folder)
    assert [step for _, step, _ in sent] == [0, 1, 2]
    assert len({name for name, _, _ in sent}) == 1, "it goes on there"
    assert sent[0][0].startswith("partial_reverse-")
    for record, (_, _, values) in zip(written, sent, strict=True):
        assert record.items() - {"step": record["step"]}.items() <= values.items()
    assert sent[1][2]["grad_norm"] is None

    with Log(settings, True, 0, 0) as anew:
        anew.write({"step": 0, "val_loss": 5.5})
    assert len({name for name, _, _ in sent_to(folder)}) == 2, "a run from scratch is another"


SPEED = {"tokens_per_second": 1.0, "mfu": 0.1}


def test_training_does_not_end_for_an_error_of_the_tracker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tracker = Mock(log=Mock(side_effect=ZeroDivisionError))
    monkeypatch.setitem(sys.modules, "wandb", tracker)
    settings = Settings(out_dir=str(tmp_path), tracker="wandb")
    with Log(settings, True, 0, 0) as tracked:
        for step in range(2):
            tracked.write({"step": step, "val_loss": 5.0})
    assert capsys.readouterr().out.count("warning: nothing more is sent to the tracker") == 1
    assert len(log.read(tmp_path)) == 2
    identity = (tmp_path / "tracker_id").read_text()
    with Log(settings, True, 0, 1):  # stopped after step 0
        assert (tmp_path / "tracker_id").read_text() == identity
    assert tracker.log.call_count == 1


def test_a_tracker_is_imported_only_if_wanted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for package in ("wandb", "trackio"):
        settings = Settings(out_dir=str(tmp_path), tracker=package)
        monkeypatch.setitem(sys.modules, package, None)  # not installed
        Log(Settings(out_dir=str(tmp_path)), True, 0, 0)
        Log(settings, False, 0, 0)  # another process than the first
        with pytest.raises(UserError, match=rf"\(pip install {package}\).* --tracker=none"):
            Log(settings, True, 0, 0)


def test_a_tracker_that_cannot_start_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("WANDB_API_KEY", "too short")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    with pytest.raises(UserError, match=r"wandb could not start .*--tracker=none"):
        Log(Settings(out_dir=str(tmp_path), tracker="wandb"), True, 0, 0)
    assert wandb.run is None
