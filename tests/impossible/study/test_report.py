"""The page that tells what a study found."""

import math
from pathlib import Path

import pandas as pd
import pytest

from impossible.study import plan as plans
from impossible.study import report, states

ROW = {"language": "full_reverse", "control": "no_reverse", "step": 2000}


@pytest.mark.parametrize(
    ("low", "difference", "high", "n", "p", "expected"),
    [
        (
            *(0.05, 0.1, 0.15, 5, 0.001),
            "After step 2,000, the perplexity of FullReverse is 10.5% higher than that of "
            "NoReverse (95% interval 5.1% to 16.2%, 5 seeds).",
        ),
        (
            *(-0.15, -0.1, -0.05, 1, math.nan),
            "After step 2,000, the perplexity of FullReverse is 9.5% lower than that of NoReverse "
            "(95% interval over test sentences of this one model: 4.9% to 13.9%, one seed).",
        ),
        (
            *(-0.01, 0.01, 0.03, 1, math.nan),
            "After step 2,000, the perplexity of FullReverse is 1.0% higher than that of "
            "NoReverse (95% interval over test sentences of this one model: -1.0% to +3.0%, one "
            "seed), but the interval includes zero: this study does not show a difference.",
        ),
        (
            *(math.nan, math.nan, math.nan, 5, math.nan),
            "After step 2,000, the perplexity of FullReverse cannot be compared with that of "
            "NoReverse: the difference is not a number.",
        ),
        (
            *(-math.inf, math.inf, math.inf, 5, math.nan),
            "After step 2,000, the perplexity of FullReverse cannot be compared with that of "
            "NoReverse: the difference is not a number.",
        ),
        (
            *(math.nan, 0.1, math.nan, 1, math.nan),
            "After step 2,000, the perplexity of FullReverse is 10.5% higher than that of "
            "NoReverse (one seed; too few sentences for an interval).",
        ),
        (
            *(math.nan, 1000.0, math.nan, 1, math.nan),
            "After step 2,000, the log-perplexity of FullReverse is 1,000.00 nats higher than that "
            "of NoReverse (one seed; too few sentences for an interval).",
        ),
        (
            *(700.0, 800.0, 900.0, 5, 0.04999),
            "After step 2,000, the log-perplexity of FullReverse is 800.00 nats higher than that "
            "of NoReverse (95% interval 700.00 to 900.00 nats, 5 seeds).",
        ),
        (
            *(-800.0, 0.5, 800.0, 2, 0.5),
            "After step 2,000, the log-perplexity of FullReverse is 0.50 nats higher than that "
            "of NoReverse (95% interval -800.00 to +800.00 nats, 2 seeds), but p (Holm) is "
            "0.5000: this study does not show a difference.",
        ),
        (
            *(-0.01, 0.01, 0.03, 5, 0.25),
            "After step 2,000, the perplexity of FullReverse is 1.0% higher than that of "
            "NoReverse (95% interval -1.0% to +3.0%, 5 seeds), but p (Holm) is 0.2500: "
            "this study does not show a difference.",
        ),
        (
            *(-0.01, 0.0, 0.01, 5, 1.0),
            "After step 2,000, the perplexity of FullReverse differs from that of NoReverse by "
            "less than 0.1% (95% interval -1.0% to +1.0%, 5 seeds), but p (Holm) is 1.0000: "
            "this study does not show a difference.",
        ),
        (
            *(0.4, 0.5, math.inf, 1, math.nan),
            "After step 2,000, the log-perplexity of FullReverse is 0.50 nats higher than that of "
            "NoReverse (one seed; no finite interval).",
        ),
    ],
)
def test_a_difference_is_told_in_words(
    low: float, difference: float, high: float, n: int, p: float, expected: str
) -> None:
    row = ROW | {"low": low, "difference": difference, "high": high, "n": n, "p_holm": p}
    assert report.sentence(row, 1) == expected


@pytest.mark.parametrize(
    ("p", "verdict"),
    [
        (0.0499, "."),
        (0.06, ", but p (Holm) is 0.0600: this study does not show a difference."),
        (math.nan, ", but nothing is tested at this step: this study does not show a difference."),
    ],
)
def test_among_several_languages_the_corrected_test_decides_and_not_the_interval(
    p: float, verdict: str
) -> None:
    row = ROW | {"low": 0.01, "difference": 0.1, "high": 0.19, "n": 5, "p": 0.03, "p_holm": p}
    assert report.sentence(row, 2) == (
        "After step 2,000, the perplexity of FullReverse is 10.5% higher than that of NoReverse "
        "(95% interval, not corrected for the number of languages: 1.0% to 20.9%, 5 seeds)"
        + verdict
    )


def test_the_page_says_what_is_missing_and_shows_no_text_as_html(tmp_path: Path) -> None:
    config = tmp_path / "study.py"
    config.write_text('languages = ["no_reverse", "full_reverse"]\nseeds = [1]\n# <b>mine</b>\n')
    plan = plans.read([str(config), f"--study_dir={tmp_path}"], "usage")
    common = {"step": 3, "max_steps": 9, "val_loss": math.nan, "perplexity": math.nan}
    common |= {"minutes": 1.5, "tokens_per_second": math.nan, "device": ""}
    runs = pd.DataFrame(
        [
            {"run": "one", "state": "failed", "error": "a loss < 0 & worse", **common},
            {"run": "two", "state": "done", "error": "", **common},
        ]
    )
    report.write(plan, runs)
    page = (tmp_path / report.NAME).read_text(encoding="utf-8")
    told = "Not all of the 2 runs are done (1 done, 1 failed)."
    assert f"{told} There are no results yet.</p>" in page
    assert "a loss &lt; 0 &amp; worse" in page
    assert "# &lt;b&gt;mine&lt;/b&gt;" in page
    assert "Is a language harder to learn" not in page, "nothing has been compared"
    assert "nan" not in page
    report.write(plan, runs, error="its record is damaged")
    page = (tmp_path / report.NAME).read_text(encoding="utf-8")
    assert f"{told} </p>" in page, "and not that there are no results"
    assert "The runs could not be evaluated together: its record is damaged" in page


def test_the_page_does_not_pass_old_results_off_as_new_ones(tmp_path: Path) -> None:
    config = tmp_path / "study.py"
    config.write_text('languages = ["no_reverse", "full_reverse"]\nseeds = [1]\n')
    plan = plans.read([str(config), f"--study_dir={tmp_path}"], "usage")
    columns = {"model": ["NoReverse"], "genre": ["all"], "step": [1], "perplexity": [9.0]}
    pd.DataFrame(columns).to_csv(tmp_path / "perplexity.csv")
    numbers = dict.fromkeys(("val_loss", "perplexity", "minutes", "tokens_per_second"), math.nan)
    common = numbers | {"step": 1, "max_steps": 1, "device": "", "error": ""}
    for state, is_current, told in (
        ("interrupted", True, "The results below are from the 1 runs that are done."),
        ("interrupted", False, "The results below are from an earlier evaluation"),
        ("done", False, "The results below are from an earlier evaluation"),
        ("done", True, ""),
    ):
        runs = pd.DataFrame(
            [{"run": n, "state": s, **common} for n, s in (("a", "done"), ("b", state))]
        )
        report.write(plan, runs, ["perplexity.csv"], is_current=is_current)
        page = (tmp_path / report.NAME).read_text(encoding="utf-8")
        assert told in page
        assert ("The results below" in page) == bool(told)


def test_only_a_failed_preparation_is_a_problem(tmp_path: Path) -> None:
    config = tmp_path / "study.py"
    config.write_text('languages = ["no_reverse", "full_reverse"]\nseeds = [1]\n')
    plan = plans.read([str(config), f"--study_dir={tmp_path}"], "usage")
    assert states.problem_of_data(plan) == ""
    output = tmp_path / states.PREPARING
    output.write_text("\n$ python prepare.py\nNoReverse is ready\n")
    assert states.problem_of_data(plan) == "", "of another language, or not yet at its end"
    output.write_text("\n$ python prepare.py\nerror: no text there\n")
    problem = f"The latest preparation of data failed: no text there (in {output})"
    assert states.problem_of_data(plan) == problem


@pytest.mark.parametrize("drawn", [1000, 2000])
def test_the_numbers_of_the_page_are_those_of_the_tables(drawn: int, tmp_path: Path) -> None:
    config = tmp_path / "study.py"
    config.write_text('languages = ["no_reverse", "full_reverse"]\nseeds = [1, 2]\n')
    plan = plans.read([str(config), f"--study_dir={tmp_path}"], "usage")
    rows = [
        {"label": "F - N", "measure": measure, "low": d - 0.01, "high": d + 0.01, "difference": d}
        | {"p": p / 2, "p_holm": p, "sentences": 1000 - step, "sentences_drawn": drawn}
        | {"n": 2, "language": "full_reverse", "control": "no_reverse", "step": step}
        | {"interval": "t, over seeds"}
        for step, d, p in ((1, 0.5, math.nan), (2, 0.25, 0.00001))
        for measure in ("perplexity", "perplexity_without_markers")
    ]
    rows[-1]["difference"] = 0.125
    pd.DataFrame(rows).to_csv(tmp_path / "differences.csv")
    perplexities = [
        {"model": model, "genre": genre, "step": step, "perplexity": value + step}
        for model, values in (("NoReverse", (100, 110)), ("FullReverse", (200, 220)))
        for value in values
        for genre in ("all", "first")
        for step in (1, 2)
    ]
    pd.DataFrame(perplexities).to_csv(tmp_path / "perplexity.csv")
    (tmp_path / "differences.png").touch()
    names = ["differences.csv", "perplexity.csv", "differences.png"]
    no_runs = pd.DataFrame(columns=["run", "state", "error", "device"])
    report.write(plan, no_runs, names)
    page = (tmp_path / report.NAME).read_text(encoding="utf-8")
    cells = ["+0.250", "+0.240 to +0.260", "&lt; 0.0001", "2", "998"]
    told = "Warning: F - N: only 998 of 2,000 test sentences are compared."
    assert (told in page) == (drawn == 2000)
    assert "\n".join(f"<td>{cell}</td>" for cell in cells[:1]) in page
    for cell in (*cells, "+0.125", "107.0", "212.0", "43.5 to 170.5"):  # 107 +- 12.706 * 5
        assert f"<td>{cell}</td>" in page, cell
    assert "+0.500" not in page, "only the last step"
    assert "<th>p (Holm)</th>" in page
    assert "The last step is the test" in page
    assert "Bands are pointwise 95%" in page

    more = [{**row, "label": "O - N", "step": step} for row in rows[:2] for step in (1, 2, 3)]
    compared_in_full = pd.DataFrame(rows + more).assign(p_holm=0.75, sentences=drawn)
    compared_in_full.to_csv(tmp_path / "differences.csv")
    report.write(plan, no_runs, names)
    page = (tmp_path / report.NAME).read_text(encoding="utf-8")
    assert page.count("<td>0.7500</td>") == 2
    assert page.count(f"<td>{drawn:,}</td>") == 2
    assert "Warning" not in page
    assert "After step 2, " in page, "the last that all have"
    assert "After step 3, " not in page

    told = "not corrected for the number of languages: 27.1% to 29.7%, 2 seeds), but p (Holm) is"
    assert told in page

    of_one = pd.DataFrame(rows).assign(n=1, interval="bootstrap, over sentences", p_holm=math.nan)
    of_one.to_csv(tmp_path / "differences.csv")
    report.write(plan, no_runs, names)
    page = (tmp_path / report.NAME).read_text(encoding="utf-8")
    assert "over test sentences of this one model: 27.1% to 29.7%, one seed)." in page
    assert page.count("other seeds would differ") == 1, "explained once, below the table"

    (tmp_path / "perplexity.csv").write_bytes(b"\0")
    (tmp_path / "differences.csv").unlink()
    report.write(plan, no_runs, names)
    page = (tmp_path / report.NAME).read_text(encoding="utf-8")
    assert page.count("cannot be read") == 2
    assert "<h2>All runs</h2>" in page
    report.write(plan, no_runs)
    page = (tmp_path / report.NAME).read_text(encoding="utf-8")
    assert "cannot be read" not in page, "files that the study did not write are not its results"
