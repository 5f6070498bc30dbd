"""Running a command: reading its settings, and printing its errors in one line."""

import errno
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any, NoReturn, TypeVar

from impossible import options, terminal
from impossible.errors import UserError
from impossible.options import OfRun
from impossible.settings import Settings

S = TypeVar("S", bound=Settings)
_WAIT_FOR_FIRST = 5.0  # seconds
_MISUSE = 2  # the exit code of a mistake on the command line
_NOT_WRITABLE = "Choose a folder that you may write to with --data_dir= or --out_dir=."
_NO_FOLDER = "A folder was expected there; choose another with --data_dir= or --out_dir=."
_NO_ROOM = "Make room, or choose another disk with --data_dir= or --out_dir=."
_DISK_ADVICE = {
    errno.EACCES: _NOT_WRITABLE,
    errno.EPERM: _NOT_WRITABLE,
    errno.EROFS: _NOT_WRITABLE,
    errno.ENOTDIR: _NO_FOLDER,
    errno.EEXIST: _NO_FOLDER,
    errno.EDQUOT: _NO_ROOM,
    errno.ENOSPC: _NO_ROOM,
    errno.EFBIG: "Choose a disk that takes files of this size with --data_dir= or --out_dir=.",
}


def run(
    kind: type[S], main: Callable[[S], None], usage: str | None, of_run: OfRun | None = None
) -> None:
    """Run `main` with the settings in sys.argv. A UserError ends it with a one-line message.

    usage: the command's docstring, for --help. of_run: as in options.load.
    """
    guarded(lambda: main(options.load(kind, sys.argv[1:], of_run, usage)))


def run_several(
    kind: type[S], main: Callable[[list[S]], None], usage: str | None, of_run: OfRun | None = None
) -> None:
    """Like `run`, for a command that takes several config files."""
    guarded(lambda: main(options.load_several(kind, sys.argv[1:], of_run, usage)))


def guarded(call: Callable[[], Any]) -> None:
    """Call a function as a complete command."""
    terminal.protect()
    try:
        call()
    except SystemExit as end:
        if end.code == _MISUSE:  # tyro has told it, in the first process
            _let_the_first_speak()
        raise
    except KeyboardInterrupt:
        _fail("interrupted. Files on disk are kept; run the same command again to resume.")
    except Exception as error:
        _let_the_first_speak()
        if isinstance(error, UserError):
            _fail(str(error))
        if isinstance(error, OSError) and error.errno in _DISK_ADVICE and error.filename:
            _fail(f"{error.filename}: {error.strerror}. {_DISK_ADVICE[error.errno]}")
        traceback.print_exc()
        _fail(
            "unexpected error (see above). The saved files are intact: once the cause is "
            "removed, run the same command again to resume."
        )


def _let_the_first_speak() -> None:
    """Under torchrun, wait in all processes of a machine except the first.

    Most mistakes occur in every process: the first process reports them, and torchrun then ends
    the others while they wait. A mistake that occurs only in another process is reported as well.
    """
    if os.environ.get("LOCAL_RANK", "0") != "0":
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # train.py would only take note of it
        time.sleep(_WAIT_FOR_FIRST)


def _fail(message: str) -> NoReturn:
    print(f"error: {message}", file=sys.stderr, flush=True)
    if "LOCAL_RANK" in os.environ:
        # At once: unwinding under a process group can hang (see processes.disconnect).
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(1)
    sys.exit(1)
