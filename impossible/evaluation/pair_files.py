"""Minimal pairs: BLiMP from the Hub, or jsonl files of one's own."""

import functools
import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from impossible import asking, files
from impossible.evaluation.stimulus_files import (
    json_object,
    label,
    sentence,
    tell_of_spaces,
)
from impossible.settings import UserError
from impossible.text import token_files

BLIMP, _REPO = "blimp", "nyu-mll/blimp"  # Warstadt et al. 2020
COMMIT = "877fba0801ffb7cbd8c39c1ff314a46f053f6036"
_FILES, _PARADIGMS = "*/*.parquet", 67
_GOOD, _BAD = "sentence_good", "sentence_bad"


class Pair(NamedTuple):
    """One minimal pair."""

    paradigm: str
    field: str
    item: str  # its name within the paradigm
    good: str
    bad: str


def folder_name(kind: str, source: str, leading_space: bool = False) -> str:
    """The name of the folder for results on one's own sentences: KIND_NAME-HASH.

    HASH is of the content: the same content gives the same name, other content another one. kind:
    `pairs` or `stimuli`; source: the value of that setting. Raises UserError if it does not exist.
    """
    if kind == "stimuli":
        if not Path(source).is_file():
            raise UserError(f"stimuli = {source!r} is no file. Expected a csv or jsonl file.")
        name = _name_by_content(Path(source))
    elif source == BLIMP:
        name = f"{BLIMP}-{COMMIT[:8]}"
    else:
        name = _name_by_content(Path(source), _paths(Path(source)))
    return f"{kind}_{name}{'_leading_space' * leading_space}"


def _name_by_content(path: Path, paths: Sequence[Path] = ()) -> str:
    """A name for a file or folder by its content, such as `items-1a2b3c4d`.

    The digits are the first of a SHA-256: of the file, or of those files of the folder that are in
    `paths`, with their names. So equal content of one name gives one name, wherever it is.
    """
    if path.is_dir():
        name = path.resolve().name
        lines = [f"{files.sha256(p)} {p.relative_to(path).as_posix()}\n" for p in paths]
        digest = hashlib.sha256("".join(lines).encode("utf-8", "surrogateescape")).hexdigest()
    else:
        name, digest = path.stem, files.sha256(path)
    return f"{files.require_utf8(Path(name))}-{digest[:8]}"


@functools.lru_cache(1)
def read(source: str, name: str = "") -> list[Pair]:
    """The pairs of BLiMP (`blimp`, from the Hub), or of jsonl files: one, or a folder of them.

    name: as of `folder_name`, so that files that have changed are read again.
    Raises UserError if there are none, for a line that is not a pair, and for two pairs of one
    paradigm with the same name.
    """
    rows = list(_of_blimp() if source == BLIMP else _of_files(Path(source)))
    if not rows:
        raise UserError(f"pairs = {source!r} holds no minimal pair. Expected jsonl files.")
    places: dict[tuple[str, str], str] = {}
    pairs = [_pair(*row) for row in rows]
    for pair, (where, *_) in zip(pairs, rows, strict=True):
        if pair.paradigm == token_files.ALL_GENRES:
            raise UserError(
                f"{where}: the paradigm {pair.paradigm!r} has the name that tables give to the "
                "total. Rename it."
            )
        first = places.setdefault((pair.paradigm, pair.item), where)
        if first != where:
            are_in_one_file = first.rpartition(", ")[0] == where.rpartition(", ")[0]
            raise UserError(
                f"{where}: the paradigm {pair.paradigm!r} already has a pair {pair.item!r} "
                f"({first}). "
                + (
                    "Give each pair of a paradigm a pairID of its own."
                    if are_in_one_file
                    else "If they are two paradigms, give each file a UID or a name of its own: "
                    "the paradigm is the UID, or else the name of the file."
                )
            )
    tell_of_spaces((where, row[name]) for where, row, *_ in rows for name in (_GOOD, _BAD))
    return pairs


# Where a row is, the row, and its paradigm and the name of the pair if the row does not give them.
_Row = tuple[str, dict[str, Any], str, str]


def _paths(source: Path) -> list[Path]:
    """The jsonl files of a folder, in order; or the one file. Raises UserError if it is neither."""
    if source.is_dir():
        # macOS adds others to a folder, with names that begin so.
        found = ((path, path.relative_to(source).parts) for path in source.rglob("*.jsonl"))
        return sorted(p for p, parts in found if not any(x.startswith(".") for x in parts))
    if not source.is_file():
        raise UserError(
            f"pairs = {str(source)!r} does not exist. Expected blimp, a folder of jsonl files, or "
            "one such file."
        )
    return [source]


def _of_files(source: Path) -> Iterator[_Row]:
    for path in _paths(source):
        try:
            lines = path.read_text(encoding="utf-8-sig").split("\n")
        except UnicodeDecodeError as error:
            raise UserError(f"{path} is not UTF-8 ({error}). Expected jsonl. (Unpack a zip.)")
        for number, line in enumerate(lines, 1):
            if line.strip():
                where = f"{path}, line {number}"
                yield where, json_object(line, where), path.stem, str(number - 1)


def _pair(where: str, row: dict[str, Any], paradigm: str, item: str) -> Pair:
    """A pair from its row. Raises UserError."""
    if missing := [name for name in (_GOOD, _BAD) if name not in row]:
        raise UserError(f"{where} has no {' and no '.join(missing)}. Found: {', '.join(row)}.")
    good, bad = (sentence(row[name], name, where) for name in (_GOOD, _BAD))
    if not (good and bad):
        raise UserError(f"{where}: {_GOOD} or {_BAD} is empty.")
    uid, field, number, other = (
        label(row.get(name), name, where) for name in ("UID", "field", "pairID", "pair_id")
    )
    return Pair(uid or paradigm, field, number or other or item, good, bad)


def _of_blimp() -> Iterator[_Row]:
    import pyarrow.parquet as pq
    from huggingface_hub.utils import httpx

    def is_complete(place: Path) -> bool:
        return len(list(place.glob(_FILES))) == _PARADIGMS

    try:
        folder = asking.dataset_folder(_REPO, COMMIT, [_FILES], is_complete)
    except (httpx.HTTPError, OSError) as error:
        raise UserError(
            f"BLiMP could not be fetched from the Hub ({asking.text_of(error)}). Without a "
            "network, name a folder of its jsonl files: --pairs=FOLDER"
        )
    for path in sorted(folder.glob(_FILES)):
        with open(path, "rb") as file:  # pyarrow takes every path for UTF-8
            rows = pq.read_table(file).to_pylist()
        for number, row in enumerate(rows):
            row["UID"] = path.parent.name
            yield f"{path}, row {number}", row, path.parent.name, str(number)
