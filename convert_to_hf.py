"""Export every checkpoint of a run to a folder that transformers loads, and publish the series.

    python convert_to_hf.py                             # out/partial_reverse
    python convert_to_hf.py config/full_reverse.py
    python convert_to_hf.py --push_to_hub=USER/NAME     # also publish (--dry_run: only show)

Writes out_dir/hf/checkpoint-N/ for each checkpoint-N.pt, and out_dir/hf/manifest.json. An export is
kept only if transformers loads it and computes the same logits as our own model; valid exports are
not made again. On the Hub, each checkpoint is a branch with the name of the checkpoint, and main
holds the last checkpoint. Revisions that are already complete are skipped. See
docs/export-and-publish.md.
"""

import dataclasses
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tqdm import tqdm

from impossible import checkpoint, files, log
from impossible.checkpoint import Checkpoint
from impossible.hub import card, export, publish
from impossible.hub import manifest as manifests
from impossible.hub.manifest import Manifest
from impossible.hub.publish import Repository, Revision
from impossible.settings import Settings, run_command

# Tables without text of the corpus. (Others may be large, or hold texts that are not free.)
_TABLES = ("perplexity.csv", "pairs.csv", "markers.csv", "entropies.csv", "differences.csv")
_READERS = 4  # checkpoints that are hashed at a time


def main(settings: Settings) -> None:
    """Export all checkpoints of out_dir that have no valid export yet; publish them if asked to."""
    out_dir, repo = Path(settings.out_dir), settings.push_to_hub
    paths, last = checkpoint.series(out_dir, settings.language)
    manifests.require_complete(paths, last, is_published=bool(repo))
    api = publish.sign_in(repo) if repo else None  # before the work of exporting: this may fail
    hf_dir = checkpoint.hf_dir(out_dir)
    hf_dir.mkdir(exist_ok=True)
    with files.locked(hf_dir):
        manifest = export_all(paths, hf_dir)
        write_cards(paths, hf_dir, manifest, settings)
        if api:
            repository = Repository(api, repo, settings.private, settings.overwrite)
            publish_all(repository, manifest, last, settings)


def export_all(paths: list[Path], hf_dir: Path) -> Manifest:
    """Export the checkpoints that have no valid export. Returns the manifest of all exports."""
    with ThreadPoolExecutor(_READERS) as pool:
        hashing = pool.map(checkpoint.sha256, paths)
        hashes = list(tqdm(hashing, "reading", len(paths), disable=None))
    sources = {path.stem: sha256 for path, sha256 in zip(paths, hashes, strict=True)}
    manifest = manifests.keep_valid(hf_dir, sources)
    for path in tqdm(paths, "exporting", disable=None):
        name = path.stem
        if name in manifest:
            continue
        loaded = checkpoint.load(path)
        entry = {"step": loaded.step, "source_sha256": sources[name]}
        with export.new_folder(hf_dir / name) as folder:
            entry["max_logit_difference"] = export.write_folder(loaded, path, folder)
            entry["files"] = export.hashes(folder)
            manifests.require_new_weights(name, entry, manifest, loaded.settings.dtype)
        manifest[name] = entry
        manifests.write(hf_dir, manifest)
    worst = max(entry["max_logit_difference"] for entry in manifest.values())
    print(
        f"{len(paths)} checkpoint(s) exported to {hf_dir}; transformers computes the same logits "
        f"(largest difference {worst:.1e} of the largest logit)"
    )
    return {name: manifest[name] for name in sources}


def write_cards(paths: list[Path], hf_dir: Path, manifest: Manifest, settings: Settings) -> None:
    """Write the README.md of each export."""
    records = log.read(paths[0].parent)
    for path in paths:
        loaded = checkpoint.load(path)
        text = card.text(loaded, records, settings.model_license, settings.push_to_hub)
        manifest[path.stem]["files"][card.NAME] = write_card(hf_dir / path.stem, text)
    manifests.write(hf_dir, manifest)


def write_card(folder: Path, text: str) -> str:
    """Write a README.md that is missing or out of date. Returns its SHA-256."""
    path = folder / card.NAME
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        with files.atomic_write(path) as file:
            file.write(text.encode())
    return files.sha256(path)


def publish_all(
    repository: Repository, manifest: Manifest, last: Checkpoint, settings: Settings
) -> None:
    """Publish all exports, then main."""
    hf_dir = checkpoint.hf_dir(Path(settings.out_dir))
    series = [revision_of(hf_dir / name, manifest[name]) for name in manifest]
    steps = checkpoint.kept_steps(last.settings, last.data)
    aliases = [
        dataclasses.replace(revision, branch=branch)  # the same files under BabyLM's names
        for revision, entry in zip(series, manifest.values(), strict=True)
        for branch in steps.get(entry["step"], [])
    ]
    revisions = [*series, *aliases, revision_of_main(series[-1], last, settings)]
    repository.publish(revisions, settings.dry_run)
    if not settings.dry_run:
        print(f"{repository.name} holds all {len(revisions)} revisions")


def revision_of(folder: Path, entry: dict) -> Revision:
    """The revision of an export."""
    loaded = checkpoint.load(checkpoint.path_of(folder.parent.parent, entry["step"]))
    title = f"Step {loaded.step}, validation loss {loaded.val_loss:.4f}, "
    title += f"checkpoint sha256 {entry['source_sha256']}"
    paths = {name: folder / name for name in entry["files"]}
    return Revision(folder.name, title, paths, entry["files"])


def revision_of_main(newest: Revision, last: Checkpoint, settings: Settings) -> Revision:
    """The revision main: the last export with the log, the tables and the pictures of the run."""
    out_dir = Path(settings.out_dir)
    folder = out_dir / "evaluation"
    paths = {f"training/{log.NAME}": out_dir / log.NAME} if (out_dir / log.NAME).exists() else {}
    for path in sorted(folder.rglob("*")):
        if path.name in _TABLES or path.suffix == ".png":
            paths[f"evaluation/{path.relative_to(folder).as_posix()}"] = path
    sha256 = {name: files.sha256(path) for name, path in paths.items()}
    records, arguments = log.read(out_dir), (settings.model_license, settings.push_to_hub)
    text = card.text(last, records, *arguments, measured=list(paths))
    hf_dir = checkpoint.hf_dir(out_dir)  # beside the exports, for main alone
    paths[card.NAME], sha256[card.NAME] = hf_dir / card.NAME, write_card(hf_dir, text)
    return Revision("main", newest.title, newest.files | paths, newest.sha256 | sha256)


if __name__ == "__main__":
    run_command("convert_to_hf.py", main, __doc__, checkpoint.settings_of_run)
