"""Corpora that the datasets library loads: from the Hub, a folder or a file."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from impossible import asking
from impossible.settings import UserError
from impossible.text.documents import CHUNK, Document, Part, Source, Splits, hold_out, text_lines
from impossible.text.folder import content_hash, plain_name
from impossible.text.token_files import SPLITS

if TYPE_CHECKING:
    import datasets

# The files that hf: reads on this machine, by ending: what datasets calls their kind.
_KINDS = {
    ".json": "json",
    ".jsonl": "json",
    ".ndjson": "json",
    ".csv": "csv",
    ".tsv": "csv",
    ".txt": "text",
    ".parquet": "parquet",
    ".arrow": "arrow",
}
_TEXT = ("string", "large_string")  # the types of a column that holds text
_MOST_ROWS = 10_000  # of a dataset, handled in one go


def local(name: str) -> Path | None:
    """The folder or file that hf:NAME names, if it is on this machine.

    Raises UserError if NAME can only be a path but does not exist.
    """
    text = name.removeprefix("hf:")
    path = Path(text).expanduser()
    if text and path.exists():
        return path.absolute()
    repo = text.partition("@")[0]
    is_path = repo.startswith((".", "/", "~")) or repo.count("/") > 1
    if is_path or plain_name(Path(repo)).suffix.lower() in _KINDS:
        raise UserError(f"hf:{text}: there is no such file or folder here. Check the path.")
    return None


def _hash(place: Path) -> str:
    """A hash of a local dataset: its file, or all files of its folder."""
    paths = sorted(path for path in [place, *place.rglob("*")] if path.is_file())
    return content_hash({"": paths}, place if place.is_dir() else place.parent)


def _load(name: str) -> "datasets.DatasetDict":
    """The splits of a dataset. Raises what datasets raises."""
    import datasets

    place = local(name)
    if place is None:
        path, _, revision = name.removeprefix("hf:").partition("@")
        path, _, config = path.partition(":")
        return _read(path, name=config or None, revision=revision or None)
    if (place / "dataset_dict.json").exists() or (place / "state.json").exists():
        stored = datasets.load_from_disk(str(place))
        is_one = isinstance(stored, datasets.Dataset)
        return datasets.DatasetDict(train=stored) if is_one else stored
    # The library knows what it has read by path and time: for other bytes, another cache.
    cache = Path(datasets.config.HF_DATASETS_CACHE) / "by_content" / _hash(place)[:16]
    if place.is_dir():
        return _read(str(place), cache_dir=str(cache))
    ending = plain_name(place).suffix.lower()
    if ending not in _KINDS:
        raise UserError(
            f"{place}: hf: reads files that end in {', '.join(_KINDS)} (or these and .gz)."
        )
    separator = {"sep": "\t"} if ending == ".tsv" else {}
    return _read(_KINDS[ending], data_files=str(place), cache_dir=str(cache), **separator)


def _read(path: str, **options: Any) -> "datasets.DatasetDict":
    """The splits of a dataset that was not saved by the library; cells of csv files are text."""
    import datasets

    if hasattr(datasets.load_dataset_builder(path, **options).config, "na_filter"):
        # Else pandas reads cells such as `null` and `NA` as missing, and 007 as a number.
        first = datasets.load_dataset(path, **options, nrows=1)
        names = sorted({name for rows in first.values() for name in rows.features})
        if any(name.startswith("__index_level_") for name in names):
            raise UserError(
                f"{options.get('data_files', path)}: a row has more cells than the csv file has "
                "columns. Put quotation marks around a text that contains a comma."
            )
        options |= {"na_filter": False, "converters": dict.fromkeys(names, str)}
    return datasets.load_dataset(path, **options)


def splits(name: str, column: str) -> Splits:
    """The splits of a dataset; for a missing split, every twentieth row of train is held out."""
    import datasets
    import pyarrow.compute as pc

    try:
        with asking.writable_cache():
            loaded = _load(name)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        reason = error.__cause__ or error  # which is told last
        raise UserError(
            f"the dataset {name.removeprefix('hf:')!r} could not be loaded: {reason}. Check "
            "the name and the network. Expected the name of a dataset on the Hub (hf:NAME or "
            "hf:NAME:CONFIG), or a local folder or file that datasets.load_dataset reads."
        )
    if "train" not in loaded:
        raise UserError(
            f"the dataset {name.removeprefix('hf:')!r} has no train split, only "
            f"{', '.join(loaded)}. A folder in BabyLM's layout is named without hf:"
        )
    parts = {split: loaded[split] for split in ("train", "test") if split in loaded}
    for other in ("val", "dev", "validation"):
        if other in loaded:
            parts["val"] = loaded[other]
    for split, rows in parts.items():
        _require_text(rows, column, f"the {split} split of {name.removeprefix('hf:')!r}")
        texts = pc.utf8_trim_whitespace(pc.fill_null(rows.data[column], ""))
        if empty := pc.sum(pc.equal(texts, "")).as_py():
            print(f"{split}: left out {empty:,} of {len(rows):,} rows, which have no text")
    places = hold_out([split for split in SPLITS if split not in parts])
    return {
        split: [_rows(parts.get(split, loaded["train"]), column, name, places.get(split))]
        for split in SPLITS
    }


def _require_text(rows: "datasets.Dataset", column: str, where: str) -> None:
    """Raise UserError, beginning with `where`, unless a column holds text."""
    kind = rows.features.get(column)
    if getattr(kind, "dtype", None) not in _TEXT:
        what = "no column" if kind is None else "no text in the column"
        texts = [n for n, k in rows.features.items() if getattr(k, "dtype", None) in _TEXT]
        advice = f"Set --text_column= to one of: {', '.join(texts)}"
        if not texts:
            columns = ", ".join(rows.features)
            advice = f"No column holds text (there are: {columns}). Choose another dataset."
        raise UserError(f"{where} has {what} {column!r}. {advice}")


def _rows(
    rows: "datasets.Dataset", column: str, name: str, places: frozenset[int] | None
) -> Document:
    rows = rows.select_columns([column])
    size = rows.data.nbytes
    mean = max(1, size // max(1, len(rows)))  # bytes of a row
    count = min(_MOST_ROWS, max(1, CHUNK // mean))

    def parts() -> Iterator[Part]:
        for start in range(0, len(rows), count):
            try:
                texts = rows[start : start + count][column]
            except UnicodeDecodeError as error:
                raise UserError(
                    f"{name}, among rows {start:,} to {start + count:,}: {error}. Expected text in "
                    f"UTF-8 in the column {column!r}."
                )
            yield Part(
                [line for text in texts for line in text_lines(text or "")], mean * len(texts)
            )

    genre = Path(name.removeprefix("hf:").partition("@")[0]).name
    return Document(genre, size, parts, places)


def version(name: str, column: str) -> str:
    """A hash of the files of a local dataset; of one on the Hub, its name and revision."""
    place = local(name)
    if place:
        return f"dataset files, column {column}, sha256 {_hash(place)}"
    pinned = "" if "@" in name else ", revision not pinned"
    return f"{name}, column {column}{pinned}"


def about(name: str) -> Source:
    """The description of a dataset on the Hub for a model card."""
    dataset, _, revision = name.removeprefix("hf:").partition("@")
    dataset = dataset.partition(":")[0]
    revision = f" at revision `{revision}`" if revision else ", revision not pinned"
    return Source(
        name=f"the dataset {dataset}",
        description=f"The dataset `{dataset}`{revision}.",
        rights="The dataset has a licence of its own.",
        dataset=dataset,
    )
