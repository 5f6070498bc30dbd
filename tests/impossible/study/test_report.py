"""The page that tells what a study found."""

import json
import math
import re
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote, unquote

import documented
import pandas as pd
import pytest
from conftest import succeed
from test_plan import finish

from impossible import files
from impossible.study import plan as plans
from impossible.study import report
from impossible.study.execute import Job
from impossible.study.plan import Plan

NAN = math.nan
ROW = {"language": "full_reverse", "control": "no_reverse", "step": 2000, "sentences": 1998}
ON = ", 1,998 test sentences"
ONE = "over test sentences, for these two models alone:"
NONE = "this study does not show a difference"


@pytest.mark.parametrize(
    ("low", "difference", "high", "n", "p", "expected"),
    [
        (0.05, 0.1, 0.15, 5, 0.001, f"10.5% higher ... (95% interval 5.1% to 16.2%, 5 seeds{ON})"),
        (
            *(-0.15, -0.1, -0.05, 1, NAN),
            f"9.5% lower ... (95% interval {ONE} 4.9% to 13.9%, one seed{ON})",
        ),
        (
            *(-0.01, 0.01, 0.03, 1, NAN),
            f"1.0% higher ... (95% interval {ONE} -1.0% to +3.0%, one seed{ON}), but the interval "
            f"includes zero: {NONE}",
        ),
        (
            *(NAN, 0.1, NAN, 1, NAN),
            f"10.5% higher ... (one seed{ON}; too few sentences for an interval)",
        ),
        (0.4, 0.5, math.inf, 1, NAN, f"0.50 nats higher ... (one seed{ON}; no finite interval)"),
        (
            *(700.0, 800.0, 900.0, 5, 0.04999),
            f"800.00 nats higher ... (95% interval 700.00 to 900.00 nats, 5 seeds{ON})",
        ),
        (
            *(-800.0, 0.5, 800.0, 2, 0.5),
            "0.50 nats higher ... (95% interval -800.00 to +800.00 nats, 2 seeds"
            f"{ON}), but p (Holm) is 0.5000: {NONE}",
        ),
    ],
)
def test_a_difference_is_told_in_words(
    low: float, difference: float, high: float, n: int, p: float, expected: str
) -> None:
    row = ROW | {"low": low, "difference": difference, "high": high, "n": n, "p_holm": p}
    measure = "log-perplexity" if "nats" in expected else "perplexity"
    whole = expected.replace("...", "than that of NoReverse")
    start = f"After step 2,000, the {measure} of FullReverse is"
    assert report.sentence(row, 1) == f"{start} {whole}."


def test_a_difference_of_nearly_zero_and_one_that_is_no_number_are_told_in_words() -> None:
    row = ROW | {"low": -0.01, "difference": 0.0, "high": 0.01, "n": 5, "p_holm": 1.0}
    start = "After step 2,000, the perplexity of FullReverse"
    assert report.sentence(row, 1) == (
        f"{start} differs from that of NoReverse by less than 0.1% (95% interval -1.0% to +1.0%, 5 "
        f"seeds{ON}), but p (Holm) is 1.0000: {NONE}."
    )
    for low, difference in ((NAN, NAN), (-math.inf, math.inf)):
        row |= {"low": low, "difference": difference, "high": difference}
        assert report.sentence(row, 1) == (
            f"{start} cannot be compared with that of NoReverse: the difference is not a number."
        )


@pytest.mark.parametrize(
    ("p", "verdict"),
    [
        (0.0499, ""),
        (0.06, f", but p (Holm) is 0.0600: {NONE}"),
        (NAN, f", but nothing is tested at this step: {NONE}"),
    ],
)
def test_among_several_languages_the_corrected_test_decides_and_not_the_interval(
    p: float, verdict: str
) -> None:
    row = ROW | {"low": 0.01, "difference": 0.1, "high": 0.19, "n": 5, "p": 0.03, "p_holm": p}
    kind = "not corrected for the number of languages"
    end = f"(95% interval, {kind}: 1.0% to 20.9%, 5 seeds{ON}){verdict}."
    assert report.sentence(row, 2).endswith(end)


PARADIGMS = (("some", 200), ("all", 1200))
COMMON = {"step": 3, "max_steps": 9, "val_loss": math.nan, "perplexity": math.nan, "minutes": 1.5}
COMMON |= {"tokens_per_second": math.nan, "device": "", "error": ""}
NO_RUNS = pd.DataFrame(columns=["run", "state", "error", "device"])
Make = Callable[..., Plan]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Makes the plan of a study in a folder of its own."""

    def read(seeds: list[int], more: str = "") -> Plan:
        config = tmp_path / "study.py"
        languages = ["no_reverse", "full_reverse"]
        config.write_text(f"languages = {languages}\nseeds = {seeds}\ndevice = 'cpu'\n{more}")
        return plans.read([str(config), f"--study_dir={tmp_path}"], "usage")

    return read


def table(**states: str) -> pd.DataFrame:
    return pd.DataFrame([COMMON | {"run": run, "state": state} for run, state in states.items()])


def page(plan: Plan, runs: pd.DataFrame, names: list[str], is_current: bool = True) -> str:
    """The page, with single spaces between words."""
    return " ".join(report.page(plan, runs, names, is_current).split())


def test_the_page_says_what_is_missing_and_shows_no_text_as_html(make: Make) -> None:
    plan = make([1], "# <b>mine</b>\n")
    runs = table(one="failed", two="done")
    runs.loc[0, "error"] = "a loss < 0 & worse"
    shown = page(plan, runs, [])
    missing = "Not all of the 2 runs are done (1 done, 1 failed)."
    assert f"{missing} There are no results yet.</p>" in shown
    assert "a loss &lt; 0 &amp; worse" in shown
    assert "# &lt;b&gt;mine&lt;/b&gt;" in shown
    assert "Is a language harder to learn" not in shown, "nothing has been compared"
    assert "nan" not in shown
    plan.joint([]).error_file.write_text("its record is damaged")
    shown = page(plan, runs, [])
    assert missing in shown
    assert "no results yet" not in shown
    assert "The runs could not be evaluated together: its record is damaged" in shown


@pytest.mark.parametrize(
    ("state", "is_current", "text"),
    [
        ("interrupted", True, "The results below are from the runs that are done."),
        ("interrupted", False, "The results below are from an earlier evaluation"),
        ("done", False, "The results below are from an earlier evaluation"),
        ("done", True, ""),
    ],
)
def test_the_page_does_not_pass_old_results_off_as_new_ones(
    state: str, is_current: bool, text: str, make: Make, tmp_path: Path
) -> None:
    counts = {"model": "NoReverse", "genre": "all", "sentences": 9}
    pd.DataFrame(counts, [0]).to_csv(tmp_path / "perplexity.csv")
    row = {"label": "NoReverse", "step": 1, "mean": 9.0, "low": NAN, "high": NAN, "n": 1}
    pd.DataFrame(row, [0]).to_csv(tmp_path / "perplexity_means.csv")
    names = ["perplexity.csv", "perplexity_means.csv"]
    shown = page(make([1]), table(a="done", b=state), names, is_current)
    assert text in shown
    assert ("The results below" in shown) == bool(text)


@pytest.mark.parametrize("drawn", [998, 2000])
def test_the_numbers_of_the_page_are_those_of_the_tables(
    drawn: int, make: Make, tmp_path: Path
) -> None:
    plan = make([1, 2])
    rows = [
        {"label": "F - N", "measure": measure, "low": d - 0.01, "high": d + 0.01, "difference": d}
        | {"p": p / 2, "p_holm": p, "sentences": 998, "sentences_drawn": drawn}
        | {"n": 2, "language": "full_reverse", "control": "no_reverse", "step": step}
        | {"interval": "t, over seeds"}
        for step, d, p in ((1, 0.5, math.nan), (2, 0.25, 0.00001))
        for measure in ("perplexity", "perplexity_without_markers")
    ]
    rows[-1]["difference"] = 0.125
    pd.DataFrame(rows).to_csv(tmp_path / "differences.csv")
    perplexities = [
        {"label": label, "step": step, "mean": mean + step, "low": mean - 8, "high": mean + 8}
        for label, mean in (("NoReverse", 105), ("FullReverse", 210))
        for step in (1, 2)
    ]
    pd.DataFrame(perplexities).assign(n=2).to_csv(tmp_path / "perplexity_means.csv")
    counts = [
        {"model": model, "genre": genre, "sentences": count}
        for model, counts in (("NoReverse", (1000, 1010)), ("FullReverse", (900, 900)))
        for count in counts
        for genre in ("all", "first")
    ]
    pd.DataFrame(counts).to_csv(tmp_path / "perplexity.csv")
    names = ["differences.csv", "perplexity.csv", "perplexity_means.csv"]
    shown = page(plan, NO_RUNS, names)
    cells = ["+0.250", "+0.240 to +0.260", "&lt; 0.0001", "2"]
    cells += ["998" if drawn == 998 else "998 of 2,000"]
    cells += ["1,000 to 1,010"]
    for cell in (*cells, "+0.125", "107.0", "212.0", "97.0 to 113.0"):
        assert f"<td>{cell}</td>" in shown, cell
    assert ("sentences that are not compared" in shown) == (drawn == 2000)
    assert "+0.500" not in shown, "only the last step"
    assert "<th>p (Holm)</th>" in shown
    assert "This study tests only the last step" in shown

    more = [{**row, "label": "O - N", "step": step} for row in rows[:2] for step in (1, 2, 3)]
    pd.DataFrame(rows + more).assign(p_holm=0.75).to_csv(tmp_path / "differences.csv")
    shown = page(plan, NO_RUNS, names)
    assert shown.count("<td>0.7500</td>") == 2
    assert "After step 2, " in shown, "the last that all have"
    assert "After step 3, " not in shown
    text = "the number of languages: 27.1% to 29.7%, 2 seeds, 998 test sentences), but p (Holm) is"
    assert text in shown

    of_one = pd.DataFrame(rows).assign(n=1, interval="bootstrap, over sentences", p_holm=math.nan)
    of_one.to_csv(tmp_path / "differences.csv")
    shown = page(plan, NO_RUNS, names)
    assert "these two models alone: 27.1% to 29.7%, one seed, 998 test sentences)." in shown
    assert shown.count("other seeds would differ") == 1, "explained once, below the table"
    shown = page(plan, NO_RUNS, [])
    assert "one seed" not in shown, "files that the study did not write are not its results"


def test_every_table_and_picture_is_linked_with_what_it_rests_on(
    make: Make, tmp_path: Path
) -> None:
    plan = make([1], "evaluations = ['pairs=a b']")
    (run, other), place = plan.runs, "pairs_a b-1"
    rows = [{"run": r, "paradigm": p, "pairs_common": n} for r in "ab" for p, n in PARADIGMS]
    for folder in (tmp_path / place, run.folder / "evaluation" / place):
        folder.mkdir(parents=True)
        pd.DataFrame(rows).to_csv(folder / "pairs.csv")
        for ending in ("png", "pdf"):
            (folder / f"pairs.{ending}").write_text(str(folder))
        hashes = {path.name: files.sha256(path) for path in folder.iterdir()}
        files.write_json(folder / ".pairs.json", {"source": "", "files": hashes})
    joint = plan.joint(plan.runs)
    results = {joint.commands[0].key: joint.results_since(0)}
    other.folder.mkdir()
    for one in plan.runs:
        finish(one)

    def links() -> set[str]:
        files.write_json(joint.state_file, {"results": results})
        report.write(plan)
        paths = set(re.findall('href="(.*?)"', (tmp_path / "report.html").read_text()))
        assert all((tmp_path / unquote(path)).is_file() for path in paths)
        return paths

    places = (quote(place), f"runs/no_reverse-seed-1/evaluation/{quote(place)}")
    expected = {f"{p}/pairs.{ending}" for p in places for ending in ("csv", "pdf", "png")}
    assert links() == {"runs.csv", *expected}
    shown = (tmp_path / "report.html").read_text()
    assert f"the thin line is chance (1,200 pairs for each model). <code>{place}/pairs.png" in shown
    (run.folder / "evaluation" / place / "pairs.csv").write_text("changed")
    (tmp_path / place / "pairs.csv").unlink()
    assert links() == {"runs.csv", *expected} - {f"{p}/pairs.csv" for p in places}


def test_the_state_of_a_run_in_a_word(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = make([1, 2])
    (run, *_) = plan.runs
    run.folder.mkdir(parents=True)
    first = run.commands[0].key

    def state(record: dict[str, object] | None = None) -> str:
        if record is not None:
            files.write_json(run.state_file, record)
        table = report.runs_table(plan)
        assert set(table["state"][1:]) == {"waiting"}
        return table["state"][0]

    def slurm(word: str) -> None:
        monkeypatch.setattr(report.execute, "jobs_of", lambda _: {run.name: Job("1", word)})

    assert state() == "waiting"
    with files.locked(plan.locked_folder):
        assert state({"since": time.time()}) == "running"
    assert state() == "interrupted", "the study was killed"
    assert state({"seconds": 3.0}) == "interrupted"
    assert state({"seconds": 3.0, "finished": {first: {"settings": "others"}}}) == "outdated"
    for word, expected in (("PENDING", "queued"), ("RUNNING", "running")):
        slurm(word)
        assert state() == expected
    run.error_file.write_text("train.py: no memory")
    assert state() == "failed"
    finish(run)
    assert state() == "done"


def test_runs_are_shown_as_they_are_after_their_last_step(
    make: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = make([1], "max_steps = 4\nat_once = 2\nwarmup_steps = 1\n")
    run = plan.runs[0]
    (run.folder / "evaluation").mkdir(parents=True)
    records = [
        {"step": 1, "loss": 3.0, "val_loss": 4.0, "tokens_per_second": 10.0},
        {"step": 2, "loss": 2.0, "tokens_per_second": 524288.0},
        {"step": 3, "loss": None, "tokens_per_second": 1e9},
    ]
    (run.folder / "log.jsonl").write_text("".join(f"{json.dumps(r)}\n" for r in records))
    rows = [
        {"genre": genre, "step": step, "perplexity": 10 * step + (genre == "all")}
        for genre in ("first", "all")
        for step in (2, 4)
    ]
    pd.DataFrame(rows).to_csv(run.folder / "evaluation" / "perplexity.csv")
    report.show_plan(plan)
    # On average, 1 and 4 steps of 524,288 tokens are left.
    time = "at least 2.5 s of training, 2 runs at a time at 524,288 tokens/s each"
    assert f"time left: {time} (as in the runs so far)" in capsys.readouterr().out
    assert math.isnan(report.runs_table(plan)["perplexity"][0]), "it is not done"
    run.commands.clear()
    shown = report.runs_table(plan).iloc[0]
    names = ["step", "loss", "val_loss", "tokens_per_second", "perplexity"]
    assert list(shown[names]) == [3, 2.0, 4.0, 524288, 41]


def test_a_damaged_file_is_the_problem_of_its_run_alone(make: Make, tmp_path: Path) -> None:
    plan = make([1])
    weights, table = plan.runs
    for run in plan.runs:
        (run.folder / "evaluation").mkdir(parents=True)
        finish(run)
    weights.last_checkpoint.write_bytes(b"PK damaged")
    table.last_checkpoint.unlink()
    (table.folder / "log.jsonl").write_text('{"step": 1}\n{"step": "')
    status = succeed("study.py", tmp_path / "study.py", f"--study_dir={tmp_path}", "--status")
    assert f"{weights.name}: {weights.last_checkpoint} is damaged" in status
    assert "File is not a zip file" in status
    assert "start again in another --study_dir=" in status
    assert "--out_dir=" not in status, "a study refuses it"
    assert "2 runs: 1 done, 1 outdated" in status
    table.last_checkpoint.touch()
    (table.folder / "evaluation" / "perplexity.csv").touch()
    report.write(plan)
    shown = (tmp_path / "report.html").read_text()
    assert f"a file in {table.folder} is damaged: EmptyDataError" in shown
    shown = pd.read_csv(tmp_path / "runs.csv")
    assert list(shown["state"]) == ["done", "done"]
    assert shown["error"].notna().all()
    assert set(shown) == documented.columns()["runs.csv"]
