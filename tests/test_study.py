"""Studies with real runs: from one command, resumed, extended, on SLURM, published."""

import os
import re
import shutil
import signal
import subprocess
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest
from conftest import children, fail, kill, start, succeed, wait_for, write_config
from hub import Hub, serve
from test_slurm import cluster, shown  # noqa: F401 (a fixture)

from impossible import checkpoint, files, log
from impossible.study import execute

Config = Callable[..., Path]
# So many steps that a run is still going when it is killed.
LONG = {"max_steps": 600, "checkpoint_interval": 200, "eval_interval": 200}


@pytest.fixture
def study(corpus_dir: Path, tmp_path: Path) -> Config:
    """Writes the config of a study of tiny models; its folder is `study`."""

    def write(name: str = "study", **values: object) -> Path:
        places = {"study_dir": str(tmp_path / name), "corpus": str(corpus_dir)}
        scope = {"languages": ["no_reverse", "partial_reverse"], "seeds": [1, 2]}
        options = places | scope | {"sentences_per_genre": 20} | values
        return write_config(tmp_path / f"{name}.py", **options)

    return write


def contents(folder: Path) -> dict[str, object]:
    """What a study has found: weights, exports and scores, without times and places."""
    found = {}
    for run in sorted((folder / "runs").glob("*-seed-*")):
        for path in checkpoint.list_checkpoints(run):
            loaded = checkpoint.load(path)
            weights = {name: w.numpy().tobytes() for name, w in loaded.model.items()}
            found[f"{run.name} {path.name}"] = weights, loaded.val_loss
        for path in sorted(run.glob("hf/*/*.safetensors")):
            found[str(path.relative_to(folder))] = path.read_bytes()
        records = [(r["step"], r.get("loss"), r.get("val_loss")) for r in log.read(run)]
        found[f"{run.name} log"] = records
    for name in ("perplexity.csv", "perplexity_means.csv", "differences.csv"):
        found[name] = (folder / name).read_text(encoding="utf-8")
    return found


def require_equal(folder: Path, other: Path) -> None:
    results, expected = contents(folder), contents(other)
    assert results.keys() == expected.keys()
    assert [key for key in expected if results[key] != expected[key]] == []


def words(folder: Path) -> dict[str, str]:
    """The state of each run, by runs.csv."""
    table = pd.read_csv(folder / "runs.csv")
    return dict(zip(table["run"], table["state"], strict=True))


def test_the_plan_is_shown_and_nothing_is_done(study: Config, tmp_path: Path) -> None:
    config = study(publish="ada/tiny")
    shown = succeed("study.py", config, "--dry_run", "--extra_checkpoints=log2")
    assert "2 language(s) x 2 seed(s) = 4 runs" in shown
    assert "partial_reverse: seed 1, 2" in shown
    run = tmp_path / "study" / "runs" / "no_reverse-seed-1" / "config.py"
    for command in ("prepare.py", "train.py", "convert_to_hf.py", "eval.py"):
        assert f"  python {command} {run}" in shown
    assert "tokens: 1,536 for each run, 6,144 for all" in shown
    assert "time left: unknown until a run has begun" in shown
    # 0, 1, 2, 3, 6: each 4 x (50258 x 16 + 32 x 16 + two layers + the last norm), as .pt and export
    weights = 4 * (50258 * 16 + 32 * 16 + 2 * (12 * 16**2 + 13 * 16) + 2 * 16)
    assert f"for each one 5 checkpoints of {weights / 1e6:.0f} MB" in shown
    assert "repos: ada/tiny-no-reverse-seed-1, ada/tiny-no-reverse-seed-2" in shown
    assert not (tmp_path / "study").exists()

    shown = succeed("study.py", config, "--status")
    assert "4 runs: 4 waiting" in shown
    assert not (tmp_path / "study").exists()


def test_mistakes_are_told_and_nothing_is_begun(
    study: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")
    assert "there is no command sbatch" in fail("study.py", study(), "--cluster=slurm")
    assert "n_head = 3 is invalid" in fail("study.py", study(n_head=3))
    assert not (tmp_path / "study").exists()


def test_a_failed_preparation_locks_nothing_and_other_text_is_refused(
    study: Config, corpus_dir: Path, tmp_path: Path
) -> None:
    config, folder = study(), tmp_path / "study"
    error = fail("study.py", config, f"--corpus={tmp_path / 'gone'}")
    assert "prepare failed: prepare.py: " in error
    assert f"(in {folder / 'prepare.txt'})" in error
    assert "4 of them are done" not in succeed("study.py", config, "--dry_run"), "it may go on"

    for language in ("no_reverse", "partial_reverse"):
        options = (f"--corpus={corpus_dir}", "--segmenter=line", f"--language={language}")
        succeed("prepare.py", *options, f"--data_dir={folder / 'data' / language}")
    edited = tmp_path / "edited"
    shutil.copytree(corpus_dir, edited)
    with open(edited / "100M" / "first.txt", "a") as file:
        file.write("One more.\n")
    error = fail("study.py", config, "--seeds=5,6", f"--corpus={edited}")
    assert "contains data that were prepared with other settings (corpus_version" in error
    assert "Choose another folder with --study_dir=, or delete this one." in error
    assert not list(folder.glob("runs/*/log.jsonl")), "nothing was trained"
    status = succeed("study.py", config, "--status")
    assert "The latest preparation of data failed: " in status, "not that of data by themselves"
    assert "4 runs: 4 waiting" in status


@pytest.mark.slow
@pytest.mark.timeout(2000)
def test_edited_material_is_evaluated_again_and_files_of_one_name_are_kept_apart(
    study: Config, tmp_path: Path
) -> None:
    texts = {"a": "He cleans his messy bookshelf.", "b": "They walk to the old house."}
    for name, text in texts.items():
        (tmp_path / name).mkdir()
        rows = f"item,condition,text\n1,x,{text}\n"
        (tmp_path / name / "items.csv").write_text(rows)
    evaluations = ["perplexity", *(f"stimuli={tmp_path / name}/items.csv" for name in texts)]
    config, folder = study(seeds=[1], evaluations=evaluations), tmp_path / "study"
    succeed("study.py", config, processes=1, timeout=600)

    def joint() -> set[str]:
        paths = [path for path in folder.glob("*/stimuli.csv") if path.parent.name != "runs"]
        tables = list(map(pd.read_csv, paths))
        assert all(table["text"].nunique() == 1 for table in tables)
        return {table["text"].iloc[0] for table in tables}

    assert joint() == set(texts.values())
    own = (folder / "runs" / "no_reverse-seed-1" / "evaluation").glob("*/stimuli.csv")
    assert {pd.read_csv(path)["text"].iloc[0] for path in own} == set(texts.values())

    path = tmp_path / "a" / "items.csv"
    path.write_text(path.read_text().replace("messy", "muddy"))
    assert "2 outdated" in succeed("study.py", config, "--status")
    again = succeed("study.py", config, processes=1, timeout=600)
    assert "train.py" not in again
    assert again.count("-seed-1: python eval.py") == 2, "of each run, the edited one"
    assert joint() == {texts["a"].replace("messy", "muddy"), texts["b"]}


class Page(HTMLParser):
    """The references and the pictures of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.references: list[str] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.references += [value or "" for name, value in attrs if name == "src"]
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, "tags are closed in order"


@pytest.mark.slow
@pytest.mark.timeout(2000)
def test_a_study_gives_what_the_single_commands_give_byte_for_byte(
    study: Config, tmp_path: Path
) -> None:
    config, folder = study(), tmp_path / "study"
    printed = succeed("study.py", config, processes=1, timeout=900)
    assert f"open {folder / 'report.html'}" in printed
    assert "(4 of 4 runs are done)" in printed
    assert set(words(folder).values()) == {"done"}
    found = contents(folder)

    # The very lines that --dry_run shows, in a folder of their own.
    alone = tmp_path / "alone"
    shown = succeed("study.py", config, f"--study_dir={alone}", "--dry_run")
    assert f"python train.py {alone}/runs/no_reverse-seed-1/config.py" in shown
    for path in sorted((folder / "runs").glob("*/config.py")):
        other = alone / "runs" / path.parent.name / "config.py"
        other.parent.mkdir(parents=True)
        other.write_text(path.read_text().replace(str(folder), str(alone)))
    configs = sorted((alone / "runs").glob("*/config.py"))
    for one in configs:
        for command in ("prepare.py", "train.py", "convert_to_hf.py"):
            succeed(command, one)
    succeed("eval.py", *configs)
    require_equal(folder, alone)

    page = (folder / "report.html").read_text(encoding="utf-8")
    parsed = Page(page)
    assert parsed.open == []
    assert parsed.references
    assert all(r.startswith("data:image/png;base64,") for r in parsed.references)
    assert "the perplexity of PartialReverse is" in page
    assert "4 runs" not in page, "all are done: nothing to tell"

    times = {path: path.stat().st_mtime_ns for path in folder.rglob("*.p[tn]*")}
    again = succeed("study.py", config, processes=1)
    assert "train.py" not in again
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*.p[tn]*")} == times

    more = study(languages=["no_reverse", "partial_reverse", "full_reverse"], seeds=[1, 2, 3])
    succeed("study.py", more, processes=1, timeout=600)
    assert len(words(folder)) == 9
    grown = contents(folder)
    for key in found:
        if not key.endswith(".csv"):
            assert grown[key] == found[key], "what is there is left alone"
    table = pd.read_csv(folder / "differences.csv")
    assert set(table["n"]) == {3}
    assert set(table["language"]) == {"partial_reverse", "full_reverse"}


@pytest.mark.slow
@pytest.mark.timeout(2000)
def test_a_study_that_is_killed_goes_on_and_ends_the_same(study: Config, tmp_path: Path) -> None:
    whole, broken = study("whole", **LONG), study("broken", **LONG)
    succeed("study.py", whole, processes=1, timeout=900)
    folder = tmp_path / "broken"
    runs = [folder / "runs" / f"no_reverse-seed-{seed}" for seed in (1, 2)]

    def is_under_way(run: Path) -> bool:
        return len(log.read(run)) > 20

    # The study itself: its runs save their last whole steps.
    process = start("study.py", broken)
    wait_for(lambda: all(map(is_under_way, runs)))
    assert "another process is writing to" in fail("study.py", broken, processes=1)
    process.kill()
    process.communicate()
    for run in runs:
        wait_for(lambda run=run: not files.is_locked(run))
        assert checkpoint.load(checkpoint.state_path(run)).step > 20
    status = succeed("study.py", broken, "--status")
    assert status.count("interrupted") == 3, "two runs, and their number"

    # The study and all that it has started; one run, which goes on by itself; and Ctrl-C.
    process = start("study.py", broken)
    wait_for(lambda: len(children(process.pid)) == 2)
    kill(process)
    process = start("study.py", broken)
    wait_for(lambda: len(children(process.pid)) == 2)
    first, second = children(process.pid)
    os.kill(first, signal.SIGKILL)
    wait_for(lambda: set(children(process.pid)) - {first, second}, seconds=60)
    process.send_signal(signal.SIGINT)
    printed, _ = process.communicate(timeout=60)
    assert process.returncode == execute.EXIT_STOPPED
    assert "train.py interrupted" in printed
    assert "stopping: each run saves its last whole step" in printed
    for run in runs:
        if checkpoint.load(checkpoint.state_path(run)).step < LONG["max_steps"]:
            assert words(folder)[run.name] == "interrupted"

    succeed("study.py", broken, processes=1, timeout=900)
    require_equal(folder, tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_run_that_diverges_does_not_stop_the_others(study: Config, tmp_path: Path) -> None:
    config, folder = study(), tmp_path / "study"
    process = start("study.py", config)
    bad = folder / "runs" / "partial_reverse-seed-1"
    wait_for((bad / "config.py").exists)  # its config is edited before it begins
    text = (bad / "config.py").read_text()
    (bad / "config.py").write_text(text.replace("learning_rate = 0.01", "learning_rate = 1e30"))
    _, error = process.communicate(timeout=300)
    assert process.returncode == 1
    assert "1 of 4 runs failed: partial_reverse-seed-1" in error
    assert list(words(folder).values()) == ["done", "done", "failed", "done"]
    assert "training has diverged" in succeed("study.py", config, "--status")
    page = " ".join((folder / "report.html").read_text(encoding="utf-8").split())
    assert "(3 done, 1 failed). The results below are from the runs that are done." in page
    assert "training has diverged" in page
    table = pd.read_csv(folder / "perplexity.csv")
    assert set(table["seed"]) == {1, 2}
    assert len(table[["model", "seed"]].drop_duplicates()) == 3

    (bad / "training_state.pt").unlink(missing_ok=True)  # of the steps before
    for path in bad.glob("checkpoint-*.pt"):
        path.unlink()
    (bad / "config.py").write_text(text)
    fail("study.py", config, processes=1)
    assert words(folder)["partial_reverse-seed-1"] == "failed", "it is tried on request"
    succeed("study.py", config, "--retry", processes=1, timeout=300)
    assert set(words(folder).values()) == {"done"}


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_study_is_published_as_repos_in_a_collection(study: Config, tmp_path: Path) -> None:
    config = study(seeds=[1])
    with serve(Hub()) as hub:
        env = {"HF_ENDPOINT": hub.url, "HF_TOKEN": "hf_good", "HF_HUB_DISABLE_XET": "1"}
        printed = succeed("study.py", config, "--publish=ada/tiny", env=env, timeout=400)
        repos = ["ada/tiny-no-reverse-seed-1", "ada/tiny-partial-reverse-seed-1"]
        for repo in repos:
            assert f"{repo}: convert_to_hf.py done" in printed
            assert len(hub.repos["models", repo].branches) == 3
            tree = hub.repos["models", repo].find("main").tree
            assert "evaluation/perplexity.csv" in tree
        ((slug, found),) = hub.collections.items()
        assert (found.title, found.items) == ("tiny", repos)
        assert f"all runs are in the collection {hub.url}/collections/{slug}" in printed
        before = hub.state()
        succeed("study.py", config, "--publish=ada/tiny", env=env, timeout=400)
        assert hub.state() == before
        assert found.items == repos


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_a_study_on_slurm_gives_the_same_and_survives_what_happens_there(
    cluster: dict[str, str],  # noqa: F811
    study: Config,
    tmp_path: Path,
) -> None:
    options = ("--cluster=slurm", "--gpus=0", "--cpus=1", "--memory_gb=3", "--hours=0.2")
    env = cluster | {"OMP_NUM_THREADS": "1"}
    succeed("study.py", study("here", **LONG), processes=1, timeout=900)
    config, folder = study("there", **LONG), tmp_path / "there"
    printed = succeed("study.py", config, *options, env=env)
    numbers = dict(re.findall(r"(\S+): job (\d+)", printed))
    assert len(numbers) == 6  # the data, four runs, the results
    assert f"no_reverse-seed-1: job {numbers['no_reverse-seed-1']} (afterok:" in printed
    assert "results: job" in printed
    again = succeed("study.py", config, *options, env=env)
    assert "job" not in again, "they are there already"

    first, second = (folder / "runs" / f"no_reverse-seed-{seed}" for seed in (1, 2))
    wait_for(lambda: len(log.read(first)) > 20, 300)
    status = succeed("study.py", config, *options, "--status", env=env)
    assert "running" in status
    assert "queued" in status
    # One job has to give way to another and goes back into the queue. One is cancelled.
    signals = ["scancel", "--signal=USR2", numbers["no_reverse-seed-1"]]
    subprocess.run(signals, env=cluster, check=True)
    wait_for(lambda: int(shown(numbers["no_reverse-seed-1"], cluster)["Restarts"]) > 0, 120)
    wait_for(lambda: len(log.read(second)) > 20, 300)
    subprocess.run(["scancel", numbers["no_reverse-seed-2"]], env=cluster, check=True)
    ended = ("COMPLETED", "CANCELLED", "FAILED")
    wait_for(lambda: shown(numbers["no_reverse-seed-1"], cluster)["JobState"] in ended, 900)
    wait_for(lambda: shown(numbers["partial_reverse-seed-2"], cluster)["JobState"] in ended, 900)
    assert "no_reverse-seed-2 interrupted" in " ".join(
        succeed("study.py", config, *options, "--status", env=env).split()
    )
    last = dict(re.findall(r"(\S+): job (\d+)", succeed("study.py", config, *options, env=env)))
    assert set(last) == {"prepare", "no_reverse-seed-2", "results"}
    wait_for(lambda: shown(last["results"], cluster)["JobState"] in ended, 900)
    assert shown(last["results"], cluster)["JobState"] == "COMPLETED"
    require_equal(folder, tmp_path / "here")
    assert (folder / "report.html").exists()
