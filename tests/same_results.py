"""Check that this checkout and another one give the same results, byte for byte.

    python tests/same_results.py PATH_OF_THE_OTHER_CHECKOUT

For changes that must not change any result (a new layout, a faster path). Runs the commands of both
checkouts on State of the Union addresses and compares the token files of all languages that both
have; the losses, gradient norms and weights of a small model trained for 20 steps, by one process
and by two, each stopped and resumed once; the files of the exports (but the model card); and the
perplexities. Takes about six minutes on two cores, and ends with a table. Exit code 1 if anything
differs.
"""

import csv
import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

ROOT = Path(__file__).parent.parent
CONFIG = """
language = "partial_reverse"
corpus = "sotu"
data_dir = "data/partial_reverse"
block_size = 128
n_layer = 3
n_head = 4
n_embd = 64
tokens_per_step = 1024
batch_size = 2
max_steps = 20
warmup_steps = 4
learning_rate = 2e-3
checkpoint_interval = 5
eval_interval = 5
eval_blocks = 32
dtype = "float32"
compile = False
"""


def command(tree: Path, script: str, *arguments: str, processes: int = 1) -> list[str]:
    """How a person starts a command of a checkout."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    launcher = [sys.executable, *(torchrun if processes > 1 else [])]
    return [*launcher, str(tree / script), *arguments]


def run(tree: Path, place: Path, script: str, *arguments: str, processes: int = 1) -> None:
    """Run a command of a checkout in the folder `place`."""
    subprocess.run(
        command(tree, script, *arguments, processes=processes),
        cwd=place,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        check=True,
        stdout=subprocess.DEVNULL,
    )


def train(tree: Path, place: Path, out_dir: str, processes: int) -> None:
    """Train the small model, stopped once at about half of its steps, and resumed."""
    arguments = ("config.py", "--device=cpu", f"--out_dir={out_dir}")
    process = subprocess.Popen(
        command(tree, "train.py", *arguments, processes=processes),
        cwd=place,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    log = place / out_dir / "log.jsonl"
    while process.poll() is None and not (log.exists() and len(log.read_text().split("\n")) > 8):
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    process.wait()
    run(tree, place, "train.py", *arguments, processes=processes)


def digest(data: bytes) -> str:
    """The first digits of a SHA-256."""
    return hashlib.sha256(data).hexdigest()[:16]


def results_of_a_run(out_dir: Path) -> dict[str, str]:
    """Losses, gradient norms and weights of a run, hashed."""
    records = [json.loads(line) for line in (out_dir / "log.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records] == list(range(21)), "each step once"
    names = ("step", "loss", "grad_norm", "learning_rate", "val_loss")
    kept = [[record.get(name) for name in names] for record in records]
    hashes = {"losses, gradient norms": digest(json.dumps(kept).encode())}
    for path in sorted(out_dir.glob("checkpoint-*.pt")):
        weights = torch.load(path, weights_only=True)["model"]
        content = b"".join(n.encode() + t.numpy().tobytes() for n, t in sorted(weights.items()))
        hashes[f"weights, {path.stem}"] = digest(content)
    return hashes


def languages(tree: Path) -> set[str]:
    """The languages of a checkout, without the configs of demos and studies."""
    names = {path.stem for path in (tree / "config").glob("*.py")}
    return {name for name in names if not name.startswith(("demo_", "study_"))}


def results(tree: Path, place: Path, names: list[str]) -> dict[str, str]:
    """Everything that is compared: a name and a hash for each."""
    values = {}
    (place / "config.py").write_text(CONFIG)
    for language in names:
        data_dir = f"data/{language}"
        options = (f"--language={language}", f"--data_dir={data_dir}")
        run(tree, place, "prepare.py", "config.py", *options)
        for split in ("train", "val", "test"):
            tokens = (place / data_dir / f"{split}.bin").read_bytes()
            values[f"{language}, {split}.bin"] = digest(tokens)
    for processes in (1, 2):
        out_dir = f"out/{processes}"
        train(tree, place, out_dir, processes)
        for name, value in results_of_a_run(place / out_dir).items():
            values[f"{processes} process(es), {name}"] = value
    run(tree, place, "convert_to_hf.py", "config.py", "--out_dir=out/1")
    for path in sorted((place / "out/1/hf").glob("checkpoint-*/*")):
        if path.name != "README.md":
            values[f"export, {path.parent.name}/{path.name}"] = digest(path.read_bytes())
    run(tree, place, "eval.py", "config.py", "--out_dir=out/1", "--device=cpu")
    with open(place / "out/1/evaluation/perplexity.csv", newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            values[f"perplexity, {row['checkpoint']}, {row['genre']}"] = row["perplexity"]
    return values


def main(other: Path) -> int:
    """Print what is the same and what differs; the number of differences, at most 1."""
    tables, names = [], sorted(languages(ROOT) & languages(other))
    for tree in (other.resolve(), ROOT):
        with tempfile.TemporaryDirectory() as place:
            tables.append(results(tree, Path(place), names))
    others, ours = tables
    differences = [name for name in others | ours if others.get(name) != ours.get(name)]
    for name in others | ours:
        mark = "DIFFERS" if name in differences else "same"
        print(f"{mark:8}{name}: {others.get(name)} {ours.get(name) if name in differences else ''}")
    print(f"{len(others | ours)} results compared, {len(differences)} differ")
    return min(1, len(differences))


if __name__ == "__main__":
    if len(sys.argv) != 2 or not (Path(sys.argv[1]) / "train.py").exists():
        sys.exit(__doc__)
    sys.exit(main(Path(sys.argv[1])))
