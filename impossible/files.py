"""Atomic writing (a temporary file is synced, then renamed), locks of folders, and hashes."""

import errno
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from filelock import FileLock, Timeout

from impossible.settings import UserError, is_utf8

TEMPORARY = ".unfinished"  # the ending of a file or folder that is still being written
LOCK = ".lock"
_LOCK_WAIT = 10.0  # seconds
# Error numbers of fsync on disks that do not support it (CIFS, exFAT, some NFS).
_NOT_SUPPORTED = {errno.EINVAL, errno.EPERM, errno.EACCES, errno.ENOTSUP, errno.ENOSYS, errno.EBADF}


@contextmanager
def atomic_write(path: Path, previous: Path | None = None) -> Iterator[BinaryIO]:
    """Open a temporary file that becomes `path` when the block ends without an error.

    The bytes are on disk before the file is renamed, so a crash leaves either the old file or the
    new one. After an error (disk full, Ctrl-C), the temporary file is removed and the old file
    stays. If `previous` is given, the old file is renamed to it; after a crash between the
    two renamings, only `previous` exists.
    """
    temporary = path.with_name(path.name + TEMPORARY)
    try:
        with open(temporary, "wb") as file:
            yield file
        sync(temporary)
        if previous is not None and path.exists():
            os.replace(path, previous)
        os.replace(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        raise named(error, path)
    sync(path.parent)


@contextmanager
def locked(folder: Path, wait: float = _LOCK_WAIT) -> Iterator[None]:
    """Lock a folder for one process, and remove unfinished files of processes that were killed.

    If another process holds the lock, waits up to `wait` seconds and then raises UserError. The
    lock of a process that ends is released.
    """
    lock = FileLock(folder / LOCK, timeout=wait)
    try:
        lock.acquire()
    except Timeout:
        raise UserError(
            f"another process is writing to {folder}. Wait for it to end, or choose another folder."
        )
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EROFS):
            raise
        print(f"warning: {folder} cannot be locked ({error.strerror}): run one command at a time")
    try:
        for path in folder.glob(f"*{TEMPORARY}"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        yield
    finally:
        lock.release()


def is_locked(folder: Path) -> bool:
    """Whether another process holds the lock of a folder, which need not be writable."""
    try:
        with open(folder / LOCK) as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # no lock file, or a disk without locks
        return False
    return False


def sync(path: Path) -> None:
    """Wait until a file, or a folder's list of names, is on disk, if the disk supports it."""
    with suppress(FileNotFoundError, PermissionError):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        except OSError as error:
            if error.errno not in _NOT_SUPPORTED:
                raise
        finally:
            os.close(handle)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as readable UTF-8 JSON, whole or not at all."""
    with atomic_write(path) as file:
        file.write((json.dumps(value, ensure_ascii=False, indent=2) + "\n").encode())


def copy(path: Path, folder: Path) -> None:
    """Copy a file into a folder, whole or not at all."""
    with open(path, "rb") as source, atomic_write(folder / path.name) as target:
        shutil.copyfileobj(source, target)


def sha256(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def named(error: BaseException, path: Path) -> BaseException:
    """The disk error (such as a full disk) behind `error`, with the file's name; else `error`."""
    cause: BaseException | None = error
    # torch.save goes on after a failed write, and then fails with another error.
    while cause is not None and not (isinstance(cause, OSError) and cause.errno):
        cause = cause.__context__
    if not isinstance(cause, OSError):
        return error
    cause.filename = cause.filename or str(path)
    return cause


def require_utf8(path: Path) -> Path:
    """Return the path. Raises UserError if it is not UTF-8, which tables and JSON files need."""
    if not is_utf8(str(path)):
        raise UserError(f"the name of {path} is not UTF-8. Rename it, or the folder that it is in.")
    return path
