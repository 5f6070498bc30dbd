"""Publish many times without importing the libraries anew each time.

A process of its own (this file, run as a script) reads a line of JSON for each publication
({"arguments", "environment", "output"}), forks a process that runs convert_to_hf.py, prints that
process's id, waits for a line, lets it go, and prints how it ended. The environment that libraries
read when they are imported is that of the first process.
"""

import copy
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from hub import Fault, Hub, serve

ROOT = Path(__file__).parent.parent
XET = {"HF_XET_XORB_COMPRESSION_POLICY": "none"}  # the test's store does not decompress
NO_XET = {"HF_HUB_DISABLE_XET": "1"}
REPO = "ada/impossible"


class Published(NamedTuple):
    code: int
    output: str


class Publisher:
    """Publishes again and again to one Hub, by default one copy of a run as REPO."""

    def __init__(self, hub: Hub, out_dir: Path, process: subprocess.Popen[str]) -> None:
        self.hub, self.out_dir, self.process = hub, out_dir, process
        self.cache = out_dir.parent / "cache"

    def publish(
        self, *arguments: str, repo: str = REPO, fault: Fault | None = None, **env: str
    ) -> Published:
        """Run the command once, with a fault at some request."""
        output = self.out_dir.parent / "output.txt"
        self._send(
            json.dumps(
                {
                    "arguments": [f"--out_dir={self.out_dir}", f"--push_to_hub={repo}", *arguments],
                    "environment": {"HF_XET_CACHE": str(self.cache), **env},
                    "output": str(output),
                }
            )
        )
        pid = int(self.process.stdout.readline())
        if fault is not None:
            fault.pid, self.hub.fault = pid, fault
        self._send("go")
        code = int(self.process.stdout.readline())
        self.hub.fault = None
        return Published(code, output.read_text(encoding="utf-8"))

    def _send(self, line: str) -> None:
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def forget(self, published: dict | None = None) -> None:
        """Put the Hub in an earlier state: that of `published`, or empty."""
        self.hub.empty()
        shutil.rmtree(self.cache, ignore_errors=True)
        self.hub.repos.update(copy.deepcopy(published or {}))


@contextmanager
def publisher(transfer: dict[str, str], run: Path, folder: Path) -> Iterator[Publisher]:
    """A publisher with a Hub of its own and a copy of a run in `folder`."""
    shutil.copytree(run, folder / "out")
    with serve(Hub()) as hub:
        process = subprocess.Popen(
            [sys.executable, __file__],
            cwd=ROOT,
            env=os.environ | environment(hub, **transfer),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            yield Publisher(hub, folder / "out", process)
        finally:
            process.stdin.close()
            process.wait(timeout=30)


def environment(hub: Hub, **more: str) -> dict[str, str]:
    """What a user of this Hub has in the environment, ada by name."""
    return {
        "HF_ENDPOINT": hub.url,
        "HF_TOKEN": "hf_good",
        "HF_HOME": tempfile.mkdtemp(dir=os.environ["HF_HOME"]),
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_ETAG_TIMEOUT": "2",
        "HF_HUB_DOWNLOAD_TIMEOUT": "2",
        "OMP_NUM_THREADS": "1",
        **more,
    }


def run_jobs() -> None:
    sys.path.insert(0, str(ROOT))
    import torch
    import transformers

    import convert_to_hf
    from impossible import asking, checkpoint
    from impossible.settings import run_command
    from impossible.text.tokenizer import Tokenizer

    torch.set_num_threads(1)
    asking.TIMEOUT = 2
    _ = transformers.GPT2LMHeadModel  # imported when named
    Tokenizer()  # reads the vocabulary once
    for line in sys.stdin:
        job = json.loads(line)
        pid = os.fork()
        if pid == 0:
            sys.stdin.readline()
            with open(job["output"], "w") as output:
                os.dup2(output.fileno(), 1)
                os.dup2(output.fileno(), 2)
            os.environ.update(job["environment"])
            sys.argv = ["convert_to_hf.py", *job["arguments"]]
            code = 0
            try:
                main, usage = convert_to_hf.main, convert_to_hf.__doc__
                run_command("convert_to_hf.py", main, usage, checkpoint.settings_of_run)
            except SystemExit as end:
                code = end.code
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
        print(pid, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


if __name__ == "__main__":
    run_jobs()
