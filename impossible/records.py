"""Results in a folder with a record of their source, so that only recorded files are replaced."""

import json
import os
from collections.abc import Iterable
from pathlib import Path

from impossible import files
from impossible.settings import UserError


def replace_results(folder: Path, results: Path, record: Path, source: str) -> None:
    """Move all files from the folder `results` into `folder`, and record their source.

    record: a JSON file with the `source` (a text) and the SHA-256 of each file. Earlier files in
    the record stay if their source is the same, and are removed otherwise. Even after a crash,
    no file differs from the record. Raises UserError like `require_own`, before any change.
    """
    new = {str(path.relative_to(results)): path for path in results.rglob("*") if path.is_file()}
    require_own(folder, record, new)
    source_before, hashes = read_record(record)
    removed = new if source == source_before else new | hashes
    for name in removed:
        (folder / name).unlink(missing_ok=True)
    kept = {name: digest for name, digest in hashes.items() if name not in removed}
    added = {name: files.sha256(path) for name, path in new.items()}
    files.write_json(record, {"source": source, "files": kept | added})
    for name, path in new.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        os.replace(path, folder / name)


def require_own(folder: Path, record: Path, names: Iterable[str] = ()) -> None:
    """Raise UserError if a recorded file, or one to be replaced, differs from the record.

    names: the names of the files to be written.
    """
    _, hashes = read_record(record)
    for name in sorted({*names, *hashes}):
        path = folder / name
        if path.is_file() and files.sha256(path) != hashes.get(name):
            raise UserError(
                f"{path} was not written by an evaluation, or was changed since. The evaluation "
                "would replace it. Move it elsewhere, and run the same command again."
            )


def recorded_in(folder: Path, since_ns: int = 0) -> dict[str, str]:
    """The SHA-256 of the records in a folder and its subfolders, and of the files that they list.

    The keys are paths from the folder. since_ns: records written before this time are left out.
    """
    results = {}
    for record in [*folder.glob(".*.json"), *folder.glob("*/.*.json")]:
        if record.stat().st_mtime_ns >= since_ns:
            _, hashes = read_record(record)
            for name, sha256 in {record.name: files.sha256(record), **hashes}.items():
                results[(record.parent / name).relative_to(folder).as_posix()] = sha256
    return results


def read_record(record: Path) -> tuple[str, dict[str, str]]:
    """The source and the SHA-256 of each recorded file; empty if the record is not readable."""
    try:
        values = json.loads(record.read_text(encoding="utf-8"))
        return values["source"], dict(values["files"])
    except (FileNotFoundError, ValueError, TypeError, KeyError):
        return "", {}
