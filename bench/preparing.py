"""From text to token files: prepare.py as a whole, and its way beside the published one."""

import functools
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

import perturb
import prepare
from bench.turns import REPEATS
from impossible.settings import Settings
from impossible.text import sentences as pipeline
from impossible.text import token_files, tokenizer
from impossible.text.corpus import Document, Split

_BLOCK = 1024
_SIZES = (50, 150, 500)  # MB of text to prepare
_COMPARED = 20  # MB of text to compare on
_CHUNK = 50_000  # sentences encoded in one go


def table(folder: Path, text: str) -> None:
    """The whole of prepare.py, from raw text to closed files, at three sizes."""
    print("prepare.py, PartialReverse, from raw text to closed files (copies of real text):\n")
    print("| MB | languages | s | MB/s | peak memory, GB |")
    print("|---|---|---|---|---|")
    on_text = [name for name, language in perturb.LANGUAGES.items() if not language.hops]
    for megabytes, names in [*((size, on_text[1:2]) for size in _SIZES), (_SIZES[-1], on_text)]:
        texts = _write_corpus(folder / "texts", text, megabytes)
        seconds, _, peak = _run(folder, names, f"--corpus={texts}")
        speed = megabytes * len(names) / seconds
        print(
            f"| {megabytes} | {len(names)} | {seconds:.1f} | {speed:.1f} | {peak:.2f} |", flush=True
        )
        shutil.rmtree(texts)


def annotating(folder: Path, text: str) -> None:
    """NoHop, TokenHop and WordHop in one command, from raw text to closed files."""
    names = [name for name, language in perturb.LANGUAGES.items() if language.hops]
    texts = _write_corpus(folder / "texts", text, 0)
    words = sum(len(path.read_text().split()) for path in texts.rglob("*.txt"))
    seconds, cpu, peak = _run(folder, names, f"--corpus={texts}")
    print(f"\n{', '.join(names)} in one command, {words:,} words, annotated by spaCy:\n")
    print("| s | words/s | words per CPU second | peak memory of a process, GB |")
    print("|---|---|---|---|")
    print(
        f"| {seconds:.1f} | {words / seconds:,.0f} | {words / cpu:,.0f} | {peak:.2f} |", flush=True
    )
    shutil.rmtree(texts)


def _write_corpus(folder: Path, text: str, megabytes: int) -> Path:
    """A corpus of copies of a text, of so many MB (0: the text once)."""
    data = text.encode()
    for split in ("100M", "dev", "test"):
        (folder / split).mkdir(parents=True)
        (folder / split / "text.txt").write_bytes(data[: data.rfind(b"\n", 0, 10**6) + 1])
    with open(folder / "100M" / "text.txt", "wb") as file:
        while file.tell() < max(1, megabytes * 10**6):
            file.write(data)
    return folder


def _run(folder: Path, names: list[str], *options: str) -> tuple[float, float, float]:
    """Prepare languages by one command. Returns seconds, CPU seconds, and peak memory in GB."""
    configs = []
    for name in names:
        configs.append(folder / f"{name}.py")
        data_dir = str(folder / "prepared" / name)
        configs[-1].write_text(f"language = {name!r}\ndata_dir = {data_dir!r}\n")
    start = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "prepare.py", *configs, *options],
        cwd=Path(__file__).parent.parent,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    if status:
        sys.exit("prepare.py failed")
    shutil.rmtree(folder / "prepared")
    return seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1e6  # from kB


def comparison(folder: Path, text: str) -> None:
    """From ready sentences to shuffled blocks in a file, three ways."""
    text *= max(1, _COMPARED * 10**6 // len(text.encode()))
    lines = [line for line in text.splitlines() if line.strip()]
    sentences = pipeline.segmented(lines, "sentencex")
    tokenizer.write_transformers_files(folder, [], _BLOCK)
    ours, published, bare = (f(sentences, folder) for f in (_our_way, _published_way, _bare_loop))
    ways = {
        "this project": functools.partial(ours, 0),
        "this project, one thread": functools.partial(ours, 1),
        "the published method": published,
        "a bare loop of encode_ordinary": bare,
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    blocks = {}
    for _ in range(1 + REPEATS):
        for name, way in ways.items():
            start = time.perf_counter()
            blocks[name] = way()
            seconds[name].append(time.perf_counter() - start)
    for name in ("this project", "this project, one thread"):
        if not np.array_equal(blocks[name], blocks["the published method"]):
            sys.exit(f"{name} and the published method gave different tokens")
    median = {name: statistics.median(found[1:]) for name, found in seconds.items()}
    size = len("".join(sentences).encode()) / 1e6
    print(
        f"\nFrom {len(sentences):,} sentences ({size:.1f} MB) to shuffled blocks, the same tokens, "
        f"medians of {REPEATS} in turns on {os.cpu_count()} cores:\n"
    )
    print("| | s | time relative to the bare loop | speed-up by this project |")
    print("|---|---|---|---|")
    bare, ours = median["a bare loop of encode_ordinary"], median["this project"]
    for name, value in median.items():
        print(f"| {name} | {value:.2f} | {value / bare:.2f} | {value / ours:.1f} |")


def _our_way(sentences: list[str], folder: Path) -> Callable[[int], np.ndarray]:
    """The functions of prepare.py, with this number of threads (0: one for each core)."""
    language = perturb.get(Settings().language)
    chunks = [sentences[i : i + _CHUNK] for i in range(0, len(sentences), _CHUNK)]
    document = Document("text", 0, lambda: ((chunk, 0) for chunk in chunks))
    split = Split([document], frozenset(range(20)), "line")
    encoder = tokenizer.Tokenizer(language.markers)

    def way(workers: int) -> np.ndarray:
        settings = Settings(segmenter="line", data_dir=str(folder), workers=workers)
        text = pipeline.read(split, settings, encoder)
        prepare.write_split("train", text, prepare.Job(settings, language, encoder, {}))
        return np.fromfile(token_files.path_of(folder, "train"), token_files.DTYPE)

    return way


def _published_way(sentences: list[str], folder: Path) -> Callable[[], np.ndarray]:
    """transformers' tokenizer, one random draw per sentence, ids shuffled as text, parsed."""
    import transformers

    settings = Settings()
    encoder = transformers.GPT2TokenizerFast.from_pretrained(folder)

    def way() -> np.ndarray:
        rng = np.random.default_rng(perturb.get(settings.language).seed)
        with open(folder / "ids.txt", "w") as file:
            for sentence in sentences:
                ids = encoder.encode(sentence)
                place = rng.choice(len(ids) + 1)
                if len(ids) > 1:
                    ids = [*ids[:place], tokenizer.FIRST_MARKER_ID, *ids[place:][::-1]]
                    file.write(" ".join(map(str, ids)) + "\n")
        lines = (folder / "ids.txt").read_text().splitlines()
        order = np.random.default_rng(settings.data_seed).permutation(len(lines))
        ids = []
        for i in order:
            ids += map(int, lines[i].split())
            ids.append(tokenizer.END_OF_TEXT_ID)
        return np.array(ids, token_files.DTYPE)

    return way


def _bare_loop(sentences: list[str], _: Path) -> Callable[[], np.ndarray]:
    """Only the tokens of each sentence, by tiktoken itself; nothing is done with them."""
    encode = tokenizer.Tokenizer().encoding.encode_ordinary

    def way() -> np.ndarray:
        for sentence in sentences:
            encode(sentence)
        return np.empty(0)

    return way
