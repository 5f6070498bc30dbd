"""Minimal pairs: BLiMP from the Hub, or jsonl files of one's own."""

import functools
import io
import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

from impossible import asking
from impossible.errors import UserError

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


@functools.lru_cache(1)
def read(source: str) -> list[Pair]:
    """The pairs of BLiMP (`blimp`, from the Hub), or of jsonl files: one, a folder or a zip.

    Raises UserError if there are none, or for a line that is not a pair.
    """
    if source == BLIMP:
        pairs = list(_of_blimp())
    else:
        lines = _lines_of(Path(source))
        pairs = [_pair(Path(name).stem, i, line, f"{name}, line {i}") for name, i, line in lines]
    if not pairs:
        raise UserError(f"pairs = {source!r} holds no minimal pair. Expected jsonl files.")
    return pairs


def _lines_of(place: Path) -> Iterator[tuple[str, int, str]]:
    """Each line of the jsonl files at a place that is not blank: name of the file, number, text."""
    if place.is_dir():
        for path in sorted(p for p in place.rglob("*.jsonl") if _is_wanted(p.relative_to(place))):
            yield from _lines_of(path)
    elif not place.is_file():
        raise UserError(
            f"pairs = {str(place)!r} does not exist. Expected blimp, a folder or a zip of jsonl "
            "files, or one such file."
        )
    elif place.suffix == ".zip":
        try:
            with zipfile.ZipFile(place) as packed:
                names = [n for n in packed.namelist() if n.endswith(".jsonl")]
                for name in sorted(n for n in names if _is_wanted(Path(n))):
                    with packed.open(name) as file:
                        yield from _numbered(f"{place}/{name}", file)
        except zipfile.BadZipFile as error:
            raise UserError(f"{place} is damaged ({error}). Download it again.")
    else:
        with open(place, "rb") as file:
            yield from _numbered(str(place), file)


def _is_wanted(path: Path) -> bool:
    """Whether a file is one of its author's: macOS adds others, with names that begin so."""
    return not any(part.startswith((".", "__MACOSX")) for part in path.parts)


def _numbered(name: str, file: IO[bytes]) -> Iterator[tuple[str, int, str]]:
    try:
        for number, line in enumerate(io.TextIOWrapper(file, encoding="utf-8-sig"), 1):
            if line.strip():
                yield name, number, line
    except UnicodeDecodeError as error:
        raise UserError(f"{name} is not UTF-8 ({error}).")


def _pair(paradigm: str, number: int, line: str, place: str) -> Pair:
    try:
        found = json.loads(line)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise UserError(f"{place} is no JSON object. Expected one a line, with {_GOOD} and {_BAD}.")
    if missing := [name for name in (_GOOD, _BAD) if name not in found]:
        raise UserError(f"{place} has no {' and no '.join(missing)}. Found: {', '.join(found)}.")
    texts = [found[name] for name in (_GOOD, _BAD)]
    if not all(isinstance(text, str) and text.strip() for text in texts):
        raise UserError(f"{place}: {_GOOD} and {_BAD} must be sentences. Found: {texts}")
    return _made(found, str(found.get("UID", paradigm)), number - 1)


def _made(row: dict[str, Any], paradigm: str, number: int) -> Pair:
    """A pair from a row of BLiMP or of a file that has at least its two sentences."""
    item = str(row.get("pairID", row.get("pair_id", number)))
    return Pair(paradigm, str(row.get("field", "")), item, row[_GOOD].strip(), row[_BAD].strip())


def _of_blimp() -> Iterator[Pair]:
    import pyarrow.parquet as pq
    from huggingface_hub.utils import httpx

    def is_complete(place: Path) -> bool:
        return len(list(place.glob(_FILES))) == _PARADIGMS

    try:
        folder = asking.dataset_folder(_REPO, COMMIT, [_FILES], is_complete)
    except (httpx.HTTPError, OSError) as error:
        raise UserError(
            f"BLiMP could not be fetched from the Hub ({asking.text_of(error)}). Without a "
            "network, name a folder or a zip of its jsonl files: --pairs=BLiMP.zip"
        )
    for path in sorted(folder.glob(_FILES)):
        for number, row in enumerate(pq.read_table(path).to_pylist()):
            yield _made(row, path.parent.name, number)
