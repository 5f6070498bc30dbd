"""Stimuli: sentences of one's own, in a csv or jsonl file."""

import csv
import difflib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from impossible.errors import UserError

_NEEDED, _OPTIONAL = ("item", "condition", "text"), ("place", "perturbed", "region")


class Stimulus(NamedTuple):
    """A row of the file; what is left out is empty."""

    item: str
    condition: str
    text: str
    place: str = ""  # words before the marker
    perturbed: str = ""
    region: str = ""
    where: str = ""  # for errors


def read(path: Path) -> list[Stimulus]:
    """The stimuli of a csv or jsonl file. Raises UserError, with the row."""
    if not path.is_file():
        raise UserError(f"stimuli = {str(path)!r} is no file. Expected a csv or jsonl file.")
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            rows = list(_csv_rows(file) if path.suffix == ".csv" else _json_rows(file))
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 ({error}). In a spreadsheet, save it as CSV UTF-8.")
    except (ValueError, csv.Error) as error:
        raise UserError(f"{path} cannot be read ({error}). Expected csv, or one object a line.")
    if not rows:
        raise UserError(f"{path} holds no stimulus.")
    _require_known(path, {name for _, row in rows for name in row if name is not None})
    stimuli = [_stimulus(row, f"{path}, row {number}") for number, row in rows]
    _require_alike(stimuli)
    return stimuli


def _csv_rows(file: TextIO) -> Iterator[tuple[int, dict[str | None, Any]]]:
    """The rows of a csv file with their numbers, as a spreadsheet counts them; not empty ones."""
    reader = csv.DictReader(file, strict=True)
    reader.fieldnames = [name.strip() for name in reader.fieldnames or ()]
    for row in reader:
        if any(row.values()):
            yield reader.line_num, row


def _json_rows(file: TextIO) -> Iterator[tuple[int, dict[str | None, Any]]]:
    for number, line in enumerate(file, 1):
        if line.strip():
            if not isinstance(row := json.loads(line), dict):
                raise ValueError(f"row {number} is no object")
            yield number, row


def _require_known(path: Path, names: set[str]) -> None:
    """Raise UserError for a column that looks misspelled; name others that are not read."""
    known = (*_NEEDED, *_OPTIONAL)
    for name in sorted(names - set(known)):
        if near := difflib.get_close_matches(name, known, 1):
            raise UserError(f"{path} has the unknown column {name!r}. Did you mean {near[0]}?")
        print(f"{path}: the column {name!r} is not read")


def _require_alike(stimuli: list[Stimulus]) -> None:
    """Raise UserError for a condition that an item has twice, or if only some have a place."""
    seen: dict[tuple[str, str], str] = {}
    placed: dict[str, bool] = {}
    for s in stimuli:
        key = (s.item, s.condition)
        if key in seen:
            raise UserError(
                f"{s.where} repeats item {s.item}, condition {s.condition} (first: {seen[key]})."
            )
        seen[key] = s.where
        if not s.perturbed and placed.setdefault(s.item, bool(s.place)) != bool(s.place):
            raise UserError(
                f"{s.where}: item {s.item} has a place in some conditions only. Give it for all "
                "conditions of an item, or for none."
            )


def _stimulus(row: dict[str | None, Any], where: str) -> Stimulus:
    """A stimulus from its row. Raises UserError."""
    if None in row or None in row.values():
        raise UserError(
            f"{where} has more or fewer values than there are columns. A text with a comma needs "
            "quotation marks."
        )
    if missing := [name for name in _NEEDED if name not in row]:
        raise UserError(
            f"{where} has no {', '.join(missing)}. Expected {', '.join(_NEEDED)}, and optionally "
            f"{', '.join(_OPTIONAL)}, separated by commas. Found: {', '.join(row)}."
        )
    values = {name: str(row[name]).strip() for name in (*_NEEDED, *_OPTIONAL) if name in row}
    if empty := [name for name in _NEEDED if not values[name]]:
        raise UserError(f"{where}: {', '.join(empty)} is empty.")
    stimulus = Stimulus(**values, where=where)
    if not re.fullmatch(r"(\d+(\.0)?)?", stimulus.place):  # spreadsheets write 2.0
        raise UserError(
            f"{where}: place = {stimulus.place!r}. Expected how many words stand before the marker."
        )
    return stimulus._replace(place=stimulus.place.removesuffix(".0"))
