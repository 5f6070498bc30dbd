"""A Hub on 127.0.0.1, for tests: what huggingface_hub and hf_xet ask of the real one.

Repos of models and datasets with branches, commits and files; LFS uploads and, under /cas, the
store that Xet uploads to. It can fail at any request, in all the ways of `Fault`.
"""

import base64
import contextlib
import hashlib
import http.server
import json
import os
import re
import signal
import socket
import struct
import threading
import unittest.mock
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from xet import Xet

KINDS = ("503", "429", "reset", "silent", "lost answer", "kill", "kill after")


@dataclass
class Fault:
    """What goes wrong at the n-th request from now (from 0)."""

    at: int
    # 503, 429, the connection reset, never an answer, the connection reset after the request was
    # carried out, the client killed, the same after the request was carried out
    kind: str
    pid: int = 0  # of the client, for the kinds that kill it
    # of a 429
    headers: dict[str, str] = field(default_factory=lambda: {"Retry-After": "0"})
    request: str = ""  # that failed

    def next(self, request: str) -> str:
        """The kind of failure of a request, or nothing."""
        self.at -= 1
        if self.at != -1:
            return ""
        self.request = request
        return self.kind


@dataclass
class Commit:
    parent: str | None
    title: str
    tree: dict[str, tuple[bytes, bool]]  # path -> content, whether it is a large file

    @property
    def id(self) -> str:
        tree = {path: (sha256(data), large) for path, (data, large) in sorted(self.tree.items())}
        return hashlib.sha1(json.dumps([self.parent, self.title, tree]).encode()).hexdigest()


@dataclass
class Repo:
    private: bool = False
    commits: dict[str, Commit] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)

    def commit(self, branch: str, title: str, tree: dict[str, tuple[bytes, bool]]) -> str:
        commit = Commit(self.branches.get(branch), title, tree)
        self.commits[commit.id] = commit
        self.branches[branch] = commit.id
        return commit.id

    def find(self, revision: str) -> Commit | None:
        return self.commits.get(self.branches.get(revision, revision))

    def history(self, branch: str) -> list[Commit]:
        """The commits of a branch, the last one first."""
        commits, place = [], self.branches.get(branch, branch)
        while place is not None:
            commits.append(self.commits[place])
            place = commits[-1].parent
        return commits


@dataclass
class Collection:
    title: str
    private: bool
    items: list[str] = field(default_factory=list)  # names of models


class Hub:
    """The state of the Hub, and the requests that were made to it."""

    def __init__(self) -> None:
        self.repos: dict[tuple[str, str], Repo] = {}  # by (models or datasets, USER/NAME)
        self.collections: dict[str, Collection] = {}  # by slug
        self.tokens = {"hf_good": "ada", "hf_other": "bob", "hf_reader": "eve"}  # token -> user
        self.large: dict[str, bytes] = {}  # SHA-256 -> content, as uploaded
        self.xet = Xet(self.large)
        self.requests: list[str] = []
        self.fault: Fault | None = None
        self.cut = ("", 0)  # half is sent of a file whose path ends so, as many times
        self.resumed: list[str] = []  # requests for the rest of a file
        self.sent: dict[str, int] = {}  # bytes of answers to GET, by path
        self.meanwhile: Callable[[str], None] = lambda request: None  # somebody else's doing
        self.refused: Callable[[str], bool] = lambda request: False  # what nobody may do
        self.url = ""
        self.storage_url = ""  # of another origin, which large files are downloaded from
        self.lock = threading.Lock()

    def empty(self) -> None:
        """Forget all repos, uploads and requests."""
        for container in (self.repos, self.large, self.xet.xorbs, self.requests, self.collections):
            container.clear()
        self.fault = None

    def state(self) -> dict:
        """All that was published: repo -> branch -> commits, each with its files."""
        return {
            name: {branch: repo.history(branch) for branch in repo.branches}
            for name, repo in self.repos.items()
        }

    def add_dataset(self, name: str, commit: str, files: dict[str, bytes]) -> None:
        tree = {path: (data, False) for path, data in files.items()}
        self.repos["datasets", name] = Repo(commits={commit: Commit(None, "files", tree)})

    def add_model(self, name: str, private: bool = False) -> Repo:
        repo = Repo(private)
        repo.commit("main", "initial commit", {".gitattributes": (b"*.safetensors\n", False)})
        self.repos["models", name] = repo
        return repo


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def blob_id(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


@contextmanager
def serve(hub: Hub) -> Iterator[Hub]:
    """Serve a Hub on two free ports while the block runs."""
    servers = [http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Handler) for _ in range(2)]
    hub.url, hub.storage_url = (f"http://127.0.0.1:{server.server_port}" for server in servers)
    for server in servers:
        server.hub = hub
        threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield hub
    finally:
        for server in servers:
            server.shutdown()
            server.server_close()


@dataclass
class Answer:
    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)


def as_json(value: Any, status: int = 200) -> Answer:
    return Answer(status, json.dumps(value).encode(), {"Content-Type": "application/json"})


def missing(what: str) -> Answer:
    return Answer(404, b"{}", {"X-Error-Code": f"{what}NotFound"})


def forbidden() -> Answer:
    headers = {"X-Error-Message": "you do not have the rights for this"}
    return Answer(403, b"{}", headers)


@dataclass
class Request:
    """A request as it is understood: who asks for what."""

    hub: Hub
    user: str | None
    method: str
    path: list[str]
    body: bytes
    query: str = ""

    @property
    def value(self) -> Any:
        return json.loads(self.body)

    def answer(self) -> Answer:
        hub = self.hub
        match self.path:
            case ["cas", *rest]:
                return Answer(*hub.xet.answer(self.method, rest, self.body))
            case ["lfs", oid] if self.method == "PUT":
                hub.large[oid] = self.body
                return Answer()
            case ["lfs", oid]:
                return Answer(body=hub.large[oid])
            case [*_, "info", "lfs", "objects", "batch"]:
                return self.lfs_batch(self.value)
            case ["api", "whoami-v2"]:
                auth = {"accessToken": {"role": "read" if self.user == "eve" else "write"}}
                return as_json({"name": self.user, "orgs": [{"name": "lab"}], "auth": auth})
            case ["api", "collections", *slug]:
                return self.collection("/".join(slug[:2]))
            case ["api", "repos", "create"]:
                return self.create(self.value)
            case ["api", "validate-yaml"]:
                if "license: of-nobody" in self.value["content"]:
                    return Answer(400, b'- Error: "license" must be one of [mit, ...]')
                return as_json({"errors": [], "warnings": []})
            case ["api", kind, user, name, *rest] | [("datasets" as kind), user, name, *rest]:
                return self.of_repo(kind, f"{user}/{name}", rest)
            case [user, name, *rest]:
                return self.of_repo("models", f"{user}/{name}", rest)
        return Answer(501, b"not understood by this Hub")

    def of_repo(self, kind: str, name: str, rest: list[str]) -> Answer:
        repo, owner = self.hub.repos.get((kind, name)), name.split("/")[0]
        if repo is None or (repo.private and self.user != owner):
            return missing("Repo")
        if self.method not in ("GET", "HEAD") and self.user != owner:
            return forbidden()
        what, revision = (*rest, "", "")[:2]
        commit = repo.find(revision or "main")
        if commit is None and what in ("", "revision", "commits", "tree", "resolve"):
            return missing("Revision")
        match what:
            case "" | "revision":
                sha = repo.branches.get(revision or "main", revision)
                files = [{"rfilename": path} for path in commit.tree]
                return as_json({"id": name, "sha": sha, "private": repo.private, "siblings": files})
            case "refs":
                names = {"ref": "refs/heads/{0}", "name": "{0}", "targetCommit": "{1}"}
                branches = [
                    {key: text.format(*branch) for key, text in names.items()}
                    for branch in repo.branches.items()
                ]
                return as_json({"branches": branches, "converts": [], "tags": []})
            case "commits":
                more = {"message": "", "authors": [], "date": "2026-01-01T00:00:00.000Z"}
                history = repo.history(revision)
                return as_json([{"id": c.id, "title": c.title, **more} for c in history])
            case "branch" if revision in repo.branches:
                return as_json({"error": "exists"}, 409)
            case "branch":
                repo.branches[revision] = self.value.get("startingPoint", repo.branches["main"])
                return as_json({})
            case "tree":
                return as_json(_entries(commit, "/".join(rest[2:]), "recursive=true" in self.query))
            case "paths-info":
                asked = {path: commit.tree.get(path) for path in self.paths()}
                return as_json([_entry(path, *file) for path, file in asked.items() if file])
            case "preupload":
                return as_json({"files": [_mode(file, commit) for file in self.value["files"]]})
            case "xet-write-token":
                token = {"exp": 2**40, "accessToken": "token of the store"}
                return as_json({"casUrl": f"{self.hub.url}/cas", **token})
            case "commit":
                return self.commit(repo, name, revision)
            case "resolve":
                return self.resolve(repo, commit, revision, "/".join(rest[2:]))
        return Answer(501, b"not understood by this Hub")

    def paths(self) -> list[str]:
        """The paths of a form that asks about them."""
        return parse_qs(self.body.decode()).get("paths", [])

    def create(self, wanted: dict) -> Answer:
        name = f"{wanted['organization'] or self.user}/{wanted['name']}"
        if name.split("/")[0] not in (self.user, "lab"):
            return forbidden()
        status = 409 if ("models", name) in self.hub.repos else 200
        if status == 200:
            self.hub.add_model(name, private=wanted.get("visibility") == "private")
        return as_json({"url": f"{self.hub.url}/{name}"}, status)

    def collection(self, slug: str) -> Answer:
        hub, status = self.hub, 200
        if self.method == "POST" and not slug:
            wanted = self.value
            slug = f"{wanted['namespace']}/{wanted['title'].lower()}-{'0' * 24}"
            if wanted["namespace"] not in (self.user, "lab"):
                return forbidden()
            status = 409 if slug in hub.collections else 200
            hub.collections.setdefault(slug, Collection(wanted["title"], wanted["private"]))
        elif self.method == "POST":
            item = self.value["item"]
            if (f"{item['type']}s", item["id"]) not in hub.repos:
                return missing("Repo")
            if item["id"] in hub.collections[slug].items:
                return as_json({"error": "exists"}, 409)
            hub.collections[slug].items.append(item["id"])
        held = hub.collections[slug]
        items = [
            {"_id": str(i), "id": name, "type": "model", "position": i}
            for i, name in enumerate(held.items)
        ]
        value = {"slug": slug, "title": held.title, "private": held.private, "items": items}
        value |= {"owner": {"name": self.user}, "lastUpdated": "2026-01-01T00:00:00.000Z"}
        return as_json(value | {"position": 0, "theme": "green", "upvotes": 0}, status)

    def commit(self, repo: Repo, name: str, branch: str) -> Answer:
        header, *changes = map(json.loads, self.body.splitlines())
        if header["value"].get("parentCommit") not in (None, repo.branches[branch]):
            return as_json({"error": "the branch has moved"}, 412)
        tree = dict(repo.find(branch).tree)
        for change in changes:
            file = change["value"]
            if change["key"] == "file":
                tree[file["path"]] = (base64.b64decode(file["content"]), False)
            elif change["key"] == "deletedFile":
                del tree[file["path"]]
            elif file["oid"] not in self.hub.large:
                return as_json({"error": f"{file['path']} was not uploaded"}, 400)
            else:
                tree[file["path"]] = (self.hub.large[file["oid"]], True)
        commit = repo.commit(branch, header["value"]["summary"], tree)
        return as_json({"commitOid": commit, "commitUrl": f"{self.hub.url}/{name}/commit/{commit}"})

    def lfs_batch(self, wanted: dict) -> Answer:
        objects = []
        for item in wanted["objects"]:
            if item["oid"] not in self.hub.large:
                href = f"{self.hub.url}/lfs/{item['oid']}"
                item = item | {"actions": {"upload": {"href": href}}}
            objects.append(item)
        return as_json({"transfer": "basic", "objects": objects})

    def resolve(self, repo: Repo, commit: Commit, revision: str, path: str) -> Answer:
        if path not in commit.tree:
            return missing("Entry")
        data, large = commit.tree[path]
        headers = {"X-Repo-Commit": repo.branches.get(revision, revision)}
        if not large:
            return Answer(200, data, headers | {"ETag": f'"{blob_id(data)}"'})
        headers |= {"X-Linked-Etag": f'"{sha256(data)}"', "X-Linked-Size": str(len(data))}
        self.hub.large.setdefault(sha256(data), data)
        place = f"{self.hub.storage_url}/lfs/{sha256(data)}"
        return Answer(302, b"", headers | {"ETag": '"of the redirect"', "Location": place})


def _entries(commit: Commit, folder: str, is_recursive: bool) -> list[dict]:
    """The files in a folder, and its folders or, if recursive, the files in these."""
    start = f"{folder}/" if folder else ""
    inside = {path: file for path, file in commit.tree.items() if path.startswith(start)}
    entries = [
        _entry(path, *file)
        for path, file in inside.items()
        if is_recursive or "/" not in path.removeprefix(start)
    ]
    names = {path.removeprefix(start).split("/")[0] for path in inside if "/" in path[len(start) :]}
    for name in () if is_recursive else sorted(names):
        entries.append({"type": "directory", "path": start + name, "oid": "0" * 40, "size": 0})
    return entries


def _entry(path: str, data: bytes, large: bool) -> dict:
    entry = {"type": "file", "path": path, "oid": blob_id(data), "size": len(data)}
    lfs = {"lfs": {"oid": sha256(data), "size": len(data), "pointerSize": 134}}
    return entry | (lfs if large else {})


def _mode(file: dict, commit: Commit | None) -> dict:
    large = file["path"].endswith(".safetensors")
    mode = {"path": file["path"], "uploadMode": "lfs" if large else "regular"}
    if commit is not None and file["path"] in commit.tree:
        data, is_large = commit.tree[file["path"]]
        mode["oid"] = sha256(data) if is_large else blob_id(data)
    return mode | {"shouldIgnore": False}


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # small answers at once

    def handle_any(self) -> None:
        hub, body = self.server.hub, self.read_body()
        user = hub.tokens.get(self.headers.get("Authorization", "").removeprefix("Bearer "))
        with hub.lock:
            request = f"{self.command} {unquote(urlsplit(self.path).path)}"
            hub.requests.append(request)
            hub.meanwhile(request)
            kind = hub.fault.next(request) if hub.fault else ""
            if hub.refused(request):
                answer = forbidden()
            elif kind in ("", "lost answer", "kill after"):
                answer = self.answer_for(user, body)
        if kind.startswith("kill"):
            os.kill(hub.fault.pid, signal.SIGKILL)
        if kind in ("reset", "lost answer") or kind.startswith("kill"):
            self.reset()
        elif kind == "silent":
            self.connection.recv(1)  # until the client has enough
            self.close_connection = True
        elif kind == "503":
            self.send(Answer(503, b"<html>in trouble</html>"))
        elif kind == "429":
            self.send(Answer(429, b"{}", hub.fault.headers))
        elif hub.cut[1] and request.startswith("GET") and request.endswith(hub.cut[0]):
            hub.cut = (hub.cut[0], hub.cut[1] - 1)
            self.send(answer, is_cut=True)
        else:
            self.send(answer)

    do_GET = do_HEAD = do_POST = do_PUT = handle_any  # noqa: N815

    def answer_for(self, user: str | None, body: bytes) -> Answer:
        sent = self.headers.get("Authorization")
        of_store = self.path.startswith(("/cas", "/lfs"))
        if sent and user is None and not of_store:
            return Answer(401, b"{}", {"X-Error-Message": "Invalid credentials"})
        url = urlsplit(self.path)
        path = [unquote(part) for part in url.path.strip("/").split("/")]
        query = url.query.lower()
        return Request(self.server.hub, user, self.command, path, body, query).answer()

    def read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        data = b""
        while size := int(self.rfile.readline(), 16):
            data += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return data

    def send(self, answer: Answer, is_cut: bool = False) -> None:
        if match := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            start, size = int(match[1]), len(answer.body)
            end = min(int(match[2]) + 1, size) if match[2] else size
            if not match[2]:
                self.server.hub.resumed.append(unquote(self.path))
            headers = answer.headers | {"Content-Range": f"bytes {start}-{end - 1}/{size}"}
            answer = Answer(206, answer.body[start:end], headers)
        if self.command == "GET":
            sent, path = self.server.hub.sent, unquote(urlsplit(self.path).path)
            sent[path] = sent.get(path, 0) + len(answer.body)
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(answer.body)))
        self.end_headers()
        if is_cut:
            self.wfile.write(answer.body[: len(answer.body) // 2])
            self.close_connection = True
        elif self.command != "HEAD":
            self.wfile.write(answer.body)

    def reset(self) -> None:
        """Close the connection without a word."""
        no_linger = struct.pack("ii", 1, 0)
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, no_linger)
        self.close_connection = True
        self.rfile.close()
        self.wfile.close()
        self.connection.close()
        raise ConnectionResetError  # nothing more is said on it

    def handle(self) -> None:
        with contextlib.suppress(OSError):  # the client has gone
            super().handle()

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def asked_here(hub: Hub, cache: Path) -> Iterator[None]:
    """Let huggingface_hub within this process ask a Hub, with a cache of its own."""
    import datasets
    from huggingface_hub import constants, hf_api

    of_datasets = {"HF_ENDPOINT": hub.url, "HF_DATASETS_CACHE": cache / "datasets"}
    values = {
        "ENDPOINT": hub.url,
        "HUGGINGFACE_CO_URL_TEMPLATE": f"{hub.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}",
        "HF_HUB_CACHE": str(cache),
    }
    patch = unittest.mock.patch
    with (
        patch.multiple(constants, **values),
        patch.object(hf_api.api, "endpoint", hub.url),
        patch.multiple(datasets.config, **of_datasets),
    ):
        yield
