"""Saving in the background: the loop waits for a copy of the tensors, and not for the disk."""

import copy
import threading
from collections.abc import Callable
from typing import Any

import torch


def copied(value: Any) -> Any:
    """The same value with copies of all tensors in it, on the CPU."""
    if isinstance(value, torch.Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: copied(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(copied, value))
    return copy.copy(value)


class Saver:
    """Runs one call at a time in a thread."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def start(self, call: Callable[[], None]) -> None:
        """Run a call in the background, after the one before. Raises the error of that one."""
        self.wait()
        self._thread = threading.Thread(target=self._run, args=(call,))
        self._thread.start()

    def wait(self) -> None:
        """Wait for the call that is running, if there is one. Raises its error."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        error, self._error = self._error, None
        if error is not None:
            raise error

    def _run(self, call: Callable[[], None]) -> None:
        try:
            call()
        except BaseException as error:  # raised in the loop's own thread
            self._error = error
