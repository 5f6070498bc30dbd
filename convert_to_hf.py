"""Export every checkpoint of a run to a folder that transformers loads, and publish the series.

    python convert_to_hf.py                             # out/partial_reverse
    python convert_to_hf.py config/full_reverse.py
    python convert_to_hf.py --push_to_hub=USER/NAME     # also publish (--dry_run: only show)

Writes out_dir/hf/checkpoint-N/ for each checkpoint-N.pt, and out_dir/hf/manifest.json. An export is
kept only if transformers loads it and computes the same logits as our own model; valid exports are
not made again. On the Hub, each checkpoint is a branch with the name of the checkpoint, and main is
the last checkpoint. Revisions that are already complete are skipped. See
docs/export-and-publish.md.
"""

import dataclasses
import json
import random
import shutil
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))  # also where PYTHONSAFEPATH is set

from tqdm import tqdm

from impossible import checkpoint, files, log
from impossible.checkpoint import Checkpoint
from impossible.hub import card, export, measured, publish
from impossible.hub import manifest as manifests
from impossible.hub.publish import Publication, Revision
from impossible.settings import Settings, UserError, run_command

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
    manifests.require_complete(paths, checkpoint.check_series(paths, settings.language))
    publication = None
    if repo := settings.push_to_hub:
        manifests.require_finished(paths[-1])
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
    manifest = manifests.read(hf_dir)
    for name in manifest.keys() - {path.stem for path in paths}:  # of checkpoints that are gone
        manifests.forget(hf_dir, manifest, name)
    # While one is exported, the next is hashed, and the one before is hashed and goes to the disk.
    with ThreadPoolExecutor(1) as ahead, ThreadPoolExecutor(1) as behind:
        source = ahead.submit(checkpoint.sha256, paths[0])
        settled = behind.submit(int)  # nothing yet
        for path, following in zip(tqdm(paths, disable=None), [*paths[1:], None], strict=True):
            sha256 = source.result()
            if following:
                source = ahead.submit(checkpoint.sha256, following)
            if manifests.is_good(hf_dir, manifest.get(path.stem), sha256):
                continue
            if path.stem in manifest:
                settled.result()
                manifests.forget(hf_dir, manifest, path.stem)
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
    """Move a finished export to its final folder, and then add it to the manifest."""
    temporary = hf_dir / (name + files.TEMPORARY)
    try:
        entry["files"] = export.hashes(temporary)
        manifests.require_new_weights(name, entry, manifest)
        export.settle_folder(temporary, hf_dir / name)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    manifest[name] = entry
    files.write_json(hf_dir / manifests.NAME, manifest)


def _export(path: Path, sha256: str, hf_dir: Path, settings: Settings) -> dict[str, Any]:
    """Export one checkpoint to a temporary folder. Returns its manifest entry without the files."""
    loaded = checkpoint.load(path)
    with export.temporary_folder(hf_dir / path.stem) as folder:
        difference = export.write_folder(loaded, path, folder)
    return {
        "source_sha256": sha256,
        "step": loaded.step,
        "val_loss": loaded.val_loss,
        "settings": loaded.settings.read_by("train.py"),
        "max_logit_difference": difference,
    }


def _write_cards(
    paths: list[Path], hf_dir: Path, manifest: dict[str, Any], settings: Settings
) -> None:
    """Write the README.md of each export whose README.md is missing or out of date."""
    records = log.read(paths[0].parent)
    for path in paths:
        text = card.text(
            checkpoint.load(path),
            records,
            settings.model_license,
            settings.push_to_hub,
        )
        place, hashes = hf_dir / path.stem / card.NAME, manifest[path.stem]["files"]
        if not place.exists() or place.read_text(encoding="utf-8") != text:
            with files.atomic_write(place) as file:
                file.write(text.encode())
        hashes[card.NAME] = files.sha256(place)
    if manifests.read(hf_dir) != manifest:
        files.write_json(hf_dir / manifests.NAME, manifest)


def _publish(publication: Publication, manifest: dict[str, Any], settings: Settings) -> None:
    """Publish all exports, main last, then download one of them from the Hub and test it."""
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
    last = checkpoint.load(checkpoint.path_of(Path(settings.out_dir), revisions[-1].step))
    of_words = checkpoint.kept_steps(last.settings, last.data)
    aliases = [
        dataclasses.replace(revision, branch=branch)  # of BabyLM's tools, with the same files
        for revision in revisions
        for branch in of_words.get(revision.step, [])
    ]
    with tempfile.TemporaryDirectory() as folder:
        main_revision = _of_main(revisions[-1], last, Path(folder), settings)
        revisions += [*aliases, main_revision]
        uploaded = publication.publish(revisions)
    if settings.dry_run:
        return
    repo, before = settings.push_to_hub, _published(hf_dir)
    record = {"repo": repo, "manifest_sha256": files.sha256(hf_dir / manifests.NAME)}
    if uploaded or before != record:
        suspect = before.get("not_proven") if before.get("repo") == repo else None
        chosen = [r for r in revisions if r.branch == suspect] or uploaded or revisions
        _try_one(publication, random.choice(chosen), settings)
        files.write_json(hf_dir / PUBLISHED, record)
    print(f"{repo} holds all {len(revisions)} revisions")


def _of_main(newest: Revision, last: Checkpoint, folder: Path, settings: Settings) -> Revision:
    """The revision main: the last export with the log, the tables and the pictures of the run.

    folder: an empty one for its files.
    """
    out_dir = Path(settings.out_dir)
    more = measured.files_of(out_dir)
    text = card.text(
        last,
        log.read(out_dir),
        settings.model_license,
        settings.push_to_hub,
        list(more),
    )
    measured.gather(newest.folder, text, card.NAME, more, folder)
    hashes = {name: files.sha256(folder / name) for name in (*more, card.NAME)}
    return dataclasses.replace(newest, branch="main", folder=folder, files=newest.files | hashes)


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
        model = checkpoint.build_model(checkpoint.load(path), path)
        difference = export.logit_difference(export.answer_of(model), folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if not difference <= export.TOLERANCE:
        raise UserError(
            f"the revision {revision.branch} of {settings.push_to_hub}, downloaded, gives other "
            f"logits than {path} (largest difference {difference:.3g} of the largest logit). Run "
            "the same command again; it tests this revision first. If the test fails again, delete "
            "the branch on the Hub (or the whole repo if the branch is main), and run the "
            "command once more."
        )
    print(f"{revision.branch}, downloaded, gives the logits of {path} (to {difference:.1e})")


def _published(hf_dir: Path) -> dict[str, Any]:
    """The record of the last publication and its test; {} if there is none."""
    path = hf_dir / PUBLISHED
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


if __name__ == "__main__":
    run_command("convert_to_hf.py", main, __doc__, checkpoint.settings_of_run)
