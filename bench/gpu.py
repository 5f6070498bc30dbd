"""The first checks on a GPU, in this order, as one report in Markdown: `make gpu`."""

import dataclasses
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from bench import training
from bench.turns import compare
from impossible import checkpoint
from impossible.hub import export
from impossible.settings import Settings
from impossible.text import token_files
from model import GPT

_ROOT = Path(__file__).parent.parent
_SIZES = {8: 5.8, 16: 9.6, 32: 17.4}  # blocks of a micro-batch -> GB, by docs/performance.md
_LARGE = 0.3  # standard deviation of weights: logits of hundreds
_STEPS = 50
_SHORT = (
    *(f"--max_steps={_STEPS}", f"--checkpoint_interval={_STEPS}", "--warmup_steps=5"),
    *(f"--tokens_per_step={2**16}", "--batch_size=8", "--verify_data"),
)


def main() -> None:
    """Print the report, or one line if there is no GPU."""
    if not torch.cuda.is_available():
        print("There is no GPU here: torch.cuda.is_available() is False.")
        return
    cards = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    print(f"# {', '.join(cards)}, torch {torch.__version__}, CUDA {torch.version.cuda}\n")
    with tempfile.TemporaryDirectory() as folder:
        training.write_data(Path(folder))
        for title, part in (
            ("Tests", tests),
            ("Memory and speed by micro-batch", sizes),
            ("Export of a model with large logits", large_logits),
            ("A training step beside transformers", training.table),
            ("A short run", short_run),
            ("Two GPUs", two_gpus),
        ):
            start = time.perf_counter()
            print(f"## {title}\n", flush=True)
            try:
                part(folder)
            except Exception as error:  # the other parts are wanted all the same
                print(f"failed: {error}")
            print(f"\n({time.perf_counter() - start:.0f} s)\n", flush=True)


def tests(folder: str) -> None:
    """The tests that need a GPU."""
    print(_said("-m", "pytest", "-q", "-m", "gpu", "-p", "no:randomly").splitlines()[-1])


def sizes(folder: str) -> None:
    """Steps of GPT-2 Small at several sizes of a micro-batch."""
    print("| blocks | tokens/s | 3,000 steps, hours | peak memory, GB | expected, GB |")
    print("|---|---|---|---|---|")
    published = Settings()
    for blocks, expected in _SIZES.items():
        try:
            ((seconds, peak),) = compare(folder, ("training.ours", "0.1", str(blocks)))
        except RuntimeError as error:
            if "OutOfMemoryError" not in str(error):
                raise
            print(f"| {blocks} | does not fit | | | {expected} |", flush=True)
            continue
        speed = training.MICRO_BATCHES * blocks * training.BLOCK / seconds
        hours = published.max_steps * published.tokens_per_step / speed / 3600
        print(f"| {blocks} | {speed:,.0f} | {hours:.1f} | {peak:.1f} | {expected} |", flush=True)


def large_logits(folder: str) -> None:
    """The check of an export, on weights that give large logits."""
    meta, settings = token_files.read_meta(Path(folder)), Settings(data_dir=folder, out_dir=folder)
    torch.manual_seed(0)
    model = GPT(checkpoint.model_config(settings, meta.vocab_size))
    weights = {name: torch.randn_like(w) * _LARGE for name, w in model.state_dict().items()}
    data = dataclasses.asdict(meta)
    made = checkpoint.Checkpoint(1, weights, settings, data, val_loss=0.0, sessions=[])
    path = checkpoint.path_of(Path(folder), 1)
    checkpoint.save(path, made)
    (Path(folder) / "export").mkdir()
    difference = export.write_folder(made, path, Path(folder) / "export")
    print(f"largest difference: {difference:.1e} of the largest logit (limit {export.TOLERANCE})")


def short_run(folder: str) -> None:
    """PartialReverse on speeches: prepare, train, export and evaluate GPT-2 Small."""
    places = (f"--data_dir={folder}/speeches", f"--out_dir={folder}/run")
    _said("prepare.py", "--corpus=sotu", places[0])
    print("```\n" + "\n".join(_said("train.py", *places, *_SHORT).splitlines()[-3:]))
    print(_said("convert_to_hf.py", *places).splitlines()[-1])
    print(_said("eval.py", *places).splitlines()[0] + "\n```")


def two_gpus(folder: str) -> None:
    """The short run by two processes, with equal shares and with measured ones."""
    if torch.cuda.device_count() < 2:
        print("There is one GPU.")
        return
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "train.py")
    print("```")
    for shares in ("equal", "auto"):
        places = (f"--data_dir={folder}/speeches", f"--out_dir={folder}/{shares}")
        printed = _said(*launcher, *places, *_SHORT, f"--shares={shares}").splitlines()
        print(
            f"shares = {shares}", *(x for x in printed if "micro-step" in x), printed[-2], sep="\n"
        )
    print("```")


def _said(*command: str) -> str:
    """What a command printed. Raises RuntimeError with its errors if it fails."""
    done = subprocess.run(
        [sys.executable, *command], cwd=_ROOT, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}:\n{done.stdout}{done.stderr}")
    return done.stdout
