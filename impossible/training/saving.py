"""Saving in the background: the loop waits for a copy of the tensors, and not for the disk."""

from collections import deque
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
    return value


_MOST = 3  # calls that wait or run: each holds 2 GB of GPT-2 Small


class Saver:
    """Runs calls in a thread, one after another."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1)
        self._pending: deque[Future[None]] = deque()

    def start(self, call: Callable[[], None]) -> None:
        """Run a call after those before it. Waits if there are too many. Raises their errors."""
        self.check()
        if len(self._pending) == _MOST:
            self._pending.popleft().result()
        self._pending.append(self._pool.submit(call))

    def check(self) -> None:
        """Raise the error of a call that has failed, once."""
        while self._pending and self._pending[0].done():
            self._pending.popleft().result()

    def wait(self) -> None:
        """Wait for all calls. Raises the error of the first that failed, once."""
        try:
            while self._pending:
                self._pending.popleft().result()
        finally:
            self._pending.clear()
