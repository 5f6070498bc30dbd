"""Saving in the background: the loop waits for a copy of the tensors, and not for the disk."""

import copy
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
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
        self._pool = ThreadPoolExecutor(1)
        self._running: Future[None] | None = None

    def start(self, call: Callable[[], None]) -> None:
        """Run a call in the background, after the one before. Raises the error of that one."""
        self.wait()
        self._running = self._pool.submit(call)

    def wait(self) -> None:
        """Wait for the call that is running, if there is one. Raises its error, once."""
        running, self._running = self._running, None
        if running is not None:
            running.result()
