"""Users' csv and jsonl files: their rows and values, and stimuli."""

import csv
import difflib
import functools
import hashlib
import io
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from impossible import files
from impossible.settings import UserError

_BLANK = ' ,;\t"'  # the characters of a row without values
_SEPARATORS = {",": "a comma", ";": "a semicolon", "\t": "a tab"}

_JOINERS = "\u200c\u200d"  # zero-width (non-)joiner

_NEEDED = ("item", "condition", "text")
_REGION, _OCCURRENCE = "region", "occurrence"  # also region_NAME and occurrence_NAME
_KNOWN = (*_NEEDED, "marker_place", "perturbed", _REGION, _OCCURRENCE)

Row = dict[str, Any]


def name_by_content(path: Path, paths: Sequence[Path] = ()) -> str:
    """A name for a file or folder by its content, such as `items-1a2b3c4d`.

    The digits are the first of a SHA-256: of the file, or of those files of the folder that are in
    `paths`, with their names. So the result does not depend on the folder that contains `path`.
    """
    if path.is_dir():
        name = path.resolve().name
        lines = [f"{files.sha256(p)} {p.relative_to(path).as_posix()}\n" for p in paths]
        digest = hashlib.sha256("".join(lines).encode("utf-8", "surrogateescape")).hexdigest()
    else:
        name, digest = path.stem, files.sha256(path)
    return f"{files.require_utf8(Path(name))}-{digest[:8]}"


def text_of(path: Path) -> str:
    """The text of a file, without a byte order mark. Raises UserError if it is not UTF-8."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} is not UTF-8 ({error}). Save a spreadsheet as CSV UTF-8; unpack a zip file."
        )


def of_json(
    text: str, path: Path, name_of: Callable[[str], str] = str
) -> Iterator[tuple[int, Row]]:
    """Yield the line number and the JSON object of each line of a jsonl file that is not blank.

    name_of: normalizes the name of a column. Raises UserError for a line that is not an object, or
    that has two values of one name.
    """
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            pairs = json.loads(line, object_pairs_hook=_Pairs)
            if not isinstance(pairs, _Pairs):
                raise ValueError(type(pairs).__name__)
        except ValueError as error:
            raise UserError(f"{where} is not a JSON object ({error}). Expected one per line.")
        names = [name_of(name) for name, _ in pairs]
        require_once(names, where)
        yield number, dict(zip(names, (value for _, value in pairs), strict=True))


class _Pairs(list[tuple[str, Any]]):
    """The names and values of a JSON object."""


def of_csv(text: str, path: Path, name_of: Callable[[str], str]) -> Iterator[tuple[int, Row]]:
    """Yield each row of a csv file that has values, with its number in a spreadsheet.

    The separator is the comma, semicolon or tab that is most frequent in the header, or the one in
    Excel's line `sep=;`. name_of: normalizes a column's name. Raises UserError for a bad file.
    """
    first, _, rest = text.partition("\n")
    if line := re.fullmatch('"?sep=(.)"?', first):
        text = rest
    titles = next((row for row in text.split("\n") if row.strip(_BLANK)), "")
    delimiter = line[1] if line else max(_SEPARATORS, key=titles.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        lines = [(n, row) for n, row in enumerate(reader, 1) if any(map(str.strip, row))]
    except csv.Error as error:
        raise UserError(
            f"{path}, line {reader.line_num} cannot be read ({error}). Put quotation marks around "
            'a text that contains any, and double those within it: "He said ""no""."'
        )
    if not lines:
        return
    (number, titles), *lines = lines
    header = list(map(name_of, titles))
    require_once(filter(None, header), f"{path}, row {number}")
    for number, values in lines:
        row = dict(zip(header, values, strict=False))
        if len(values) != len(header) or row.pop("", "").strip():
            raise UserError(
                f"{path}, row {number} has more or fewer values than there are columns. A text "
                f"with {_SEPARATORS.get(delimiter, delimiter)} needs quotation marks."
            )
        yield number, row


def require_once(names: Iterable[str], where: str) -> None:
    """Raise UserError for a name that occurs twice."""
    for name, count in Counter(names).items():
        if count > 1:
            more = " Name further regions region_NAME." if name == "region" else ""
            raise UserError(f"{where} has {name!r} {count} times. Rename or remove one.{more}")


def label(value: Any, name: str, where: str) -> str:
    """A name, such as that of an item, as text: 1 for 1.0, and "" for a missing value (null).

    Raises UserError for a list, an object, true or false.
    """
    if _is_missing(value):
        return ""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise UserError(f"{where}: {name} = {json.dumps(value)}. Expected a text or a number.")
    text = str(value).strip()
    is_whole = re.fullmatch(r"-?\d+\.0+", text)  # as spreadsheets write whole numbers
    return text.partition(".")[0] if is_whole else text


def _is_missing(value: Any) -> bool:
    return value is None or value != value  # as pandas writes it to JSON: null or NaN


def sentence(value: Any, name: str, where: str, may_begin_with_space: bool = False) -> str:
    """The text of a value, with single spaces and none at its ends; "" for a missing one (null).

    may_begin_with_space: keep one space at its beginning. Raises UserError for anything but a text,
    and for a character that cannot be seen (such as a zero-width space), with its place. The
    joiners of Persian or Hindi are part of their words.
    """
    if _is_missing(value):
        return ""
    if not isinstance(value, str):
        raise UserError(f"{where}: {name} = {json.dumps(value)}. Expected a text.")
    for place, character in enumerate("" if value.isprintable() else value, 1):
        kind = unicodedata.category(character)
        if character in _JOINERS and not value[: place - 1][-1:].isascii():
            continue
        if kind in ("Cc", "Cf", "Cs") and not character.isspace():
            title = unicodedata.name(character, "a control character")
            raise UserError(
                f"{where}: character {place} of {name} cannot be seen: U+{ord(character):04X} "
                f"({title.lower()}). Remove it: {value!a}"
            )
    space = " " if may_begin_with_space and value[:1].isspace() else ""
    return space + " ".join(value.split())


def print_replaced_spaces(texts: Iterable[tuple[str, str]]) -> None:
    """Print how many texts have white space that `sentence` replaces. texts: place, text."""
    odd = [place for place, text in texts if text.strip() != " ".join(text.split())]
    if odd:
        print(
            f"{odd[0]}: each tab, line break, no-break space or double space was replaced by a "
            f"single space ({len(odd):,} text{'s' if len(odd) > 1 else ''} in all)"
        )


# Stimuli


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
    """A row of the file; values that it leaves out are empty."""

    item: str
    condition: str
    text: str
    marker_place: int | None = None  # words before the marker
    perturbed: str = ""
    regions: tuple[Region, ...] = ()
    where: str = ""  # for errors


@functools.lru_cache(1)
def read(path: Path, place: str = "") -> list[Stimulus]:
    """The stimuli of a csv or jsonl file. Raises UserError for an invalid row or column.

    place: a name that depends on the content, so that a file that has changed is read again.
    """
    text = text_of(path)
    of_kind = of_json if text.lstrip().startswith(("{", "[")) else of_csv
    rows = [(f"{path}, row {number}", row) for number, row in of_kind(text, path, _name)]
    if not rows:
        raise UserError(f"{path} holds no stimulus. Expected one in each row or line.")
    _require_known(path, {name for _, row in rows for name in row})
    stimuli = [_stimulus(row, where) for where, row in rows]
    _require_alike(stimuli)
    texts = [(where, row.get(name)) for where, row in rows for name in ("text", "perturbed")]
    print_replaced_spaces((where, text) for where, text in texts if isinstance(text, str))
    return stimuli


def _name(name: str) -> str:
    """The name of a column, in lower case if it is a known one."""
    kind, mark, suffix = name.strip().partition("_")
    if name.strip().lower() in _KNOWN:
        return name.strip().lower()
    is_further = kind.lower() in (_REGION, _OCCURRENCE)
    return (kind.lower() if is_further else kind) + mark + suffix


def _require_known(path: Path, names: set[str]) -> None:
    """Raise UserError for a missing or misspelled column; print the columns that are not read."""
    if missing := [name for name in _NEEDED if name not in names]:
        raise UserError(
            f"{path} has no column {', '.join(missing)}. Expected {', '.join(_NEEDED)}, and "
            f"optionally {', '.join(_KNOWN[3:])}. Found: {', '.join(sorted(names))}."
        )
    for name in sorted(names):
        kind = name.partition("_")[0]
        region = _REGION + name.removeprefix(_OCCURRENCE)
        if kind == _OCCURRENCE and region not in names:
            raise UserError(
                f"{path} has a column {name!r} without a column {region!r}. Rename or remove it."
            )
        if name in _KNOWN or kind in (_REGION, _OCCURRENCE):
            continue
        near = difflib.get_close_matches(name.lower(), _KNOWN, 1, 0.8)
        if near or name.lower() == "place":
            near = near or ["marker_place"]
            raise UserError(f"{path} has the unknown column {name!r}. Did you mean {near[0]}?")
        print(f"{path}: the column {name!r} is not read")


def _require_alike(stimuli: list[Stimulus]) -> None:
    """Raise UserError if an item has a condition twice, or marker_place in some conditions only."""
    first: dict[tuple[str, str], Stimulus] = {}
    placed: dict[str, bool] = {}
    for s in stimuli:
        before = first.setdefault((s.item, s.condition), s)
        if before is not s:
            raise UserError(
                f"{s.where} repeats item {s.item}, condition {s.condition} (first: {before.where})."
            )
        is_placed = s.marker_place is not None
        if not s.perturbed and placed.setdefault(s.item, is_placed) != is_placed:
            raise UserError(
                f"{s.where}: item {s.item} has a marker_place in some conditions only. Give it for "
                "all conditions of an item, or for none."
            )


def _stimulus(row: Row, where: str) -> Stimulus:
    """A stimulus from its row. Raises UserError if the row is invalid."""
    item, condition, place = (
        label(row.get(name), name, where) for name in ("item", "condition", "marker_place")
    )
    text = sentence(row.get("text"), "text", where)
    values = {"item": item, "condition": condition, "text": text}
    if empty := [name for name in _NEEDED if not values[name]]:
        raise UserError(f"{where}: {', '.join(empty)} is empty. Fill it in, or remove the row.")
    if not re.fullmatch(r"\d*", place):
        raise UserError(
            f"{where}: marker_place = {place!r}. Expected the number of words before the marker."
        )
    return Stimulus(
        **values,
        marker_place=int(place) if place else None,
        perturbed=sentence(row.get("perturbed"), "perturbed", where, may_begin_with_space=True),
        regions=tuple(_regions(row, where)),
        where=where,
    )


def _regions(row: Row, where: str) -> Iterator[Region]:
    for column in row:
        kind, _, name = column.partition("_")
        if kind != _REGION:
            continue
        text = sentence(row[column], column, where)
        counted = _OCCURRENCE + column.removeprefix(_REGION)
        occurrence = label(row.get(counted), counted, where)
        if occurrence and (not text or not re.fullmatch(r"[1-9]\d*", occurrence)):
            raise UserError(
                f"{where}: {counted} = {occurrence!r}. Expected 1 for the first occurrence of "
                f"{column} in the text, 2 for the second, and so on. Found {column} = {text!r}."
            )
        if text:
            yield Region(name or _REGION, text, int(occurrence) if occurrence else None)
