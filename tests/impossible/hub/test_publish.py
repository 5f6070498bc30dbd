"""Publishing to a Hub on 127.0.0.1, with Xet and without it, with faults and mistakes."""

import itertools
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import torch
from conftest import OFFLINE, ROOT, fail, succeed, write_config
from hub import KINDS, Fault, Hub, Repo, serve
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils import httpx

from impossible import asking, checkpoint

XET = {"HF_XET_XORB_COMPRESSION_POLICY": "none"}  # the test's store does not decompress
NO_XET = {"HF_HUB_DISABLE_XET": "1"}
QUICK = {"OMP_NUM_THREADS": "1", "HF_HUB_ETAG_TIMEOUT": "2", "HF_HUB_DOWNLOAD_TIMEOUT": "2"}
TRANSFERS = pytest.mark.parametrize("transfer", [XET, NO_XET], ids=["xet", "no xet"])
XET_HERE = pytest.mark.parametrize(  # the other one with the slow tests
    "transfer", [XET, pytest.param(NO_XET, marks=pytest.mark.slow)], ids=["xet", "no xet"]
)
REPO = "ada/impossible"
PUSH = f"--push_to_hub={REPO}"
WRONG_TOKEN = "hf_thisTokenIsOfNobody"


def run_of(steps: int, data_dir: Path, folder: Path) -> Path:
    """The out_dir of a tiny run with a checkpoint at every step."""
    places = {"data_dir": str(data_dir), "out_dir": str(folder / "out")}
    numbers = {"max_steps": str(steps), "checkpoint_interval": "1", "eval_interval": "1"}
    succeed("train.py", write_config(folder / "config.py", **places, **numbers))
    return folder / "out"


@pytest.fixture(scope="module")
def five(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_of(5, data_dir, tmp_path_factory.mktemp("five"))


@pytest.fixture(scope="module")
def two(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_of(2, data_dir, tmp_path_factory.mktemp("two"))


def environment(hub: Hub, **more: str) -> dict[str, str]:
    return {
        "HF_ENDPOINT": hub.url,
        "HF_TOKEN": "hf_good",
        "HF_HOME": tempfile.mkdtemp(dir=OFFLINE["HF_HOME"]),
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        **more,
    }


def commits(hub: Hub) -> int:
    return sum(len(repo.commits) for repo in hub.repos.values())


@TRANSFERS
def test_a_series_is_published_loads_and_is_not_sent_again(
    transfer: dict[str, str], five: Path, tmp_path: Path
) -> None:
    with serve(Hub()) as hub:
        env = environment(hub, **transfer)
        command = ("convert_to_hf.py", f"--out_dir={five}", PUSH)
        printed = succeed(*command, env=env)
        assert "0 of 6 revisions are there already" in printed
        assert "downloaded, gives the logits of" in printed
        assert "hf_good" not in printed

        repo = hub.repos["models", REPO]
        names = [f"checkpoint-{step}" for step in range(1, 6)]
        assert list(repo.branches) == ["main", *names]
        for branch in ("main", *names):
            last, first = repo.history(branch)  # one commit on the repo's first, no more
            assert first.title == "initial commit"
            folder = five / "hf" / ("checkpoint-5" if branch == "main" else branch)
            sent = {path.name: path.read_bytes() for path in folder.iterdir()}
            found = {path: data for path, (data, _) in last.tree.items()}
            if branch == "main":  # which holds what was measured, too
                assert found.pop("training/log.jsonl") == (five / "log.jsonl").read_bytes()
                own_card = found.pop("README.md").decode()
                assert "- [training/log.jsonl](training/log.jsonl)" in own_card
                del sent["README.md"]
            assert found == sent | {".gitattributes": b"*.safetensors\n"}
            assert re.fullmatch(
                r"Step \d, validation loss \d+\.\d{4}, checkpoint sha256 [0-9a-f]{64}", last.title
            )
        order = [r for r in hub.requests if "/commit/" in r]
        assert order[-1].endswith("/main"), "main is filled last"

        tokens = torch.randint(50258, (2, 16))
        np.save(tmp_path / "tokens.npy", tokens.numpy())
        load = ROOT / "tests" / "load_revisions.py"
        succeed(load, REPO, tmp_path / "tokens.npy", tmp_path, "main", *names, env=env)
        for branch in ("main", *names):
            path = five / f"{'checkpoint-5' if branch == 'main' else branch}.pt"
            ours = checkpoint.build_model(checkpoint.load(path), path)(tokens).detach().numpy()
            assert np.abs(ours - np.load(tmp_path / f"{branch}.npy")).max() <= 1e-4

        before, made = commits(hub), len(hub.requests)
        printed = succeed(*command, env=env)
        assert "6 of 6 revisions are there already" in printed
        assert commits(hub) == before
        listings = [r for r in hub.requests[made:] if "/tree/" in r]
        assert len(listings) == 6
        assert len(hub.requests[made:]) <= len(listings) + 2


def test_tables_and_pictures_of_the_evaluation_are_published_with_main(
    two: Path, tmp_path: Path
) -> None:
    out_dir = shutil.copytree(two, tmp_path / "out")
    sample = "--sentences_per_genre=5"
    succeed("eval.py", f"--out_dir={out_dir}", sample)
    command = ("convert_to_hf.py", f"--out_dir={out_dir}", PUSH)
    with serve(Hub()) as hub:
        env = environment(hub, **NO_XET)
        succeed(*command, env=env)
        repo = hub.repos["models", REPO]
        kept = repo.history("checkpoint-2")[0].tree
        assert not any("/" in name for name in kept), "revisions are exports and nothing else"
        tree = repo.history("main")[0].tree
        for name in ("perplexity.csv", "perplexity.png"):
            assert tree[f"evaluation/{name}"][0] == (out_dir / "evaluation" / name).read_bytes()
        assert sorted(name for name in tree if "/" in name) == [
            "evaluation/losses.png",
            "evaluation/perplexity.csv",
            "evaluation/perplexity.png",
            "training/log.jsonl",
        ]
        own_card = tree["README.md"][0].decode()
        assert "![perplexity](evaluation/perplexity.png)" in own_card
        assert "- [evaluation/perplexity.csv](evaluation/perplexity.csv)" in own_card

        printed = succeed(*command, env=env)
        assert "3 of 3 revisions are there already" in printed
        succeed("eval.py", f"--out_dir={out_dir}", "--sentences_per_genre=6", "--sentences")
        printed = succeed(*command, env=env)
        assert "2 of 3 revisions are there already" in printed
        tree = repo.history("main")[0].tree
        table = (out_dir / "evaluation" / "perplexity.csv").read_bytes()
        assert tree["evaluation/perplexity.csv"][0] == table
        assert "evaluation/sentences.csv" not in tree, "text of the corpus"


def test_a_checkpoint_by_words_has_the_branch_of_babylms_tools_too(
    data_dir: Path, tmp_path: Path
) -> None:
    data = shutil.copytree(data_dir, tmp_path / "data")
    meta = json.loads((data / "meta.json").read_text())
    meta["splits"]["train"]["words"] = meta["splits"]["train"]["tokens"] * 10**6 // 256
    (data / "meta.json").write_text(json.dumps(meta))  # now a step has a million words
    places = {"data_dir": str(data), "out_dir": str(tmp_path / "out")}
    numbers = {"max_steps": "2", "checkpoint_interval": "2", "eval_interval": "2"}
    config = write_config(tmp_path / "config.py", **places, **numbers)
    succeed("train.py", config, "--extra_checkpoints=babylm")
    with serve(Hub()) as hub:
        env = environment(hub, **NO_XET)
        printed = succeed("convert_to_hf.py", f"--out_dir={tmp_path}/out", PUSH, env=env)
        assert "0 of 5 revisions are there already" in printed
        repo = hub.repos["models", REPO]
        assert list(repo.branches)[1:] == ["checkpoint-1", "checkpoint-2", "chck_1M", "chck_2M"]
        last = {branch: repo.history(branch)[0].tree for branch in repo.branches}
        assert last["chck_1M"] == last["checkpoint-1"]
        assert last["chck_2M"] == last["checkpoint-2"]
        assert last["main"]["model.safetensors"] == last["chck_2M"]["model.safetensors"]
        assert last["chck_1M"] != last["chck_2M"]


def test_the_snippet_of_the_card_runs_verbatim_and_quietly(five: Path) -> None:
    with serve(Hub()) as hub:
        env = environment(hub)
        succeed("convert_to_hf.py", f"--out_dir={five}", PUSH, env=env | XET)
        card = (five / "hf" / "checkpoint-3" / "README.md").read_text(encoding="utf-8")
        (snippet,) = re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL)
        assert f'"{REPO}", "checkpoint-3"' in snippet
        done = subprocess.run(
            [sys.executable, "-c", snippet],
            env=os.environ | env,
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.startswith("He clean")
        assert done.stderr == ""


class Publisher:
    """Publishes again and again, to one Hub, from one copy of a run."""

    def __init__(self, hub: Hub, out_dir: Path, process: subprocess.Popen[str]) -> None:
        self.hub, self.out_dir, self.process = hub, out_dir, process
        self.output = out_dir.parent / "output.txt"

    def publish(
        self, cache: Path, fault: Fault | None = None, *arguments: str, repo: str = REPO, **env: str
    ) -> int:
        """Run the command once, with a fault at some request; its exit code."""
        job = {
            "arguments": [f"--out_dir={self.out_dir}", f"--push_to_hub={repo}", *arguments],
            "environment": {"HF_XET_CACHE": str(cache), **env},
            "output": str(self.output),
        }
        self.send(json.dumps(job))
        if fault is not None:
            fault.pid = int(self.process.stdout.readline())
            self.hub.fault = fault
        else:
            self.process.stdout.readline()
        self.send("go")
        code = int(self.process.stdout.readline())
        self.hub.fault = None
        return code

    def send(self, line: str) -> None:
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def forget(self) -> None:
        """The Hub, and the record of what was published, as if nothing had been."""
        self.hub.empty()
        (self.out_dir / "hf" / "published.json").unlink(missing_ok=True)


@contextmanager
def publisher(transfer: dict[str, str], run: Path, folder: Path) -> Iterator[Publisher]:
    shutil.copytree(run, folder / "out")
    with serve(Hub()) as hub:
        process = subprocess.Popen(
            [sys.executable, ROOT / "tests" / "publisher.py"],
            cwd=ROOT,
            env=os.environ | environment(hub, **transfer, **QUICK),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            yield Publisher(hub, folder / "out", process)
        finally:
            process.stdin.close()
            process.wait(timeout=30)


def survives(p: Publisher, fault: Fault, undisturbed: dict, cache: Path) -> list[int]:
    """Publish with a fault, and again, and compare; the exit codes of the two."""
    p.forget()
    shutil.rmtree(cache, ignore_errors=True)
    kind, at = fault.kind, fault.at
    codes = [p.publish(cache, fault)]
    where = f"{kind} at request {at} ({fault.request})"
    assert fault.request, where
    goes_on = not kind.startswith("kill")
    assert (codes[0] == 0) == goes_on, where + p.output.read_text()
    if goes_on:
        assert p.hub.state() == undisturbed, where
    made = commits(p.hub)
    codes.append(p.publish(cache))
    assert codes[1] == 0, where + p.output.read_text()
    assert p.hub.state() == undisturbed, where
    if goes_on:
        assert commits(p.hub) == made, where
    return codes


def survived(
    transfer: dict[str, str],
    run: Path,
    folder: Path,
    chosen: Callable[[int], list[tuple[int, str]]],
) -> Iterator[tuple[str, str, list[int]]]:
    """For each fault that is chosen of a publication with so many requests, publish with it.

    Yields the request, the kind of fault and the two exit codes.
    """
    cache = folder / "cache"
    with publisher(transfer, run, folder) as p:
        assert p.publish(cache) == 0, p.output.read_text()
        requests, undisturbed = list(p.hub.requests), p.hub.state()
        for at, kind in chosen(len(requests)):
            if kind == "silent" and re.search("/cas/|xet-write-token", requests[at]):
                continue  # hf_xet asks, which has time-outs of its own, of minutes
            yield requests[at], kind, survives(p, Fault(at, kind), undisturbed, cache)


@pytest.mark.slow
@TRANSFERS
def test_a_publication_survives_a_fault_at_every_fifth_request(
    transfer: dict[str, str], two: Path, tmp_path: Path
) -> None:
    def every_fifth(count: int) -> list[tuple[int, str]]:
        return [(at, KINDS[at // 5 % len(KINDS)]) for at in range(0, count, 5)]

    assert len(list(survived(transfer, two, tmp_path, every_fifth))) >= 10


@pytest.mark.slow
@pytest.mark.timeout(3000)
@TRANSFERS
def test_a_publication_survives_every_fault_at_every_request(
    transfer: dict[str, str], two: Path, tmp_path: Path
) -> None:
    def every(count: int) -> list[tuple[int, str]]:
        return list(itertools.product(range(count), KINDS))

    for request, kind, codes in survived(transfer, two, tmp_path, every):
        end = "went on" if codes[0] == 0 else "run again"
        print("|", re.sub(r"[0-9a-f]{64}", "HASH", request), "|", kind, "|", end, "|")


@pytest.fixture(scope="module")
def mistaken(two: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Publisher]:
    """A publisher whose repo is complete."""
    with publisher(XET, two, tmp_path_factory.mktemp("mistaken")) as p:
        yield p


@pytest.fixture
def refused(mistaken: Publisher, tmp_path: Path) -> Callable[..., str]:
    """Publishes with a mistake; the one line of error. Nothing on the Hub may have changed."""

    def publish(*arguments: str, **options: str) -> str:
        before = mistaken.hub.state()
        assert mistaken.publish(tmp_path / "cache", None, *arguments, **options) == 1
        assert mistaken.hub.state() == before
        printed = mistaken.output.read_text(encoding="utf-8")
        assert "Traceback" not in printed, printed
        assert not any(token in printed for token in ("hf_good", WRONG_TOKEN))
        (line,) = [line for line in printed.splitlines() if line.startswith("error: ")]
        return line

    mistaken.forget()
    assert mistaken.publish(tmp_path / "cache") == 0, mistaken.output.read_text()
    return publish


def test_a_token_that_is_wrong_or_missing_is_told(refused: Callable[..., str]) -> None:
    assert "the Hub does not accept the token" in refused(HF_TOKEN=WRONG_TOKEN)
    assert "has no write permission" in refused(HF_TOKEN="hf_reader")
    assert "publishing needs a Hub token" in refused(HF_TOKEN="", HF_TOKEN_PATH="/nowhere")
    assert "contains invalid characters" in refused(HF_TOKEN="hf_go\x07od")


def test_a_name_that_is_not_ours_is_told(refused: Callable[..., str]) -> None:
    error = refused(repo="bob/impossible")
    assert "belongs to bob, but the token belongs to ada, who may write to: ada, lab" in error
    assert "--push_to_hub=ada/impossible" in error
    for name in ("impossible", "ada/impossible/2", "ada/--"):
        assert "is not the name of a repo. Expected: USER/NAME" in refused(repo=name)


def test_a_repo_that_may_be_read_only_is_told(
    mistaken: Publisher, refused: Callable[..., str]
) -> None:
    mistaken.hub.add_model("lab/impossible")
    error = refused(repo="lab/impossible")
    assert "does not let this token write there" in error
    assert "not finished: checkpoint-1, checkpoint-2, main" in error


def test_a_licence_that_the_hub_does_not_know_is_told_before_anything_is_made(
    mistaken: Publisher, refused: Callable[..., str]
) -> None:
    error = refused("--model_license=of-nobody", repo="ada/licensed")
    assert '"license" must be one of [mit, ...]. Is --model_license= one of' in error


@XET_HERE
def test_a_refusal_within_an_upload_is_not_waited_for(
    transfer: dict[str, str], two: Path, tmp_path: Path
) -> None:
    def is_upload(request: str) -> bool:
        return "xet-write-token" in request or "objects/batch" in request

    with publisher(transfer, two, tmp_path) as p:
        p.hub.refused = is_upload
        assert p.publish(tmp_path / "cache") == 1
        error = p.output.read_text().splitlines()[-1]
        assert "the Hub does not let this token write there" in error
        assert error.endswith("not finished: checkpoint-1, checkpoint-2, main.")
        assert "trying again" not in p.output.read_text()


def test_an_upload_that_the_hub_does_not_hold_is_noticed(
    mistaken: Publisher, tmp_path: Path
) -> None:
    hub = mistaken.hub
    mistaken.forget()

    def lose_a_file(request: str) -> None:
        if request.endswith("/tree/checkpoint-1"):
            for commit in hub.repos["models", REPO].commits.values():
                commit.tree.pop("merges.txt", None)

    hub.meanwhile = lose_a_file
    try:
        assert mistaken.publish(tmp_path / "cache") == 1
    finally:
        hub.meanwhile = lambda request: None
    error = mistaken.output.read_text().splitlines()[-1]
    assert "checkpoint-1 does not hold what was uploaded: merges.txt is missing." in error


def test_a_download_that_gives_other_logits_is_told_and_looked_at_again(
    mistaken: Publisher, tmp_path: Path
) -> None:
    hub = mistaken.hub
    mistaken.forget()
    whole: dict[str, bytes] = {}

    def damage(request: str) -> None:
        if "/resolve/" in request and not whole:
            whole.update(hub.large)
            for name, data in whole.items():
                hub.large[name] = data[:-400] + np.full(100, 12.0, np.float32).tobytes()

    hub.meanwhile = damage
    try:
        assert mistaken.publish(tmp_path / "cache") == 1
        error = mistaken.output.read_text().splitlines()[-1]
        (branch,) = re.findall(r"the revision (\S+) of ada/impossible, downloaded, gives", error)
        assert mistaken.publish(tmp_path / "cache") == 1
        assert f"the revision {branch} of" in mistaken.output.read_text().splitlines()[-1]
    finally:
        hub.meanwhile = lambda request: None
    hub.large.update(whole)
    assert mistaken.publish(tmp_path / "cache") == 0
    assert f"{branch}, downloaded, gives the logits of" in mistaken.output.read_text()


def test_a_branch_changed_by_hand_is_left_alone_unless_told_otherwise(
    mistaken: Publisher, refused: Callable[..., str], tmp_path: Path
) -> None:
    hub = mistaken.hub
    repo, complete = hub.repos["models", REPO], hub.state()
    wanted = repo.history("checkpoint-2")[0].tree
    repo.commit("checkpoint-2", "Update README.md", wanted | {"README.md": (b"mine", False)})
    error = refused()
    assert "the branch checkpoint-2 of ada/impossible was changed by hand" in error
    assert "'Update README.md'" in error
    assert mistaken.publish(tmp_path / "cache", None, "--overwrite") == 0
    assert repo.history("checkpoint-2")[0].tree == wanted
    assert hub.state()["models", REPO]["main"] == complete["models", REPO]["main"]


def test_a_branch_changed_by_hand_during_the_upload_is_left_alone(
    mistaken: Publisher, refused: Callable[..., str], tmp_path: Path
) -> None:
    hub = mistaken.hub
    repo = hub.repos["models", REPO]
    repo.commit("checkpoint-2", repo.history("checkpoint-2")[0].title, {})  # to be filled again

    def somebody(request: str) -> None:
        if request.endswith("/preupload/checkpoint-2") and len(repo.history("checkpoint-2")) == 3:
            repo.commit("checkpoint-2", "Add notes", {"notes.txt": (b"mine", False)})

    hub.meanwhile = somebody
    try:
        assert mistaken.publish(tmp_path / "cache") == 1
    finally:
        hub.meanwhile = lambda request: None
    assert "checkpoint-2 of ada/impossible was changed by hand" in mistaken.output.read_text()
    assert repo.history("checkpoint-2")[0].tree == {"notes.txt": (b"mine", False)}


def test_what_a_repo_began_with_is_asked_about_and_not_inherited(
    mistaken: Publisher, refused: Callable[..., str], tmp_path: Path
) -> None:
    """A repo made on the Hub's page, with a README in its first commit."""
    repo = mistaken.hub.repos["models", "ada/made"] = Repo()
    repo.commit("main", "initial commit", {"README.md": (b"mine", False)})
    first = repo.branches["main"]
    assert "the branch main of ada/made was changed by hand" in refused(repo="ada/made")
    repo.branches["checkpoint-1"] = first  # as a kill after its making leaves it
    assert "the branch main of ada/made" in refused(repo="ada/made")
    assert mistaken.publish(tmp_path / "cache", None, "--overwrite", repo="ada/made") == 0
    assert repo.history("checkpoint-1")[0].tree["README.md"][0] != b"mine"


def test_the_series_of_another_run_is_left_alone(
    mistaken: Publisher, refused: Callable[..., str]
) -> None:
    repo = mistaken.hub.repos["models", REPO]
    tree = repo.history("main")[0].tree
    title = f"Step 2, validation loss 3.0000, checkpoint sha256 {'0' * 64}"
    repo.commit("main", title, tree | {"model.safetensors": (b"others", True)})
    assert f"the branch main of {REPO} holds another checkpoint ('{title}'" in refused()


def test_a_step_that_was_trained_again_to_the_same_weights_takes_its_place(
    mistaken: Publisher, refused: Callable[..., str], tmp_path: Path
) -> None:
    """As after a repair: the checkpoint's bytes differ, for it says when it was trained."""
    repo = mistaken.hub.repos["models", REPO]
    last = repo.history("main")[0]
    title = f"Step 2, validation loss 3.0000, checkpoint sha256 {'0' * 64}"
    repo.commit("main", title, last.tree | {"README.md": (b"of that session", False)})
    assert mistaken.publish(tmp_path / "cache") == 0
    assert repo.history("main")[0].tree == last.tree


def test_a_repo_that_is_public_is_not_taken_for_a_private_one(
    mistaken: Publisher, refused: Callable[..., str], tmp_path: Path
) -> None:
    assert "ada/impossible is public, but the settings say private = True" in refused("--private")
    assert mistaken.publish(tmp_path / "cache", None, "--private", repo="ada/other") == 0
    assert mistaken.hub.repos["models", "ada/other"].private


def test_a_damaged_export_is_made_again_before_it_is_published(
    mistaken: Publisher, refused: Callable[..., str], tmp_path: Path
) -> None:
    path = mistaken.out_dir / "hf" / "checkpoint-1" / "model.safetensors"
    whole, before = path.read_bytes(), mistaken.hub.state()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert mistaken.publish(tmp_path / "cache") == 0
    assert "exporting checkpoint-1 again: its files have changed" in mistaken.output.read_text()
    assert path.read_bytes() == whole
    assert mistaken.hub.state() == before


def test_a_file_too_many_on_the_hub_is_removed(
    mistaken: Publisher, refused: Callable[..., str], tmp_path: Path
) -> None:
    repo = mistaken.hub.repos["models", REPO]
    last = repo.history("main")[0]
    repo.commit("main", last.title, last.tree | {"stray.bin": (b"stray", False)})
    assert mistaken.publish(tmp_path / "cache") == 0
    assert repo.history("main")[0].tree == last.tree


def test_a_dry_run_changes_nothing(
    mistaken: Publisher, refused: Callable[..., str], tmp_path: Path
) -> None:
    hub = mistaken.hub
    del hub.repos["models", REPO].branches["checkpoint-1"]
    for repo, left in ((REPO, "checkpoint-1"), ("ada/new", "checkpoint-1, checkpoint-2, main")):
        before, asked = hub.state(), len(hub.requests)
        assert mistaken.publish(tmp_path / "cache", None, "--dry_run", repo=repo) == 0
        printed = mistaken.output.read_text()
        assert f"dry run: would upload: {left}\n" in printed
        assert "would replace existing files of: nothing\n" in printed
        assert hub.state() == before
        made = {r for r in hub.requests[asked:] if not r.startswith(("GET", "HEAD"))}
        assert made == {"POST /api/validate-yaml"}
    assert "ada/new does not exist; it would be created as a public repo\n" in printed
    last = hub.repos["models", REPO].history("main")[0]
    hub.repos["models", REPO].commit("main", last.title, last.tree | {"stray": (b"", False)})
    assert mistaken.publish(tmp_path / "cache", None, "--dry_run") == 0
    printed = mistaken.output.read_text()
    assert "would replace existing files of: main\n" in printed


def test_a_run_that_is_not_finished_is_not_published(two: Path, tmp_path: Path) -> None:
    copy = tmp_path / "out"
    shutil.copytree(two, copy)
    for path in copy.glob("checkpoint-*.pt"):
        content = torch.load(path, weights_only=True)
        content["settings"] |= {"max_steps": 9}
        torch.save(content, path)
    error = fail("convert_to_hf.py", f"--out_dir={copy}", PUSH)
    assert "checkpoint-2.pt is the last checkpoint, and the run has 9 steps" in error


def test_the_hub_is_asked_again_when_it_says(mistaken: Publisher, tmp_path: Path) -> None:
    mistaken.forget()
    soon = datetime.now(UTC) + timedelta(seconds=60)
    assert asking.retry_after(answer(429, {"Retry-After": format_datetime(soon, True)})) > 50
    assert asking.retry_after(answer(429, {"Retry-After": "when it rains"})) is None
    for headers, said in (
        ({"Retry-After": "2"}, "trying again in 2 s"),
        ({"RateLimit": '"api";r=0;t=2'}, "trying again in 3 s"),
    ):
        assert mistaken.publish(tmp_path / "cache", Fault(0, "429", headers=headers)) == 0
        assert said in mistaken.output.read_text()


def answer(status: int, headers: dict[str, str]) -> HfHubHTTPError:
    request = httpx.Request("GET", "http://127.0.0.1")
    return HfHubHTTPError("no", response=httpx.Response(status, headers=headers, request=request))


def test_a_hub_that_stays_out_of_order_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def call() -> None:
        calls.append(1)
        raise ConnectionResetError("reset by peer")

    monkeypatch.setattr(asking, "_WAITS", (0.01, 0.02))
    with pytest.raises(ConnectionResetError):
        asking.patiently("a call", call)
    assert len(calls) == 3


@pytest.mark.parametrize(
    "ask",
    [
        lambda api: api.whoami(),
        lambda api: api.model_info(REPO),
        # The library asks some more times for these, and waits between.
        pytest.param(lambda api: list(api.list_repo_tree(REPO)), marks=pytest.mark.slow),
        pytest.param(lambda api: api.list_repo_commits(REPO), marks=pytest.mark.slow),
    ],
    ids=["whoami", "info", "tree", "commits"],
)
def test_a_hub_that_is_silent_is_asked_again(
    ask: Callable[[HfApi], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asking, "_WAITS", (0.01, 0.02))
    monkeypatch.setattr(asking, "_TIMEOUT", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        api = HfApi(endpoint=url, token="hf_good")
        with pytest.raises(huggingface_hub.utils.httpx.ReadTimeout):
            asking.patiently("a call", lambda: ask(api))
        silent.setblocking(False)
        for _ in range(3):
            silent.accept()
