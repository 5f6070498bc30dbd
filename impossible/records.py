"""Results in a folder, with a record of what they were made from: no file of others is replaced."""

import json
import os
from collections.abc import Iterable
from pathlib import Path

from impossible import files
from impossible.settings import UserError


def replace_results(folder: Path, results: Path, record: Path, source: str) -> None:
    """Put all files of the folder `results` into `folder`, and record what they were made from.

    record: a JSON file with the `source` (a text) and the SHA-256 of each file. Earlier files of
    the record stay if their source is the same, and are removed otherwise. A crash leaves no file
    that is not as recorded. Raises UserError as `require_own`, before anything is changed.
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
    """Raise UserError for a file that is recorded or will be written, but is not as recorded.

    names: of the files that will be written.
    """
    _, hashes = read_record(record)
    for name in sorted({*names, *hashes}):
        path = folder / name
        if path.is_file() and files.sha256(path) != hashes.get(name):
            raise UserError(
                f"{path} was not written by an evaluation, or was changed since. The evaluation "
                "has results of that name. Move that file elsewhere, and run the same command "
                "again."
            )


def read_record(record: Path) -> tuple[str, dict[str, str]]:
    """The source of the recorded files, and the SHA-256 of each; nothing if it is damaged."""
    try:
        values = json.loads(record.read_text(encoding="utf-8"))
        return values["source"], dict(values["files"])
    except (FileNotFoundError, ValueError, TypeError, KeyError):
        return "", {}
