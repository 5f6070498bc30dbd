"""The manifest of a run's exports: their checkpoints, and whether they are still valid."""

import json
import shutil
from pathlib import Path
from typing import Any

from impossible import checkpoint, files
from impossible.checkpoint import Checkpoint
from impossible.hub import card, export
from impossible.settings import UserError

NAME = "manifest.json"
_NEAR = 10  # steps: fp16 skips those whose gradient overflows


def require_finished(path: Path) -> None:
    """Raise UserError unless this is the last checkpoint of its run, as main must be the last."""
    last = checkpoint.load(path)
    if last.step < last.settings.max_steps:
        raise UserError(
            f"{path} is the last checkpoint, and the run has {last.settings.max_steps} steps. "
            "Finish it (train.py resumes it) before its series is published."
        )


def require_complete(paths: list[Path], last: Checkpoint) -> None:
    """Raise UserError unless these are all checkpoints up to the last of them. paths: by step."""
    folder = paths[0].parent
    steps = [step for step in checkpoint.kept_steps(last.settings, last.data) if step < last.step]
    expected = [checkpoint.path_of(folder, step) for step in steps]
    if missing := [path.name for path in expected if path not in paths]:
        raise UserError(
            f"{folder} lacks {', '.join(missing)}, which a run of {last.step} steps with these "
            "settings must have. Put them back, or train again in another --out_dir="
        )


def read(hf_dir: Path) -> dict[str, Any]:
    """What was exported so far: name of the checkpoint -> source, step and files."""
    path = hf_dir / NAME
    if not path.exists():
        return {}
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}). Delete it; the exports will be made again.")


def is_good(hf_dir: Path, entry: dict[str, Any] | None, sha256: str) -> bool:
    """Whether there is an export of this source, its files as they were written.

    sha256: that of the present checkpoint file. The card is ignored, as it is written again.
    """
    if entry is None:
        return False
    name = f"checkpoint-{entry['step']}"
    if entry["source_sha256"] != sha256:
        print(f"exporting {name} again: its checkpoint has changed")
        return False
    if not (hf_dir / name).is_dir() or _without_card(export.hashes(hf_dir / name)) != (
        _without_card(entry["files"])
    ):
        print(f"exporting {name} again: its files have changed since they were written")
        return False
    return True


def _without_card(hashes: dict[str, str]) -> dict[str, str]:
    return {name: value for name, value in hashes.items() if name != card.NAME}


def forget(hf_dir: Path, manifest: dict[str, Any], name: str) -> None:
    """Remove an export of an outdated checkpoint, so that nobody loads it."""
    del manifest[name]
    files.write_json(hf_dir / NAME, manifest)
    shutil.rmtree(hf_dir / name, ignore_errors=True)


def require_new_weights(name: str, new: dict[str, Any], manifest: dict[str, Any]) -> None:
    """Raise UserError if another step has the very same weights. new: its entry, with files.

    Steps 0 and 1 may have, as the first update has a learning rate of 0; and in fp16, near steps.
    """
    for other, entry in manifest.items():
        steps = sorted((entry["step"], new["step"]))
        is_near = new["settings"]["dtype"] == "float16" and steps[1] - steps[0] < _NEAR
        is_same = entry["files"][export.WEIGHTS] == new["files"][export.WEIGHTS]
        if is_same and steps != [0, 1] and not is_near:
            raise UserError(
                f"{name}.pt has the same weights as {other}.pt. Either one is a copy (restore the "
                "right file), or training changed nothing between them (train again in another "
                "--out_dir=)."
            )
