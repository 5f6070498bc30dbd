import errno
import os
import stat
from pathlib import Path

import pytest
from conftest import ROOT, settled_folder, start

from impossible import files
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


def test_the_hash_is_that_of_the_bytes(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    assert files.sha256(tmp_path / "a").startswith("ba7816bf8f01cfea")


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
