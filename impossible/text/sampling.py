"""Samples of large datasets: rows that are drawn at random over all of a dataset.

The draw does not depend on any seed of a run, so that runs with different seeds read the same text.
"""

import hashlib
import itertools
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from impossible import files

if TYPE_CHECKING:
    import datasets
    import pyarrow as pa
    from pyarrow.parquet import ParquetFile

SEED = 0
_COMPLETE = "sample.json"  # written last
_PIECES = 64  # least number of row groups that a sample comes from


def of_rows(rows: "datasets.Dataset", column: str, limit: int) -> "datasets.Dataset":
    """Random rows, in order, with `limit` bytes of text in a column; all rows if they have less."""
    order = np.random.default_rng(SEED).permutation(len(rows))
    return rows.select(np.sort(_first(limit, rows.data[column], order))).flatten_indices()


def of_hub(
    repo: str, options: dict[str, str | None], columns: list[str], limit: int
) -> "dict[str, datasets.Dataset]":
    """A sample of each split of a dataset on the Hub; empty if its files are not parquet.

    options: of load_dataset. columns: those to read, the text first. limit: bytes of text in each
    split. Samples are stored in the library's cache, by commit. Raises the errors of datasets and
    of the Hub, and ValueError if a column is missing or holds no text.
    """
    import datasets
    import pyarrow as pa

    options = options | {"revision": commit_of(repo, options["revision"])}
    schema = pa.schema([(column, pa.large_string()) for column in columns])
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
                path = folder / f"{split}.arrow"
                with files.atomic_write(path) as file, pa.ipc.new_stream(file, schema) as writer:
                    for table in _tables(urls, columns, limit):
                        writer.write_table(table.cast(schema))
            files.write_json(folder / _COMPLETE, {"sample": key})
    return {path.stem: datasets.Dataset.from_file(str(path)) for path in folder.glob("*.arrow")}


def commit_of(repo: str, revision: str | None) -> str:
    """The commit of a dataset's revision (None: the latest). No network is needed for a commit."""
    from huggingface_hub import dataset_info

    is_commit = re.fullmatch("[0-9a-f]{40}", revision or "")
    return revision if is_commit else dataset_info(repo, revision=revision).sha


def require_text(columns: Sequence[str], features: dict[str, Any], where: str) -> None:
    """Raise ValueError unless columns hold text. features: those of datasets, by column."""
    kinds = {name: getattr(feature, "dtype", None) for name, feature in features.items()}
    for column in columns:
        if kinds.get(column) not in ("string", "large_string"):
            raise ValueError(f"no text in column {column!r} of {where}, whose columns are {kinds}")


def sizes(texts: "pa.ChunkedArray") -> np.ndarray:
    """The size of each text in bytes, (n,)."""
    import pyarrow.compute as pc

    return pc.fill_null(pc.binary_length(texts), 0).to_numpy()


def _first(limit: int, texts: "pa.ChunkedArray", order: np.ndarray) -> np.ndarray:
    """The first indices in `order` whose texts have `limit` bytes in all; all if they have less."""
    sums = np.cumsum(sizes(texts)[order])
    return order[: np.searchsorted(sums, limit) + 1]


def _tables(urls: Sequence[str], columns: list[str], limit: int) -> Iterator["pa.Table"]:
    """Yield rows from row groups in random order, until they hold `limit` bytes of text.

    A small part of each row group comes first, and then, if that is too little, the rest of each.
    """
    rng, share, rest = np.random.default_rng(SEED), limit // _PIECES, []
    for file, group, rows in itertools.chain(_row_groups(urls, columns, rng), rest):
        table = file.read_row_group(group, columns).select(columns)
        is_new = rows is None
        rows = rng.permutation(len(table)) if is_new else rows
        drawn = table.take(_first(min(limit, share) if is_new else limit, table[0], rows))
        yield drawn
        limit -= int(sizes(drawn[0]).sum())
        if limit <= 0:
            return
        if is_new:
            rest.append((file, group, rows[len(drawn) :]))


def _row_groups(
    urls: Sequence[str], columns: list[str], rng: np.random.Generator
) -> Iterator[tuple["ParquetFile", int, None]]:
    """Yield all row groups in random order: one of each file, then another of each, and so on."""
    import datasets
    import huggingface_hub
    from pyarrow.parquet import ParquetFile

    system, others = huggingface_hub.HfFileSystem(), []
    for url in rng.permutation(urls):
        # without a cache: exactly what is asked for is downloaded
        file = ParquetFile(system.open(url, cache_type="none"), pre_buffer=True)
        require_text(columns, datasets.Features.from_arrow_schema(file.schema_arrow), url)
        groups = [(file, group, None) for group in rng.permutation(file.num_row_groups).tolist()]
        yield from groups[:1]
        others.append(groups[1:])
    for groups in itertools.zip_longest(*others):
        yield from filter(None, groups)
