"""Files that are whole or absent: written beside their place, synced, and renamed into it."""

import fcntl
import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from errors import UserError

TEMPORARY = ".unfinished"  # the ending of a file or folder that is still being written
LOCK = ".lock"
_LOCK_WAIT = 10.0  # seconds


@contextmanager
def atomic_write(path: Path, previous: Path | None = None) -> Iterator[BinaryIO]:
    """Open a temporary file that becomes `path` when the block ends without an error.

    The bytes are on disk before the name is: a crash leaves the old file or the new one, and on
    an error (disk full, Ctrl-C) the temporary file is removed and the old file stays. With
    `previous` the old file takes that name; after a crash between the two, it alone is there.
    """
    temporary = path.with_name(path.name + TEMPORARY)
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if previous is not None and path.exists():
            os.replace(path, previous)
        os.replace(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        raise _named(error, path)
    _sync_folder(path.parent)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Make a temporary folder that becomes `path` (replacing it) when the block ends well."""
    with temporary_folder(path) as temporary:
        yield temporary
        settle_folder(temporary, path)


@contextmanager
def temporary_folder(path: Path) -> Iterator[Path]:
    """Make a folder beside `path` that is removed if the block ends with an error."""
    temporary = path.with_name(path.name + TEMPORARY)
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise _named(error, path)


def settle_folder(temporary: Path, path: Path) -> None:
    """Wait until a temporary folder is on disk, and give it its name."""
    for file in temporary.iterdir():
        with open(file, "rb") as handle:
            os.fsync(handle.fileno())
    if path.exists():
        shutil.rmtree(path)
    os.replace(temporary, path)
    _sync_folder(path.parent)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Be the only process that writes to a folder; what one that was killed began is removed.

    Waits a little for one that is ending. Raises UserError if another process stays. The lock goes
    with the process that holds it.
    """
    handle = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o644)  # NFS locks what is writable
    try:
        _lock(handle, folder)
        for path in folder.glob(f"*{TEMPORARY}"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        yield
    finally:
        os.close(handle)


def _lock(handle: int, folder: Path) -> None:
    end = time.monotonic() + _LOCK_WAIT
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except OSError as error:
            if not isinstance(error, BlockingIOError):
                print(f"warning: {folder} cannot be locked ({error.strerror}): run one at a time")
                return
            if time.monotonic() > end:
                raise UserError(
                    f"another process is writing to {folder}. Wait for it to end, or choose "
                    "another folder."
                )
        time.sleep(0.1)


def append_line(path: Path, line: str) -> None:
    """Add a line to a text file, and wait until it is on disk."""
    try:
        with open(path, "a", encoding="utf-8") as file:
            file.write(line + "\n")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise _named(error, path)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as readable UTF-8 JSON, whole or not at all."""
    with atomic_write(path) as file:
        file.write((json.dumps(value, ensure_ascii=False, indent=2) + "\n").encode())


def sha256(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _named(error: BaseException, path: Path) -> BaseException:
    """The same error; one of the disk (full, say) knows its file then."""
    cause: BaseException | None = error
    # torch.save goes on after a failed write, and fails of something else.
    while cause is not None and not (isinstance(cause, OSError) and cause.errno):
        cause = cause.__context__
    if not isinstance(cause, OSError):
        return error
    cause.filename = cause.filename or str(path)
    return cause


def _sync_folder(folder: Path) -> None:
    # The rename itself is on disk only once the folder is.
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
