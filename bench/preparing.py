"""The speed of prepare.py, alone and beside the published method."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

import perturb
import prepare
from bench import turns
from impossible.settings import Settings
from impossible.text import corpus as corpora
from impossible.text import sentences as pipeline
from impossible.text import token_files, tokenizer
from impossible.text.corpus import Document, Split

_SIZES = (50, 150, 500)  # MB of text to prepare
_COMPARED = 20  # MB of text to compare on
_CHUNK = 50_000  # sentences encoded in one go


def text_of(corpus: str, megabytes: int) -> str:
    """The lines of a corpus, repeated to about `megabytes` MB (0: all of them, once)."""
    splits = corpora.open_corpus(corpora.normal(Settings(corpus=corpus))).values()
    parts = (part for split in splits for part in split.parts())
    text = "".join(f"{line}\n" for part in parts for line in part.lines)
    return text * max(1, megabytes * 10**6 // len(text.encode()))


def table(folder: Path, corpus: str) -> Iterator[dict[str, Any]]:
    """The speed and memory of prepare.py, from raw text to token files."""
    published = {name: row for name, row in perturb.LANGUAGES.items() if row.unit == "tokens"}
    plain = [name for name, language in published.items() if not language.hops]
    hops = [name for name, language in published.items() if language.hops]
    sizes = [(megabytes, [Settings().language]) for megabytes in _SIZES]
    for megabytes, languages in [*sizes, (_SIZES[-1], plain), (0, hops)]:
        data = text_of(corpus, megabytes).encode()
        seconds, cpu, peak = prepared(folder / "prepared", data, languages)
        yield {
            "languages": f"{len(languages)}{' (Hop), annotated by spaCy' * (languages == hops)}",
            "MB": f"{len(data) / 1e6:.0f}",
            "s": f"{seconds:.1f}",
            "MB/s, all languages together": f"{len(data) / 1e6 * len(languages) / seconds:.1f}",
            "words per CPU second": f"{len(data.split()) / cpu:,.0f}",
            "peak memory, GB": f"{peak:.2f}",
        }


def prepared(folder: Path, text: bytes, languages: list[str]) -> tuple[float, float, float]:
    """Prepare a text by one command. Returns seconds, CPU seconds and peak memory in GB."""
    for split in ("100M", "dev", "test"):
        (folder / "texts" / split).mkdir(parents=True)
        part = text if split == "100M" else text[: text.rfind(b"\n", 0, 10**6) + 1]
        (folder / "texts" / split / "text.txt").write_bytes(part)
    configs = [folder / f"{name}.py" for name in languages]
    for config in configs:
        data_dir = str(folder / config.stem)
        config.write_text(f"language = {config.stem!r}\ndata_dir = {data_dir!r}\n")
    start = time.perf_counter()
    command = [sys.executable, "prepare.py", *configs, f"--corpus={folder / 'texts'}"]
    process = subprocess.Popen(command, cwd=turns.ROOT, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    if status:
        raise RuntimeError("prepare.py failed")
    shutil.rmtree(folder)
    return seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1e6  # from kB


def comparison(folder: Path, corpus: str) -> Iterator[dict[str, Any]]:
    """The time from the same sentences to their shuffled tokens in a file, by each method."""
    contenders = {
        "this project": ("preparing.ours", folder, corpus, 0),
        "this project, one thread": ("preparing.ours", folder, corpus, 1),
        "the published method": ("preparing.published", folder, corpus),
        "a bare loop of encode_ordinary": ("preparing.bare_loop", folder, corpus),
    }
    results = turns.compare(contenders)
    (first, _), *_, (bare, _) = results.values()
    for name, (seconds, _) in results.items():
        yield {
            f"about {_COMPARED} MB, {os.cpu_count()} cores": name,
            "s": f"{seconds:.2f}",
            "time relative to the bare loop": f"{seconds / bare:.2f}",
            "speed-up by this project": f"{seconds / first:.1f}",
        }


def sentences_of(corpus: str) -> list[str]:
    """The sentences that every method prepares."""
    lines = text_of(corpus, _COMPARED).splitlines()
    return pipeline.segmented([line for line in lines if line.strip()], "sentencex")


def ours(folder: str, corpus: str, workers: str) -> Callable[[], np.ndarray]:
    """A function that prepares the sentences with prepare.py. workers: threads (0: all cores)."""
    reading = {"segmenter": "line", "text_language": "en", "workers": int(workers)}
    settings = Settings(data_dir=f"{folder}/{workers}", **reading)
    Path(settings.data_dir).mkdir()
    language = perturb.get(settings.language)
    encoder = tokenizer.Tokenizer(language.markers)
    sentences = sentences_of(corpus)
    chunks = [sentences[i : i + _CHUNK] for i in range(0, len(sentences), _CHUNK)]
    document = Document("text", 0, lambda: ((chunk, 0) for chunk in chunks))
    split = Split([document], frozenset(range(20)), "line")

    def write() -> np.ndarray:
        text = pipeline.read(split, settings, encoder)
        prepare.write_split("train", text, prepare.Job(settings, language, encoder, {}))
        path = token_files.path_of(Path(settings.data_dir), "train")
        return np.fromfile(path, token_files.DTYPE)

    return write


def published(folder: str, corpus: str) -> Callable[[], np.ndarray]:
    """A function that prepares the sentences as published: transformers' tokenizer, ids as text."""
    import transformers

    place, sentences = Path(folder) / "published", sentences_of(corpus)
    place.mkdir()
    own = tokenizer.Tokenizer()
    end = own.end_of_text
    tokenizer.write_transformers_files(place, own, turns.MODEL.block_size)
    encode = transformers.GPT2TokenizerFast.from_pretrained(place).encode

    def write() -> np.ndarray:
        rng = np.random.default_rng(perturb.get(Settings().language).seed)
        with open(place / "ids.txt", "w") as file:
            for sentence in sentences:
                ids = encode(sentence)
                at = rng.choice(len(ids) + 1)
                if len(ids) > 1:
                    ids = [*ids[:at], end + 1, *ids[at:][::-1]]
                    file.write(" ".join(map(str, ids)) + "\n")
        lines = (place / "ids.txt").read_text().splitlines()
        ids = []
        for i in np.random.default_rng(Settings().data_seed).permutation(len(lines)):
            ids += [*map(int, lines[i].split()), end]
        return np.array(ids, token_files.DTYPE)

    return write


def bare_loop(_: str, corpus: str) -> Callable[[], list[list[int]]]:
    """A function that only encodes each sentence with tiktoken."""
    encode, sentences = tokenizer.Tokenizer().encoding.encode_ordinary, sentences_of(corpus)
    return lambda: [encode(sentence) for sentence in sentences]
