import errno
import os
import stat
import tempfile
from pathlib import Path

import pytest
from conftest import ROOT, settled_folder, start

from impossible import files, records
from impossible.settings import UserError


def test_a_write_that_fails_leaves_the_old_file_and_names_it(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_text("old")
    with pytest.raises(OSError, match="full") as error, files.atomic_write(path) as file:
        file.write(b"new")
        raise OSError(28, "disk full")
    assert error.value.filename == str(path)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_replaces_another_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "a"
    for content in ("old", "new"):
        with settled_folder(path) as folder:
            (folder / content).write_text(content)
        assert [p.name for p in path.iterdir()] == [content]
    with pytest.raises(ValueError, match="no"), settled_folder(path) as folder:
        (folder / "third").write_text("")
        raise ValueError("no")
    assert [p.name for p in path.iterdir()] == ["new"]
    assert list(tmp_path.iterdir()) == [path]


def is_locked_for_a_reader(folder: Path) -> bool:
    """files.is_locked, where every attempt to open a file for writing is refused."""
    real = os.open

    def read_only(path: str, flags: int, *rest: int, **names: int) -> int:
        if flags & (os.O_WRONLY | os.O_RDWR):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
        return real(path, flags, *rest, **names)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "open", read_only)
        return files.is_locked(folder)


def test_one_process_at_a_time_writes_to_a_folder(tmp_path: Path) -> None:
    (tmp_path / "a.unfinished").write_text("half")
    (tmp_path / "b.unfinished").mkdir()
    script = tmp_path / "holder.py"
    script.write_text(
        "import pathlib, sys, time\n"
        "from impossible import files\n"
        "with files.locked(pathlib.Path(sys.argv[1])):\n"
        "    print('held', flush=True)\n"
        "    time.sleep(60)\n"
    )
    holder = start(script, tmp_path, env={"PYTHONPATH": str(ROOT)})
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(UserError, match="another process is writing"), files.locked(tmp_path, 0.2):
        pass
    assert files.is_locked(tmp_path)
    assert is_locked_for_a_reader(tmp_path)
    holder.kill()
    holder.communicate()
    assert not files.is_locked(tmp_path)
    assert not is_locked_for_a_reader(tmp_path)
    with files.locked(tmp_path):
        assert not list(tmp_path.glob("*.unfinished"))


def test_the_umask_decides_who_may_lock(tmp_path: Path) -> None:
    before = os.umask(0o002)
    try:
        with files.locked(tmp_path):
            pass
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / files.LOCK).stat().st_mode) == 0o664


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EPERM, errno.ENOTSUP])
def test_disks_without_fsync_and_permissions_will_do(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", refuse)
    monkeypatch.setattr(os, "chmod", refuse)
    with files.atomic_write(tmp_path / "a") as file:
        file.write(b"new")
    with settled_folder(tmp_path / "b") as folder:
        (folder / "c").write_text("new")
    assert (tmp_path / "a").read_text() == (tmp_path / "b/c").read_text() == "new"


def test_a_disk_that_fails_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="Input/output"), files.atomic_write(tmp_path / "a") as file:
        file.write(b"new")
    assert not list(tmp_path.iterdir())


def write_results(folder: Path, source: str, **contents: str) -> None:
    """Replace the results in a folder by these files."""
    with tempfile.TemporaryDirectory() as results:
        for name, content in contents.items():
            (Path(results) / name).write_text(content)
        records.replace_results(folder, Path(results), folder / ".record.json", source)


def test_results_of_another_source_go_and_files_of_others_stay(tmp_path: Path) -> None:
    def names() -> set[str]:
        return {path.name for path in tmp_path.glob("[a-z]*")}

    (tmp_path / "mine").write_text("mine")
    write_results(tmp_path, "1", a="1", b="1")
    write_results(tmp_path, "1", a="2")
    assert names() == {"a", "b", "mine"}, "they have one source"
    write_results(tmp_path, "2", c="3")
    assert names() == {"c", "mine"}
    (tmp_path / "c").write_text("changed")
    for name in ("mine", "c", "new"):
        with pytest.raises(UserError, match="was not written by an evaluation, or was changed"):
            write_results(tmp_path, "3", **{name: "4"})
    assert names() == {"c", "mine"}


@pytest.mark.parametrize("record", ["[]", '{"source": "x"}', '{"source": "x", "files": 5}', "{"])
def test_a_damaged_record_of_results_replaces_nothing(record: str, tmp_path: Path) -> None:
    path = tmp_path / ".record.json"
    path.write_text(record, encoding="utf-8")
    records.require_own(tmp_path, path, ["a"])
    (tmp_path / "a").write_text("mine\n")
    with pytest.raises(UserError, match=r"a was not written by an evaluation"):
        records.require_own(tmp_path, path, ["a"])
