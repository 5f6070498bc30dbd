"""Stimuli: sentences of one's own, in a csv or jsonl file."""

import difflib
import functools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from impossible.evaluation import rows
from impossible.evaluation.rows import Row
from impossible.settings import UserError

_NEEDED = ("item", "condition", "text")
_REGION, _OCCURRENCE = "region", "occurrence"  # also region_NAME and occurrence_NAME
_KNOWN = (*_NEEDED, "marker_place", "perturbed", _REGION, _OCCURRENCE)


class Region(NamedTuple):
    """Critical words of a sentence."""

    name: str  # `region`, or NAME of the column region_NAME
    text: str
    occurrence: int | None = None  # from 1; None: the text has to occur once

    @property
    def counted(self) -> str:
        """The column for the occurrence."""
        return _OCCURRENCE if self.name == _REGION else f"{_OCCURRENCE}_{self.name}"


class Stimulus(NamedTuple):
    """A row of the file; what is left out is empty."""

    item: str
    condition: str
    text: str
    marker_place: int | None = None  # words before the marker
    perturbed: str = ""
    regions: tuple[Region, ...] = ()
    where: str = ""  # for errors


@functools.lru_cache(1)
def read(path: Path, place: str = "") -> list[Stimulus]:
    """The stimuli of a csv or jsonl file. Raises UserError, with the row.

    place: a name that depends on the content, so that a file that has changed is read again.
    """
    text = rows.text_of(path)
    if text.lstrip().startswith(("{", "[")):
        numbered = list(rows.of_json(text, path, "row", _name))
    else:
        numbered = list(rows.of_csv(text, path, _name))
    if not numbered:
        raise UserError(f"{path} holds no stimulus.")
    _require_known(path, {name for _, row in numbered for name in row})
    stimuli = [_stimulus(row, f"{path}, row {number}") for number, row in numbered]
    _require_alike(stimuli)
    texts = [(f"{path}, row {n}", row.get(k)) for n, row in numbered for k in ("text", "perturbed")]
    rows.tell_of_spaces((place, text) for place, text in texts if isinstance(text, str))
    return stimuli


def _name(name: str) -> str:
    """The name of a column: a known one in lower case."""
    name = name.strip()
    known = re.fullmatch(rf"({'|'.join(_KNOWN)})|({_REGION}|{_OCCURRENCE})_.+", name, re.I)
    if not known:
        return name
    head, mark, tail = name.partition("_")
    return name.lower() if known[1] else head.lower() + mark + tail


def _require_known(path: Path, names: set[str]) -> None:
    """Raise UserError for a column that looks misspelled; name others that are not read."""
    if missing := [name for name in _NEEDED if name not in names]:
        raise UserError(
            f"{path} has no column {', '.join(missing)}. Expected {', '.join(_NEEDED)}, and "
            f"optionally {', '.join(_KNOWN[3:])}. Found: {', '.join(sorted(names))}."
        )
    for name in sorted(names):
        kind, suffix = re.match(r"([^_]*)(.*)", name, re.DOTALL).groups()
        if kind == _OCCURRENCE and _REGION + suffix not in names:
            raise UserError(
                f"{path} has a column {name!r} without a column {_REGION + suffix!r}. Rename or "
                "remove it."
            )
        if name in _KNOWN or kind in (_REGION, _OCCURRENCE):
            continue
        near = difflib.get_close_matches(name.lower(), _KNOWN, 1, 0.8)
        if near or name.lower() == "place":
            near = near or ["marker_place"]
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
        is_placed = s.marker_place is not None
        if not s.perturbed and placed.setdefault(s.item, is_placed) != is_placed:
            raise UserError(
                f"{s.where}: item {s.item} has a marker_place in some conditions only. Give it for "
                "all conditions of an item, or for none."
            )


def _stimulus(row: Row, where: str) -> Stimulus:
    """A stimulus from its row. Raises UserError."""
    item, condition, place = (
        rows.label(row.get(name), name, where) for name in ("item", "condition", "marker_place")
    )
    text = rows.sentence(row.get("text"), "text", where)
    values = {"item": item, "condition": condition, "text": text}
    if empty := [name for name in _NEEDED if not values[name]]:
        raise UserError(f"{where}: {', '.join(empty)} is empty.")
    if not re.fullmatch(r"\d*", place):
        raise UserError(
            f"{where}: marker_place = {place!r}. Expected how many words stand before the marker."
        )
    return Stimulus(
        **values,
        marker_place=int(place) if place else None,
        perturbed=rows.sentence(
            row.get("perturbed"), "perturbed", where, may_begin_with_space=True
        ),
        regions=tuple(_regions(row, where)),
        where=where,
    )


def _regions(row: Row, where: str) -> Iterator[Region]:
    for column in row:
        kind, _, name = column.partition("_")
        if kind != _REGION:
            continue
        text = rows.sentence(row[column], column, where)
        counted = _OCCURRENCE + column.removeprefix(_REGION)
        occurrence = rows.label(row.get(counted), counted, where)
        if occurrence and (not text or not re.fullmatch(r"[1-9]\d*", occurrence)):
            raise UserError(
                f"{where}: {counted} = {occurrence!r}. Expected which occurrence of {column} in "
                f"the text is meant: 1, 2, ... Found {column} = {text!r}."
            )
        if text:
            yield Region(name or _REGION, text, int(occurrence) if occurrence else None)
