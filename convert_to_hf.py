"""Export every checkpoint of a run to a folder that transformers loads, and publish the series.

    python convert_to_hf.py                             # out/partial_reverse
    python convert_to_hf.py config/full_reverse.py
    python convert_to_hf.py --push_to_hub=USER/NAME     # and publish; add --dry_run to see what

Writes out_dir/hf/checkpoint-N/ for each checkpoint-N.pt, and out_dir/hf/manifest.json, which
says what was made of what. An export counts only after transformers has loaded it and given
the logits of our own model; good exports are not made again. On the Hub each checkpoint is the
branch of its name, and main is the last one; what is published already is not sent again.
"""

import dataclasses
import json
import random
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tqdm import tqdm

import card
import checkpoint
import configurator
import export
import files
import log
import publish
from checkpoint import Checkpoint
from configurator import Settings
from errors import UserError
from publish import Publication, Revision

MANIFEST = "manifest.json"
PUBLISHED = "published.json"
_DOWNLOAD = "download" + files.TEMPORARY


def main(settings: Settings) -> None:
    """Export all checkpoints of out_dir that have no good export yet; publish them if asked to."""
    out_dir = Path(settings.out_dir)
    paths = checkpoint.list_checkpoints(out_dir)
    if not paths:
        raise UserError(
            f"no checkpoint-N.pt in {out_dir}. Train first (train.py, with the same config file "
            "and --out_dir as here)."
        )
    require_complete(paths, checkpoint.check_series(paths, settings.language))
    publication = None
    if repo := settings.push_to_hub:
        require_finished(paths[-1])
        api = publish.sign_in(repo)  # before the work of exporting: this may fail
        flags = (settings.private, settings.overwrite, settings.dry_run)
        publication = Publication(api, repo, *flags)
    hf_dir = checkpoint.hf_dir(out_dir)
    hf_dir.mkdir(exist_ok=True)
    with files.locked(hf_dir):
        manifest = export_all(paths, settings)
        if publication:
            _publish(publication, manifest, settings)


def export_all(paths: list[Path], settings: Settings) -> dict[str, Any]:
    """Export checkpoints that have no good export, and write all cards; the manifest."""
    hf_dir = checkpoint.hf_dir(paths[0].parent)
    manifest = read_manifest(hf_dir)
    for name in manifest.keys() - {path.stem for path in paths}:  # of checkpoints that are gone
        _forget(hf_dir, manifest, name)
    # While one is exported, the next is hashed, and the one before is hashed and goes to the disk.
    with ThreadPoolExecutor(1) as ahead, ThreadPoolExecutor(1) as behind:
        source = ahead.submit(checkpoint.sha256_of_whole, paths[0])
        settled = behind.submit(int)  # nothing yet
        for path, following in zip(tqdm(paths, disable=None), [*paths[1:], None], strict=True):
            sha256 = source.result()
            if following:
                source = ahead.submit(checkpoint.sha256_of_whole, following)
            if is_good(hf_dir, manifest.get(path.stem), sha256, settings.export_dtype):
                continue
            if path.stem in manifest:
                settled.result()
                _forget(hf_dir, manifest, path.stem)
            entry = _export(path, sha256, hf_dir, settings)
            settled.result()
            settled = behind.submit(_settle, hf_dir, path.stem, entry, manifest)
        settled.result()
    _write_cards(paths, hf_dir, manifest, settings)
    worst = max(manifest[path.stem]["max_logit_difference"] for path in paths)
    print(
        f"{len(paths)} checkpoint(s) exported in {hf_dir}; transformers computes the same logits "
        f"(largest difference {worst:.1e} of the largest logit)"
    )
    return {path.stem: manifest[path.stem] for path in paths}


def _settle(hf_dir: Path, name: str, entry: dict[str, Any], manifest: dict[str, Any]) -> None:
    """Give a finished export its place, and then its entry in the manifest."""
    temporary = hf_dir / (name + files.TEMPORARY)
    try:
        entry["files"] = export.hashes(temporary)
        _require_new_weights(name, entry["files"], manifest)
        files.settle_folder(temporary, hf_dir / name)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    manifest[name] = entry
    files.write_json(hf_dir / MANIFEST, manifest)


def _export(path: Path, sha256: str, hf_dir: Path, settings: Settings) -> dict[str, Any]:
    """Export one checkpoint to a temporary folder; its entry of the manifest, but for the files."""
    loaded = checkpoint.load(path)
    with files.temporary_folder(hf_dir / path.stem) as folder:
        difference = export.write_folder(loaded, path, folder, settings.export_dtype)
    return {
        "source_sha256": sha256,
        "step": loaded.step,
        "val_loss": loaded.val_loss,
        "dtype": settings.export_dtype,
        "settings": loaded.settings,
        "max_logit_difference": difference,
    }


def _write_cards(
    paths: list[Path], hf_dir: Path, manifest: dict[str, Any], settings: Settings
) -> None:
    """Write README.md of each export, where it is not what it has to be."""
    records = log.read(paths[0].parent)
    for path in paths:
        text = card.text(
            checkpoint.load(path),
            records,
            settings.export_dtype,
            settings.model_license,
            settings.push_to_hub,
        )
        place, hashes = hf_dir / path.stem / card.NAME, manifest[path.stem]["files"]
        if not place.exists() or place.read_text(encoding="utf-8") != text:
            with files.atomic_write(place) as file:
                file.write(text.encode())
        hashes[card.NAME] = files.sha256(place)
    if read_manifest(hf_dir) != manifest:
        files.write_json(hf_dir / MANIFEST, manifest)


def _publish(publication: Publication, manifest: dict[str, Any], settings: Settings) -> None:
    """Publish all exports, main last, and try one of them as it comes back from the Hub."""
    hf_dir = checkpoint.hf_dir(Path(settings.out_dir))
    revisions = [
        Revision(
            branch=name,
            folder=hf_dir / name,
            files=entry["files"],
            step=entry["step"],
            val_loss=entry["val_loss"],
            source_sha256=entry["source_sha256"],
        )
        for name, entry in manifest.items()
    ]
    revisions.append(dataclasses.replace(revisions[-1], branch="main"))
    uploaded = publication.publish(revisions)
    if settings.dry_run:
        return
    repo, before = settings.push_to_hub, _published(hf_dir)
    record = {"repo": repo, "manifest_sha256": files.sha256(hf_dir / MANIFEST)}
    if uploaded or before != record:
        suspect = before.get("not_proven") if before.get("repo") == repo else None
        chosen = [r for r in revisions if r.branch == suspect] or uploaded or revisions
        _try_one(publication, random.choice(chosen), settings)
        files.write_json(hf_dir / PUBLISHED, record)
    print(f"{repo} holds all {len(revisions)} revisions")


def _try_one(publication: Publication, revision: Revision, settings: Settings) -> None:
    """Raise UserError unless a revision, downloaded, gives the logits of its checkpoint."""
    folder = checkpoint.hf_dir(Path(settings.out_dir)) / _DOWNLOAD
    shutil.rmtree(folder, ignore_errors=True)
    try:
        publication.download(revision, folder)
        # Until it is, the next run asks for this one again.
        record = {"repo": settings.push_to_hub, "not_proven": revision.branch}
        files.write_json(folder.parent / PUBLISHED, record)
        path = checkpoint.path_of(Path(settings.out_dir), revision.step)
        model = export.exported_model(checkpoint.load(path), path, settings.export_dtype)
        difference = export.logit_difference(export.answer_of(model), folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if not difference <= export.TOLERANCE:
        raise UserError(
            f"the revision {revision.branch} of {settings.push_to_hub}, downloaded, gives other "
            f"logits than {path} (largest difference {difference:.3g} of the largest logit). The "
            "same command again asks for it first; if it stays wrong, delete that branch on the "
            "Hub (or the repo, if it is main) and type it again."
        )
    print(f"{revision.branch}, downloaded, gives the logits of {path} (to {difference:.1e})")


def _published(hf_dir: Path) -> dict[str, Any]:
    """What was last published and proven, or tried and not; {} if nothing was."""
    path = hf_dir / PUBLISHED
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def require_finished(path: Path) -> None:
    """Raise UserError unless this checkpoint is the last of its run: main is to be the last."""
    last = checkpoint.load(path)
    if last.step < last.settings["max_steps"]:
        raise UserError(
            f"{path} is the last checkpoint, and the run has {last.settings['max_steps']} steps. "
            "Finish it (train.py goes on) before its series is published."
        )


def require_complete(paths: list[Path], last: Checkpoint) -> None:
    """Raise UserError unless these are all checkpoints up to the last of them. paths: by step."""
    interval = last.settings["checkpoint_interval"]
    folder = paths[0].parent
    expected = [checkpoint.path_of(folder, step) for step in range(interval, last.step, interval)]
    if missing := [path.name for path in expected if path not in paths]:
        raise UserError(
            f"{folder} lacks {', '.join(missing)}: the series to step {last.step} has a "
            f"checkpoint every {interval} steps. Put it back, or train anew in another --out_dir="
        )


def read_manifest(hf_dir: Path) -> dict[str, Any]:
    """What was exported so far: name of the checkpoint -> source, step and files."""
    path = hf_dir / MANIFEST
    if not path.exists():
        return {}
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}). Delete it: the exports are made again.")


def is_good(hf_dir: Path, entry: dict[str, Any] | None, sha256: str, dtype: str) -> bool:
    """Whether there is an export of this source and dtype, its files as they were written.

    sha256: of the checkpoint file as it is now. The card is not looked at: it is made anew.
    """
    if entry is None:
        return False
    name = f"checkpoint-{entry['step']}"
    if entry["source_sha256"] != sha256 or entry["dtype"] != dtype:
        print(f"{name} is exported anew: the checkpoint or export_dtype is another than it was")
        return False
    if not (hf_dir / name).is_dir() or _without_card(export.hashes(hf_dir / name)) != (
        _without_card(entry["files"])
    ):
        print(f"{name} is exported anew: its files are not those that were written")
        return False
    return True


def _without_card(hashes: dict[str, str]) -> dict[str, str]:
    return {name: value for name, value in hashes.items() if name != card.NAME}


def _forget(hf_dir: Path, manifest: dict[str, Any], name: str) -> None:
    """Remove an export that is not of the present checkpoint: nobody is to load it."""
    del manifest[name]
    files.write_json(hf_dir / MANIFEST, manifest)
    shutil.rmtree(hf_dir / name, ignore_errors=True)


def _require_new_weights(name: str, hashes: dict[str, str], manifest: dict[str, Any]) -> None:
    """Raise UserError if another step has the very same weights."""
    for other, entry in manifest.items():
        if entry["files"][export.WEIGHTS] == hashes[export.WEIGHTS]:
            raise UserError(
                f"{name}.pt has the same weights as {other}.pt: a copy, or steps that changed "
                "nothing. Put the right file back in place of the wrong one, or train anew in "
                "another --out_dir="
            )


if __name__ == "__main__":
    configurator.run("convert_to_hf", main, __doc__, of_run=checkpoint.settings_of_run)
