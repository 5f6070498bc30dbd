"""docs/tables.md has the columns of every table, in the order in which they are written."""

import json
import re
from pathlib import Path

import pandas as pd
import pytest
from conftest import ROOT
from test_markers import SAMPLE, runs  # noqa: F401

import eval as evaluate
from impossible import checkpoint
from impossible.settings import load

COMMON = ("The model of a row", "The test data of a row", "The seeds of a mean")


def explained() -> dict[str, list[str]]:
    """The columns that each section of the page explains."""
    page = (ROOT / "docs" / "tables.md").read_text(encoding="utf-8")
    sections = {}
    for section in page.split("\n## ")[1:]:
        title, _, text = section.partition("\n")
        first_cells = re.findall(r"^\| (`.*?) \|", text, flags=re.MULTILINE)
        sections[title] = re.findall("`(.*?)`", " ".join(first_cells))
    return sections


@pytest.fixture(scope="module")
def tables(
    runs: dict[str, Path],  # noqa: F811
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, list[str]]:
    """The columns of the tables that every measure writes for two runs and for one."""
    folder = tmp_path_factory.mktemp("tables")
    good = "They are here with all of us today."
    pair = {"sentence_good": good, "sentence_bad": good.replace("are", "was")}
    (folder / "pairs.jsonl").write_text(json.dumps(pair))
    (folder / "mine.csv").write_text(f"item,condition,text\n1,a,{good}\n")
    eval_dir = f"--eval_dir={folder / 'out'}"
    for options in (
        ("--sentences", "--surprisals", "--entropies"),
        ("--markers",),
        (f"--pairs={folder / 'pairs.jsonl'}",),
        (f"--stimuli={folder / 'mine.csv'}",),
    ):
        arguments = [*map(str, runs.values()), *SAMPLE, *options, eval_dir, "--device=cpu"]
        evaluate.main(load("eval.py", arguments, checkpoint.settings_of_run))
    of_one_run = next(iter(runs.values())).parent / "out" / "no_hop" / "evaluation"
    paths = sorted([*of_one_run.rglob("*.csv"), *(folder / "out").rglob("*.csv")])
    return {path.name: list(pd.read_csv(path)) for path in paths}


def test_every_column_of_every_table_is_explained(tables: dict[str, list[str]]) -> None:
    page = explained()
    common = {column for title in COMMON for column in page[title]}
    by_table = {name: page[title] for title in page for name in title.split(", ")}
    for name, columns in tables.items():
        own = set(by_table[name])
        assert own <= set(columns) <= own | common, name
    assert set(by_table) - set(tables) - set(COMMON) == {"runs.csv"}, "of a study"
