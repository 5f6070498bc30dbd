"""Signals that ask a run to end: it then stops after a whole step instead of at once."""

import contextlib
import os
import signal
from typing import Any

from impossible.training import processes

# Windows lacks most of them. SIGQUIT (Ctrl-\) stays the way to end a run at once.
STOPPING = [
    getattr(signal, name)
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGXCPU")
    if hasattr(signal, name)
]


def listen(got: list[int], is_first: bool) -> None:
    """From now on, append signals that ask for an end to `got`; the first process prints them.

    A signal that is ignored already, as nohup does with SIGHUP, stays ignored. A second Ctrl-C ends
    the process at once. torchrun passes on the first one as SIGINT and the second one as SIGTERM.
    """

    def stop(number: int, _: Any) -> None:
        if is_first and not got:  # not by print(), which this may have interrupted
            told = f"\n{signal.Signals(number).name}: stopping, and saving the last whole step\n"
            with contextlib.suppress(OSError):
                os.write(2, told.encode())
        got.append(number)
        if number == signal.SIGINT:
            second = signal.SIGTERM if processes.is_launched() else signal.SIGINT
            signal.signal(second, signal.default_int_handler)

    for number in STOPPING:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, stop)
