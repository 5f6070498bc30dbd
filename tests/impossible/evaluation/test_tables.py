"""docs/tables.md has the columns of every table."""

import json
from pathlib import Path

from documented import columns, require_explained
from test_markers import SAMPLE, runs  # noqa: F401

import eval as evaluate
from impossible import checkpoint
from impossible.settings import load

ELSEWHERE = {"runs.csv"}  # the tests of the report and of interventions check these
ELSEWHERE |= {f"interventions{kind}.csv" for kind in ("", "_pairs", "_means")}


def test_every_column_of_every_table_is_explained(
    runs: dict[str, Path],  # noqa: F811
    tmp_path: Path,
) -> None:
    good = "They are here with all of us today."
    pair = {"sentence_good": good, "sentence_bad": good.replace("are", "was")}
    (tmp_path / "pairs.jsonl").write_text(json.dumps(pair))
    (tmp_path / "mine.csv").write_text(f"item,condition,text\n1,a,{good}\n")
    eval_dir = f"--eval_dir={tmp_path / 'out'}"
    for options in (
        ("--sentences", "--surprisals", "--entropies"),
        ("--markers",),
        (f"--pairs={tmp_path / 'pairs.jsonl'}",),
        (f"--stimuli={tmp_path / 'mine.csv'}",),
    ):
        arguments = [*map(str, runs.values()), *SAMPLE, *options, eval_dir, "--device=cpu"]
        evaluate.main(load("eval.py", arguments, checkpoint.settings_of_run))
    of_one_run = next(iter(runs.values())).parent / "out" / "no_hop" / "evaluation"
    tables = require_explained(tmp_path / "out") | require_explained(of_one_run)
    assert tables | ELSEWHERE == {name for name in columns() if name.endswith(".csv")}
