"""Samples of large datasets: rows drawn at random over the whole of it, never its beginning.

The draw is always the same: a sample is part of what the text is, and seeds vary on one text.
"""

import hashlib
import itertools
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from impossible import files

if TYPE_CHECKING:
    import datasets
    import pyarrow as pa
    from pyarrow.parquet import ParquetFile

SEED = 0
_COMPLETE = "sample.json"  # written last
_PIECES = 64  # row groups that a sample comes from, or more


def of_rows(rows: "datasets.Dataset", columns: list[str], limit: int) -> "datasets.Dataset":
    """Rows of a dataset, in order, with `limit` bytes of text, or all that it has.

    columns: the text's first. Raises ValueError if one is missing or holds no text.
    """
    kinds = {name: getattr(kind, "dtype", None) for name, kind in rows.features.items()}
    require_text(columns, kinds, "the dataset")
    order = np.random.default_rng(SEED).permutation(len(rows))
    count = _fitting(rows.data[columns[0]], order, limit)
    return rows.select(np.sort(order[:count])).flatten_indices()


def of_hub(
    repo: str, options: dict[str, str | None], columns: list[str], limit: int
) -> "dict[str, datasets.Dataset]":
    """A sample of each split of a dataset on the Hub; empty if its files are not parquet.

    options: of load_dataset. columns: those to read, the text first. Samples are stored among the
    caches of the library, by the commit. Raises what datasets and the Hub raise, and ValueError if
    a column is missing or holds no text.
    """
    import datasets
    from huggingface_hub import dataset_info

    if not re.fullmatch("[0-9a-f]{40}", options["revision"] or ""):
        options = options | {"revision": dataset_info(repo, revision=options["revision"]).sha}
    key = json.dumps([repo, options, columns, limit, SEED])
    name = hashlib.sha256(key.encode()).hexdigest()[:16]
    folder = Path(datasets.config.HF_DATASETS_CACHE) / "samples" / name
    folder.mkdir(parents=True, exist_ok=True)
    with files.locked(folder):
        if not (folder / _COMPLETE).exists():
            splits = datasets.load_dataset_builder(repo, **options).config.data_files or {}
            if any(not url.endswith(".parquet") for urls in splits.values() for url in urls):
                return {}
            for split, urls in splits.items():
                print(f"{split}: reading parts of {len(urls):,} files", flush=True)
                _write(_tables(urls, columns, limit), folder / f"{split}.arrow")
            files.write_json(folder / _COMPLETE, {"sample": key})
    paths = folder.glob("*.arrow")
    return {path.stem: datasets.Dataset.from_file(str(path)) for path in paths}


def require_text(columns: Sequence[str], kinds: dict[str, str | None], where: str) -> None:
    """Raise ValueError unless columns hold text. kinds: the type of each column, by name."""
    for column in columns:
        if kinds.get(column) not in ("string", "large_string"):
            raise ValueError(
                f"no text in a column {column!r} of {where}, whose columns are {kinds}"
            )


def _write(tables: Iterator["pa.Table"], path: Path) -> None:
    """Write tables of the same columns as an Arrow stream."""
    import pyarrow as pa

    if (first := next(tables, None)) is None:
        raise ValueError(f"the split {path.stem} has no rows to sample")
    with files.atomic_write(path) as file, pa.ipc.new_stream(file, first.schema) as writer:
        for table in itertools.chain([first], tables):
            writer.write_table(table.cast(first.schema))


def _tables(urls: Sequence[str], columns: list[str], limit: int) -> Iterator["pa.Table"]:
    """Rows of row groups in random order, with `limit` bytes of text or all that there is.

    A small part of each row group comes first, and if all of them are read, the rest of each.
    """
    rng, size, rest = np.random.default_rng(SEED), 0, []
    for file, group, order in itertools.chain(_row_groups(urls, columns, rng), rest):
        table = file.read_row_group(group, columns).select(columns)
        is_new = order is None
        order = rng.permutation(len(table)) if is_new else order
        most = min(limit - size, limit // _PIECES) if is_new else limit - size
        count = _fitting(table[0], order, most)
        table = table.take(order[:count])
        yield table
        size += int(sizes(table[0]).sum())
        if size >= limit:
            return
        if is_new:
            rest.append((file, group, order[count:]))


def _row_groups(
    urls: Sequence[str], columns: list[str], rng: np.random.Generator
) -> Iterator[tuple["ParquetFile", int, None]]:
    """All row groups, in random order: one of each file, then another of each, and so on."""
    import huggingface_hub
    from pyarrow.parquet import ParquetFile

    system = huggingface_hub.HfFileSystem()
    opened: dict[str, tuple[ParquetFile, list[int]]] = {}
    while urls:
        for url in rng.permutation(urls):
            if url not in opened:  # without a cache: exactly what is asked for is downloaded
                file = ParquetFile(system.open(url, cache_type="none"), pre_buffer=True)
                kinds = {field.name: str(field.type) for field in file.schema_arrow}
                require_text(columns, kinds, url)
                opened[url] = file, rng.permutation(file.num_row_groups).tolist()
            file, groups = opened[url]
            if groups:
                yield file, groups.pop(), None
        urls = [url for url in urls if opened[url][1]]


def sizes(texts: "pa.ChunkedArray") -> np.ndarray:
    """The bytes of each text, (n,)."""
    import pyarrow.compute as pc

    return pc.fill_null(pc.binary_length(texts), 0).to_numpy()


def _fitting(texts: "pa.ChunkedArray", order: np.ndarray, size: int) -> int:
    """How many texts in that order have `size` bytes together: all of them, if they have fewer."""
    sums = np.cumsum(sizes(texts)[order])
    return min(len(sums), int(np.searchsorted(sums, size)) + 1)
