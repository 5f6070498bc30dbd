"""The columns of tables, as docs/tables.md explains them."""

import functools
import re
from pathlib import Path

import pandas as pd

_PAGE = Path(__file__).parent.parent / "docs" / "tables.md"
_COMMON = ("The model of a row", "The test data of a row", "The seeds of a mean")


@functools.cache
def columns() -> dict[str, set[str]]:
    """The columns that each section of the page explains, by the name of each of its tables."""
    sections = {}
    for section in _PAGE.read_text(encoding="utf-8").split("\n## ")[1:]:
        title, _, text = section.partition("\n")
        first_cells = re.findall(r"^\| (`.*?) \|", text, flags=re.MULTILINE)
        names = set(re.findall("`(.*?)`", " ".join(first_cells)))
        sections |= dict.fromkeys(title.split(", "), names)
    return sections


def require_explained(folder: Path) -> set[str]:
    """Check that the page has exactly the columns of all tables in a folder; return their names."""
    common = set().union(*(columns()[title] for title in _COMMON))
    paths = sorted(folder.rglob("*.csv"))
    for path in paths:
        own, written = columns()[path.name], set(pd.read_csv(path))
        of_some = {"layer", "position", "role"} if "means" in path.name else set()
        assert own - of_some <= written <= own | common, f"{path.name}: {sorted(written ^ own)}"
    return {path.name for path in paths}
