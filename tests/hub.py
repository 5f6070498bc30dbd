"""A Hub on 127.0.0.1, for tests: what huggingface_hub asks for when it fetches a dataset."""

import hashlib
import http.server
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import unquote, urlsplit


class Hub:
    """Files of one dataset at one commit, and the requests that were made for them."""

    def __init__(self, repo: str, commit: str, files: dict[str, bytes]) -> None:
        self.repo, self.commit, self.files = repo, commit, files
        self.requests: list[str] = []
        self.url = ""

    def tree(self) -> list[dict]:
        return [
            {"type": "file", "path": path, "oid": _blob_id(data), "size": len(data)}
            for path, data in self.files.items()
        ]


@contextmanager
def serve(hub: Hub) -> Iterator[Hub]:
    """Serve a Hub on a free port while the block runs."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub))
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


def _blob_id(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def _handler(hub: Hub) -> type[http.server.BaseHTTPRequestHandler]:
    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self._answer()

        def do_GET(self) -> None:
            self._answer()

        def _answer(self) -> None:
            path = unquote(urlsplit(self.path).path)
            hub.requests.append(f"{self.command} {path}")
            resolve = f"/datasets/{hub.repo}/resolve/{hub.commit}/"
            if path == f"/api/datasets/{hub.repo}/revision/{hub.commit}":
                info = {"id": hub.repo, "sha": hub.commit, "siblings": []}
                self._send(200, json.dumps(info).encode(), "application/json")
            elif path == f"/api/datasets/{hub.repo}/tree/{hub.commit}":
                self._send(200, json.dumps(hub.tree()).encode(), "application/json")
            elif path.startswith(resolve) and path.removeprefix(resolve) in hub.files:
                data = hub.files[path.removeprefix(resolve)]
                self._send(200, data, "application/octet-stream", _blob_id(data))
            else:
                self._send(404, b"{}", "application/json")

        def _send(self, status: int, data: bytes, kind: str, etag: str = "") -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(data)))
            self.send_header("X-Repo-Commit", hub.commit)
            if status == 404:
                self.send_header("X-Error-Code", "EntryNotFound")
            if etag:
                self.send_header("ETag", f'"{etag}"')
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            pass

    return Handler
