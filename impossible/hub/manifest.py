"""The manifest of a run's exports: their checkpoints, and the SHA-256 of their files."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from impossible import checkpoint, files
from impossible.checkpoint import Checkpoint
from impossible.hub import card, export
from impossible.settings import UserError

NAME = "manifest.json"
_NEAR = 10  # steps: in fp16, updates are skipped while gradients overflow

# Name of a checkpoint -> step, source_sha256 (of the checkpoint), max_logit_difference, and files
# (name -> SHA-256).
Manifest = dict[str, dict[str, Any]]


def require_complete(paths: list[Path], last: Checkpoint, is_published: bool) -> None:
    """Raise UserError if `paths`, in order of step, lack a checkpoint of the run before `last`.

    is_published: also raise it if `last` is not the end of the run.
    """
    folder, max_steps = paths[0].parent, last.settings.max_steps
    steps = [step for step in checkpoint.kept_steps(last.settings, last.data) if step < last.step]
    expected = [checkpoint.path_of(folder, step) for step in steps]
    if missing := [path.name for path in expected if path not in paths]:
        raise UserError(
            f"{folder} lacks {', '.join(missing)}, which a run of {last.step} steps with these "
            "settings must have. Put them back, or train again in another --out_dir="
        )
    if is_published and last.step < max_steps:
        raise UserError(
            f"{paths[-1]} is the last checkpoint, and the run has {max_steps} steps. Finish the "
            "run (train.py resumes it) before you publish its checkpoints."
        )


def read(hf_dir: Path) -> Manifest:
    """The manifest of a run; empty before the first export. Raises UserError if it is damaged."""
    path = hf_dir / NAME
    try:
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}). Delete it; the exports will be made again.")


def write(hf_dir: Path, manifest: Manifest) -> None:
    """Write the manifest, unless the file holds it already."""
    if read(hf_dir) != manifest:
        files.write_json(hf_dir / NAME, manifest)


def keep_valid(hf_dir: Path, sources: Mapping[str, str]) -> Manifest:
    """Delete exports whose files or checkpoint have changed. Returns the manifest of the others.

    sources: the SHA-256 of each checkpoint of the run, by name. Cards are ignored, as they are
    written again.
    """
    valid, others, no_card = {}, [], {card.NAME: ""}
    for name, entry in read(hf_dir).items():
        is_same = export.hashes(hf_dir / name) | no_card == entry["files"] | no_card
        if is_same and entry["source_sha256"] == sources.get(name):
            valid[name] = entry
        else:
            others.append(name)
    write(hf_dir, valid)
    for name in others:
        shutil.rmtree(hf_dir / name, ignore_errors=True)
        if name in sources:
            print(f"exporting {name} again: its checkpoint or its files have changed")
    return valid


def require_new_weights(name: str, new: dict[str, Any], manifest: Manifest, dtype: str) -> None:
    """Raise UserError if another checkpoint has the same weights. new: the entry of `name`.

    Steps 0 and 1 may share weights (the first learning rate is 0), as may close steps in fp16.
    """
    for other, entry in manifest.items():
        steps = sorted((entry["step"], new["step"]))
        is_near = dtype == "float16" and steps[1] - steps[0] < _NEAR
        is_same = entry["files"][export.WEIGHTS] == new["files"][export.WEIGHTS]
        if is_same and steps != [0, 1] and not is_near:
            raise UserError(
                f"{name}.pt has the same weights as {other}.pt. Either one is a copy (restore the "
                "right file), or training changed nothing between them (train again in another "
                "--out_dir=)."
            )
