"""A second place for the log: Weights & Biases, or Trackio on one's own machine."""

import dataclasses
import importlib
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from impossible import files
from impossible.errors import UserError
from impossible.settings import Train

_ID = "tracker_id"  # a file in out_dir: which run there belongs to this one


class Tracker:
    """Sends the records of one run to the tracker that the settings name, or to none."""

    def __init__(self, settings: Train, out_dir: Path, is_new: bool) -> None:
        """Begin a run there, or continue the one of this folder.

        Raises UserError if the package is missing or cannot start.
        """
        self._package: Any = None
        if settings.tracker == "none":
            return
        try:
            self._package = importlib.import_module(settings.tracker)
        except ImportError:
            raise UserError(
                f"tracker = {settings.tracker} needs a package that is not installed. Type: pip "
                f"install {settings.tracker}"
            )
        run = _id_of(out_dir, is_new)
        options = {"id": run} if settings.tracker == "wandb" else {}  # Trackio knows names alone
        try:
            self._package.init(
                project=settings.tracker_project,
                name=f"{out_dir.name}-{run}",
                resume="allow",
                config=dataclasses.asdict(settings),
                **options,
            )
        except Exception as error:  # each package has its own
            raise UserError(
                f"{settings.tracker} could not start ({type(error).__name__}: {error}). Training "
                "does not need it: set --tracker=none"
            )

    def log(self, record: dict[str, Any]) -> None:
        """Send the record of a step."""
        values = {name: value for name, value in record.items() if name != "step"}
        self._try(lambda package: package.log(values, step=record["step"]))

    def finish(self) -> None:
        """End the run there, after all records have arrived."""
        self._try(lambda package: package.finish())

    def _try(self, call: Callable[[Any], None]) -> None:
        """Training does not end for an error of the tracker: log.jsonl holds all records."""
        try:
            if self._package:
                call(self._package)
        except Exception as error:
            print(f"warning: nothing more is sent to the tracker ({type(error).__name__}: {error})")
            self._package = None


def _id_of(out_dir: Path, is_new: bool) -> str:
    path = out_dir / _ID
    if is_new or not path.exists():
        with files.atomic_write(path) as file:
            file.write(uuid.uuid4().hex[:8].encode())
    return path.read_text()
