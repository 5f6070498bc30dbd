"""Publishing to a Hub on 127.0.0.1, with Xet and without it, with faults and mistakes."""

import itertools
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import pytest
import torch
from conftest import fail, succeed, write_config
from hub import KINDS, Fault, Hub, Repo, serve
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils import httpx
from publisher import NO_XET, REPO, XET, Publisher, environment, publisher

from impossible import asking
from impossible.hub import publish
from impossible.settings import UserError

WRONG_TOKEN = "hf_thisTokenIsOfNobody"


@pytest.fixture(scope="module")
def two(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The out_dir of a tiny run of two steps with a checkpoint at each. Not to be changed."""
    folder = tmp_path_factory.mktemp("two")
    places = {"data_dir": str(data_dir), "out_dir": str(folder / "out")}
    numbers = {"max_steps": "2", "checkpoint_interval": "1", "eval_interval": "1"}
    succeed("train.py", write_config(folder / "config.py", **places, **numbers))
    return folder / "out"


@pytest.fixture(scope="module")
def published(two: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple]:
    """A publisher, and what its Hub holds after the first publication."""
    with publisher(XET, two, tmp_path_factory.mktemp("published")) as p:
        code, printed = p.publish()
        assert code == 0, printed
        p.first_requests = list(p.hub.requests)
        yield p, dict(p.hub.repos)


@pytest.fixture
def complete(published: tuple[Publisher, dict]) -> Iterator[Publisher]:
    """A publisher whose repo is complete."""
    p, repos = published
    p.forget(repos)
    yield p
    p.hub.meanwhile = lambda request: None


@pytest.fixture(params=["xet", pytest.param("no xet", marks=pytest.mark.slow)])
def empty(request: pytest.FixtureRequest, two: Path, tmp_path: Path) -> Iterator[Publisher]:
    """A publisher whose Hub has no repo."""
    if request.param == "no xet":
        with publisher(NO_XET, two, tmp_path) as p:
            yield p
    else:
        p, _ = request.getfixturevalue("published")
        p.forget()
        yield p
        p.hub.refused = lambda request: False


def trees(hub: Hub, name: str = REPO) -> dict[str, dict[str, bytes]]:
    """The files of each branch."""
    repo = hub.repos["models", name]
    last = {branch: repo.history(branch)[0].tree for branch in repo.branches}
    return {
        branch: {path: data for path, (data, _) in tree.items() if path != ".gitattributes"}
        for branch, tree in last.items()
    }


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def commits(hub: Hub) -> int:
    return sum(len(repo.commits) for repo in hub.repos.values())


def test_a_series_is_published_loads_and_is_not_sent_again(empty: Publisher) -> None:
    hub, exports = empty.hub, empty.out_dir / "hf"
    code, printed = empty.publish()
    assert code == 0, printed
    assert "0 of 3 revisions are there already" in printed
    assert "hf_good" not in printed

    repo = hub.repos["models", REPO]
    assert list(repo.branches) == ["main", "checkpoint-1", "checkpoint-2"]
    for branch in repo.branches:
        last, first = repo.history(branch)  # one commit on the repo's first, no more
        assert first.title == "initial commit"
        title = r"Step \d, validation loss \d+\.\d{4}, checkpoint sha256 [0-9a-f]{64}"
        assert re.fullmatch(title, last.title)
    files = trees(hub)
    for branch in ("checkpoint-1", "checkpoint-2"):
        assert files[branch] == content(exports / branch)
    own = {name: files["main"].pop(name) for name in ("README.md", "training/log.jsonl")}
    del files["checkpoint-2"]["README.md"]
    assert files["main"] == files["checkpoint-2"]
    assert own["training/log.jsonl"] == (empty.out_dir / "log.jsonl").read_bytes()
    assert b"- [training/log.jsonl](training/log.jsonl)" in own["README.md"]
    order = [r for r in hub.requests if "/commit/" in r]
    assert order[-1].endswith("/main"), "main is filled last"

    before, made = commits(hub), len(hub.requests)
    assert "3 of 3 revisions are there already" in empty.publish().output
    assert commits(hub) == before
    assert len(hub.requests[made:]) <= 3 + 2, "one for each revision"

    snippet = runs_verbatim(exports / "checkpoint-1" / "README.md", hub)
    assert f'"{REPO}", "checkpoint-1"' in snippet


def runs_verbatim(card: Path, hub: Hub) -> str:
    """Run the Python code of a card, which must work and be quiet; the code."""
    (snippet,) = re.findall(r"```python\n(.*?)```", card.read_text(encoding="utf-8"), re.DOTALL)
    done = subprocess.run(
        [sys.executable, "-c", snippet],
        env=os.environ | environment(hub),
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.startswith("He clean")
    assert done.stderr == ""
    return snippet


def survives(p: Publisher, fault: Fault, undisturbed: dict) -> int:
    """Publish with a fault, and again, and compare; the exit code of the first time."""
    p.forget()
    kind, at = fault.kind, fault.at
    code, printed = p.publish(fault=fault)
    where = f"{kind} at request {at} ({fault.request})"
    assert fault.request, where
    goes_on = not kind.startswith("kill")
    assert (code == 0) == goes_on, where + printed
    if goes_on:
        assert p.hub.state() == undisturbed, where
    made = commits(p.hub)
    again, printed = p.publish()
    assert again == 0, where + printed
    assert p.hub.state() == undisturbed, where
    if goes_on:
        assert commits(p.hub) == made, where
    return code


@pytest.mark.parametrize("kind", ["lost answer", "kill after"])
def test_a_publication_survives_a_fault_at_a_commit(kind: str, complete: Publisher) -> None:
    requests, undisturbed = list(complete.first_requests), complete.hub.state()
    at = next(i for i, request in enumerate(requests) if "/commit/checkpoint-2" in request)
    survives(complete, Fault(at, kind), undisturbed)


@pytest.mark.slow
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("transfer", [XET, NO_XET], ids=["xet", "no xet"])
def test_a_publication_survives_every_fault_at_every_kind_of_request(
    transfer: dict[str, str], two: Path, tmp_path: Path
) -> None:
    """Of several requests of a kind, the faults take turns: the first, the second, ..."""
    with publisher(transfer, two, tmp_path) as p:
        assert p.publish().code == 0
        undisturbed, places = p.hub.state(), defaultdict(list)
        for at, request in enumerate(p.hub.requests):
            kind_of_request = re.sub(r"[0-9a-f]{40,}(/.*)?|checkpoint-.|main", "X", request)
            places[kind_of_request].append(at)
        for (request, at), (turn, kind) in itertools.product(places.items(), enumerate(KINDS)):
            if kind == "silent" and re.search("/cas/|xet-write-token", request):
                continue  # hf_xet asks, which has time-outs of its own, of minutes
            fault = Fault(at[turn % len(at)], kind)
            end = "run again" if survives(p, fault, undisturbed) else "went on"
            print("|", fault.request, "|", kind, "|", end, "|", flush=True)


@pytest.fixture
def refused(complete: Publisher) -> Callable[..., str]:
    """Publishes with a mistake; the one line of error. Nothing on the Hub may have changed."""

    def publish(*arguments: str, **options: str) -> str:
        before = complete.hub.state()
        code, printed = complete.publish(*arguments, **options)
        assert code == 1
        assert complete.hub.state() == before
        assert "Traceback" not in printed, printed
        assert not any(token in printed for token in ("hf_good", WRONG_TOKEN))
        (line,) = [line for line in printed.splitlines() if line.startswith("error: ")]
        return line

    return publish


def test_tables_and_pictures_of_the_evaluation_are_published_with_main(
    complete: Publisher,
) -> None:
    folder = complete.out_dir / "evaluation"
    names = ("perplexity.csv", "perplexity.png", "on_mine/pairs.csv", "sentences.csv")
    try:
        for name in names:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(name)
        assert "2 of 3 revisions are there already" in complete.publish().output
        files = trees(complete.hub)
        assert not any("/" in name for name in files["checkpoint-2"]), "an export, nothing else"
        assert sorted(name for name in files["main"] if "/" in name) == [
            "evaluation/on_mine/pairs.csv",
            "evaluation/perplexity.csv",
            "evaluation/perplexity.png",
            "training/log.jsonl",
        ], "no text of the corpus"
        assert files["main"]["evaluation/perplexity.csv"] == b"perplexity.csv"
        card = files["main"]["README.md"].decode()
        assert "![perplexity](evaluation/perplexity.png)" in card
        assert "- [evaluation/perplexity.csv](evaluation/perplexity.csv)" in card
        assert "3 of 3 revisions are there already" in complete.publish().output
        (folder / "perplexity.csv").write_text("evaluated again")
        assert "2 of 3 revisions are there already" in complete.publish().output
        assert trees(complete.hub)["main"]["evaluation/perplexity.csv"] == b"evaluated again"
    finally:
        shutil.rmtree(folder)


def test_a_checkpoint_by_words_has_the_branch_of_babylms_tools_too(
    complete: Publisher, data_dir: Path, tmp_path: Path
) -> None:
    data = shutil.copytree(data_dir, tmp_path / "data")
    meta = json.loads((data / "meta.json").read_text())
    meta["splits"]["train"]["words"] = meta["splits"]["train"]["tokens"] * 10**6 // 256
    (data / "meta.json").write_text(json.dumps(meta))  # now a step has a million words
    places = {"data_dir": str(data), "out_dir": str(tmp_path / "out")}
    numbers = {"max_steps": "2", "checkpoint_interval": "2", "eval_interval": "2"}
    config = write_config(tmp_path / "config.py", **places, **numbers)
    succeed("train.py", config, "--extra_checkpoints=babylm")
    code, printed = complete.publish(f"--out_dir={tmp_path}/out", repo="ada/words")
    assert code == 0, printed
    assert "0 of 5 revisions are there already" in printed
    files = trees(complete.hub, "ada/words")
    assert list(files)[1:] == ["checkpoint-1", "checkpoint-2", "chck_1M", "chck_2M"]
    assert files["chck_1M"] == files["checkpoint-1"]
    assert files["chck_2M"] == files["checkpoint-2"]
    assert files["main"]["model.safetensors"] == files["chck_2M"]["model.safetensors"]
    assert files["chck_1M"] != files["chck_2M"]


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"HF_TOKEN": WRONG_TOKEN}, "the Hub does not accept the token"),
        ({"HF_TOKEN": "hf_reader"}, "has no write permission"),
        ({"HF_TOKEN": "", "HF_TOKEN_PATH": "/nowhere"}, "publishing needs a Hub token"),
        ({"HF_TOKEN": "hf_go\x07od"}, "contains invalid characters"),
        (
            {"repo": "bob/impossible"},
            "belongs to bob, but the token belongs to ada, who may write to: ada, lab. Type: "
            "--push_to_hub=ada/impossible",
        ),
        ({"repo": "impossible"}, "is not the name of a repo. Expected: USER/NAME"),
        ({"repo": "ada/--"}, "is not the name of a repo. Expected: USER/NAME"),
    ],
)
def test_a_token_or_a_name_that_is_not_ours_is_told(
    options: dict[str, str], error: str, refused: Callable[..., str]
) -> None:
    assert error in refused(**options)


def test_a_repo_that_may_be_read_only_is_told(
    complete: Publisher, refused: Callable[..., str]
) -> None:
    complete.hub.add_model("lab/impossible")
    error = refused(repo="lab/impossible")
    assert "does not let this token write there" in error
    assert "not finished: checkpoint-1, checkpoint-2, main" in error


def test_a_licence_that_the_hub_does_not_know_is_told_before_anything_is_made(
    refused: Callable[..., str],
) -> None:
    error = refused("--model_license=of-nobody", repo="ada/licensed")
    assert '"license" must be one of [mit, ...]. Is --model_license= one of' in error


def test_a_refusal_within_an_upload_is_not_waited_for(empty: Publisher) -> None:
    def is_upload(request: str) -> bool:
        return "xet-write-token" in request or "objects/batch" in request

    empty.hub.refused = is_upload
    code, printed = empty.publish()
    assert code == 1
    error = printed.splitlines()[-1]
    assert "the Hub does not let this token write there" in error
    assert error.endswith("not finished: checkpoint-1, checkpoint-2, main.")
    assert "trying again" not in printed


def test_an_upload_that_the_hub_does_not_hold_is_noticed(complete: Publisher) -> None:
    complete.forget()

    def lose_a_file(request: str) -> None:
        if request.endswith("/tree/checkpoint-1") and ("models", REPO) in complete.hub.repos:
            for commit in complete.hub.repos["models", REPO].commits.values():
                commit.tree.pop("merges.txt", None)

    complete.hub.meanwhile = lose_a_file
    code, printed = complete.publish()
    assert code == 1
    error = "checkpoint-1 differs from the local files after the upload: merges.txt."
    assert error in printed.splitlines()[-1]


def test_a_branch_changed_by_hand_is_left_alone_unless_told_otherwise(
    complete: Publisher, refused: Callable[..., str]
) -> None:
    repo, before = complete.hub.repos["models", REPO], trees(complete.hub)
    tree = repo.history("checkpoint-2")[0].tree
    repo.commit("checkpoint-2", "Update README.md", tree | {"README.md": (b"mine", False)})
    error = refused()
    assert "the branch checkpoint-2 of ada/impossible was changed by hand" in error
    assert "'Update README.md'" in error
    assert complete.publish("--overwrite").code == 0
    assert trees(complete.hub) == before
    assert len(repo.history("main")) == 2, "nothing was committed there"


def test_a_branch_changed_by_hand_during_the_upload_is_left_alone(complete: Publisher) -> None:
    repo = complete.hub.repos["models", REPO]
    repo.commit("checkpoint-2", repo.history("checkpoint-2")[0].title, {})  # to be filled again

    def somebody(request: str) -> None:
        if request.endswith("/preupload/checkpoint-2") and len(repo.history("checkpoint-2")) == 3:
            repo.commit("checkpoint-2", "Add notes", {"notes.txt": (b"mine", False)})

    complete.hub.meanwhile = somebody
    code, printed = complete.publish()
    assert code == 1
    assert "checkpoint-2 of ada/impossible was changed by hand" in printed
    assert repo.history("checkpoint-2")[0].tree == {"notes.txt": (b"mine", False)}


def test_what_a_repo_began_with_is_asked_about_and_not_inherited(
    complete: Publisher, refused: Callable[..., str]
) -> None:
    """A repo made on the Hub's page, with a README in its first commit."""
    repo = complete.hub.repos["models", "ada/made"] = Repo()
    first = repo.commit("main", "initial commit", {"README.md": (b"mine", False)})
    assert "the branch main of ada/made was changed by hand" in refused(repo="ada/made")
    repo.branches["checkpoint-1"] = first  # as a kill after its making leaves it
    assert "the branch main of ada/made" in refused(repo="ada/made")
    assert complete.publish("--overwrite", repo="ada/made").code == 0
    assert trees(complete.hub, "ada/made")["checkpoint-1"]["README.md"] != b"mine"


def test_the_series_of_another_run_is_left_alone(
    complete: Publisher, refused: Callable[..., str]
) -> None:
    repo = complete.hub.repos["models", REPO]
    tree = repo.history("main")[0].tree
    title = f"Step 2, validation loss 3.0000, checkpoint sha256 {'0' * 64}"
    repo.commit("main", title, tree | {"model.safetensors": (b"others", True)})
    assert f"the branch main of {REPO} holds another checkpoint ('{title}'" in refused()


@pytest.mark.parametrize(
    ("title", "name"), [(None, "stray.bin"), ("3.0000, checkpoint sha256 " + "0" * 64, "README.md")]
)
def test_a_file_too_many_is_removed_and_one_of_the_same_weights_replaced(
    title: str | None, name: str, complete: Publisher
) -> None:
    """The second as after a repair: the checkpoint's bytes differ, for it says when it was made."""
    repo = complete.hub.repos["models", REPO]
    last = repo.history("main")[0]
    repo.commit("main", title or last.title, last.tree | {name: (b"of that session", False)})
    assert complete.publish().code == 0
    assert repo.history("main")[0].tree == last.tree


def test_a_repo_that_is_public_is_not_taken_for_a_private_one(
    complete: Publisher, refused: Callable[..., str]
) -> None:
    assert "ada/impossible is public, but the settings say private = True" in refused("--private")
    assert complete.publish("--private", repo="ada/other").code == 0
    assert complete.hub.repos["models", "ada/other"].private


def test_a_damaged_export_is_made_again_before_it_is_published(complete: Publisher) -> None:
    path = complete.out_dir / "hf" / "checkpoint-1" / "model.safetensors"
    whole, before = path.read_bytes(), complete.hub.state()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    code, printed = complete.publish()
    assert code == 0
    assert "exporting checkpoint-1 again: its checkpoint or its files have changed" in printed
    assert path.read_bytes() == whole
    assert complete.hub.state() == before


def test_a_dry_run_changes_nothing(complete: Publisher) -> None:
    hub = complete.hub
    del hub.repos["models", REPO].branches["checkpoint-1"]
    for repo, pending in (
        (REPO, f"to {REPO}: checkpoint-1\n"),
        ("ada/new", "to ada/new (a new public repo): checkpoint-1, checkpoint-2, main\n"),
    ):
        before, asked = hub.state(), len(hub.requests)
        code, printed = complete.publish("--dry_run", repo=repo)
        assert code == 0
        assert f"dry run: would upload {pending}" in printed
        assert hub.state() == before
        made = {r for r in hub.requests[asked:] if not r.startswith(("GET", "HEAD"))}
        assert made == {"POST /api/validate-yaml"}


def test_a_run_that_is_not_finished_is_not_published(two: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(two, tmp_path / "out")
    for path in copy.glob("checkpoint-*.pt"):
        content = torch.load(path, weights_only=True)
        content["settings"] |= {"max_steps": 9}
        torch.save(content, path)
    error = fail("convert_to_hf.py", f"--out_dir={copy}", f"--push_to_hub={REPO}")
    assert "checkpoint-2.pt is the last checkpoint, and the run has 9 steps" in error


def test_the_hub_is_asked_again_when_it_says(complete: Publisher) -> None:
    soon = datetime.now(UTC) + timedelta(seconds=60)
    assert asking.retry_after(answer(429, {"Retry-After": format_datetime(soon, True)})) > 50
    assert asking.retry_after(answer(429, {"Retry-After": "when it rains"})) is None
    for headers, said in (
        ({"Retry-After": "2"}, "trying again in 2 s"),
        ({"RateLimit": '"api";r=0;t=2'}, "trying again in 3 s"),
    ):
        code, printed = complete.publish(fault=Fault(0, "429", headers=headers))
        assert code == 0
        assert said in printed


def answer(status: int, headers: dict[str, str]) -> HfHubHTTPError:
    request = httpx.Request("GET", "http://127.0.0.1")
    return HfHubHTTPError("no", response=httpx.Response(status, headers=headers, request=request))


@pytest.mark.parametrize(
    "ask",
    [
        lambda api: api.whoami(),
        lambda api: api.model_info(REPO),
        lambda api: list(api.list_repo_tree(REPO)),
        lambda api: api.list_repo_commits(REPO),
    ],
    ids=["whoami", "info", "tree", "commits"],
)
def test_a_hub_that_is_silent_is_asked_again_and_given_up(
    ask: Callable[[HfApi], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asking, "WAITS", (0.01, 0.02))
    monkeypatch.setattr(asking, "TIMEOUT", 0.1)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)  # the library's own pauses
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        api = HfApi(endpoint=url, token="hf_good")
        with pytest.raises(httpx.ReadTimeout):
            asking.patiently("a call", lambda: ask(api))
        silent.setblocking(False)
        for _ in range(3):
            silent.accept()


@pytest.fixture
def models() -> Iterator[Hub]:
    """A Hub with two models of ada's."""
    with serve(Hub()) as served:
        for name in ("ada/one", "ada/two"):
            served.add_model(name)
        yield served


def of_ada(hub: Hub) -> HfApi:
    return HfApi(endpoint=hub.url, token="hf_good")  # ada's


@pytest.mark.parametrize("fault", ["none", "503", "reset", "lost answer"])
def test_a_collection_lists_all_repos_once_and_grows(fault: str, models: Hub) -> None:
    if fault != "none":
        models.fault = Fault(2, fault)
    address = publish.gather(of_ada(models), "ada", "Mine", ["ada/one"], private=True)
    publish.gather(of_ada(models), "ada", "Mine", ["ada/one", "ada/two"], private=True)
    ((slug, collection),) = models.collections.items()
    assert address == f"{models.url}/collections/{slug}"
    assert collection.items == ["ada/one", "ada/two"]
    assert (collection.title, collection.private) == ("Mine", True)


def test_what_the_hub_refuses_is_told(models: Hub) -> None:
    with pytest.raises(UserError, match="does not let this token write"):
        publish.gather(of_ada(models), "bob", "Mine", ["ada/one"], private=False)
    with pytest.raises(UserError, match=r"not complete: .* The repos are published"):
        publish.gather(of_ada(models), "ada", "Mine", ["ada/gone"], private=False)
