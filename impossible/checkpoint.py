"""The files of a run: its checkpoints, and the training state to resume from.

`checkpoint-N.pt` contains the weights after N steps, with the settings and the data of the run.
`training_state.pt` is the latest checkpoint together with the state of the optimizer, and
`training_state.previous.pt` is the state before it. All are written atomically, contain checksums,
and can be loaded with `weights_only=True`.
"""

import dataclasses
import errno
import pickle
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from impossible import files
from impossible.settings import RECIPE, Recipe, Settings, UserError
from model import GPT, GPTConfig

STATE = "training_state.pt"
PREVIOUS_STATE = "training_state.previous.pt"
_PREFIX = "checkpoint-"
# BabyLM's names for checkpoints (2026): after 1M to 10M, 20M to 100M, and 200M to 1,000M words.
BABYLM = {
    f"chck_{millions}M": millions * 10**6
    for millions in (*range(1, 11), *range(20, 101, 10), *range(200, 1001, 100))
}
_FORMER = ("shares", "verify_data")  # settings of earlier versions, in their checkpoints
# What loading a damaged file may raise.
_DAMAGE = (RuntimeError, ValueError, TypeError, KeyError, EOFError, zlib.error)
_DAMAGE += (pickle.UnpicklingError, zipfile.BadZipFile)


@dataclass(frozen=True)
class Checkpoint:
    """The weights after `step` steps, with the settings and a description of the data."""

    step: int
    model: dict[str, torch.Tensor]  # state_dict of a GPT, fp32, on the CPU
    settings: Settings  # of train.py, with the dtype that was used in place of `auto`
    data: dict[str, Any]  # meta.json of the data
    val_loss: float  # in nats per token: of this step in a checkpoint, the latest in a state
    # The sessions so far, one for each start or resume: from_step, to_step, minutes (of training),
    # devices (name -> number of processes), torch (version).
    sessions: list[dict[str, Any]]
    # In a training state, everything else that resuming needs (see train.py); else None.
    state: dict[str, Any] | None = None


def path_of(out_dir: Path, step: int) -> Path:
    """The path of the checkpoint after `step` steps."""
    return out_dir / f"{_PREFIX}{step}.pt"


def list_checkpoints(out_dir: Path) -> list[Path]:
    """The paths of a run's checkpoints, sorted by step."""
    paths = [p for p in out_dir.glob(f"{_PREFIX}*.pt") if p.stem[len(_PREFIX) :].isdecimal()]
    return sorted(paths, key=lambda path: int(path.stem[len(_PREFIX) :]))


def hf_dir(out_dir: Path) -> Path:
    """The folder with a run's exports to transformers: a subfolder for each checkpoint."""
    return out_dir / "hf"


def save(path: Path, checkpoint: Checkpoint, previous: Path | None = None) -> None:
    """Write a checkpoint or a training state, whole or not at all.

    previous: the new name of a file that already exists at this path.
    """
    values = {f.name: getattr(checkpoint, f.name) for f in dataclasses.fields(checkpoint)}
    values["settings"] = checkpoint.settings.read_by("train.py")
    with files.atomic_write(path, previous) as file:
        torch.save(values, file)


def state_path(out_dir: Path) -> Path:
    """The path of the latest training state (the previous one if a crash left no newer file)."""
    path, previous = out_dir / STATE, out_dir / PREVIOUS_STATE
    return previous if previous.exists() and not path.exists() else path


def load(path: Path, is_checked: bool = False, mmap: bool = True) -> Checkpoint:
    """Load a checkpoint or a training state onto the CPU.

    is_checked: read the whole file and compare it with its checksums. mmap: read tensors only when
    they are used. Raises UserError if the file is damaged or was not written by train.py.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            if is_checked and (bad := archive.testzip()):
                raise zipfile.BadZipFile(f"the checksum of its part {bad} is wrong")
        values = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
        settings = {n: v for n, v in values["settings"].items() if n not in _FORMER}
        return Checkpoint(**values | {"settings": Settings(**settings)})
    except (*_DAMAGE, OSError, UserError) as error:
        if isinstance(error, OSError) and error.errno != errno.EINVAL:
            raise
        if "allocate memory" in str(error):
            raise MemoryError(f"{path}: {error}") from error  # the file is not damaged
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        other = f"delete it if {STATE} has the same step (train.py then writes it again)"
        if path.name == STATE:
            other = f"rename {PREVIOUS_STATE} to {STATE}"
        raise UserError(
            f"{path} is damaged or was not written by this version of train.py ({reason}). Restore "
            f"it from a copy; {other}; or start again in another --out_dir="
        )


def sha256(path: Path) -> str:
    """The SHA-256 of a checkpoint. Raises UserError if the file is damaged."""
    load(path, is_checked=True)
    return files.sha256(path)


def build_model(checkpoint: Checkpoint, path: Path) -> GPT:
    """The model of a checkpoint, in eval mode. Raises UserError if its weights do not fit."""
    config = model_config(checkpoint.settings, checkpoint.data["vocab_size"])
    with torch.device("meta"):  # shapes alone: the weights are those of the checkpoint
        model = GPT(config)
    try:
        model.load_state_dict(checkpoint.model, assign=True)
    except RuntimeError as error:
        reason = str(error).splitlines()[1].strip()  # of the first weight that does not fit
        raise UserError(
            f"{path}: its settings describe another model than its weights ({reason}). Restore "
            "the file that train.py wrote, for example from a backup."
        )
    return model.eval()


def model_config(settings: Settings, vocab_size: int) -> GPTConfig:
    """The shape of the model that these settings describe."""
    names = [f.name for f in dataclasses.fields(GPTConfig) if f.name != "vocab_size"]
    return GPTConfig(vocab_size, **{name: getattr(settings, name) for name in names})


def differences(
    settings: Recipe, data: Mapping[str, Any], now: Recipe, data_now: Mapping[str, Any]
) -> list[str]:
    """Descriptions of all differences between two runs in RECIPE settings and in their data."""
    pairs = {name: (repr(getattr(settings, name)), repr(getattr(now, name))) for name in RECIPE}
    for split in ("train", "val"):
        hashes = (meta["splits"][split]["sha256"][:12] for meta in (data, data_now))
        pairs[f"the SHA-256 of {split}.bin"] = tuple(hashes)
    hashes = (meta.get("tokenizer", {}).get("sha256", "gpt2") for meta in (data, data_now))
    pairs["the tokenizer"] = tuple(sha256[:12] for sha256 in hashes)
    return [f"{name} = {old}, not {new}" for name, (old, new) in pairs.items() if old != new]


def series(out_dir: Path, language: str) -> tuple[list[Path], Checkpoint]:
    """The paths of a run's checkpoints, sorted by step, and the last checkpoint.

    Raises UserError if there is no checkpoint, or if one is of another run, of another language, or
    of another step than its name says: such mistakes would otherwise go unnoticed.
    """
    paths, last = _paths_and_last(out_dir)
    if last.data["language"] != language:
        raise UserError(
            f"{paths[-1]} is a model of {last.data['language']}, but the settings say "
            f"{language}. Set --out_dir= or --language=."
        )
    for path in paths:
        other = load(path)
        problem = ""
        if unequal := differences(other.settings, other.data, last.settings, last.data):
            problem = f"belongs to another run than {paths[-1].name}: {'; '.join(unequal)}"
        if path_of(path.parent, other.step) != path:
            problem = f"holds step {other.step}: it was renamed or copied"
        if problem:
            raise UserError(
                f"{path} {problem}. Keep only checkpoints of one run in a folder, each with its "
                "original name."
            )
    return paths, last


def _paths_and_last(out_dir: Path) -> tuple[list[Path], Checkpoint]:
    """As `series`, but only the last checkpoint is read, and its language is not checked."""
    paths = list_checkpoints(out_dir)
    if not paths:
        raise UserError(
            f"no checkpoint-N.pt in {out_dir}. Train first (train.py, with the same config file "
            "and --out_dir= as here), or set --out_dir= to the folder of a run."
        )
    return paths, load(paths[-1])


def settings_of_run(out_dir: Path) -> dict[str, Any]:
    """The RECIPE settings and the data_dir of a run, from its last checkpoint.

    Raises UserError if the run has no checkpoint.
    """
    settings = _paths_and_last(out_dir)[1].settings
    return {name: getattr(settings, name) for name in (*RECIPE, "data_dir")}


def kept_steps(settings: Recipe, data: Mapping[str, Any]) -> dict[int, list[str]]:
    """The steps with a checkpoint, in order, each with the names that BabyLM's tools use for it.

    data: meta.json. Raises UserError if the settings ask for checkpoints after numbers of words,
    and the data lack their number of words.
    """
    interval, last = settings.checkpoint_interval, settings.max_steps
    extra = settings.extra_checkpoints
    steps: dict[int, list[str]] = {step: [] for step in (*range(interval, last, interval), last)}
    if extra == "babylm":
        train = data["splits"]["train"]
        if not train.get("words"):
            raise UserError(
                "extra_checkpoints = 'babylm' needs the number of words in the training data, and "
                "the meta.json of these data lacks it. Delete the data, and prepare them again (in "
                "some languages without spaces, words cannot be counted: docs/data.md)."
            )
        for name, words in BABYLM.items():
            # The first step after which the run has seen that many words, counting repetitions.
            step = -(-words * train["tokens"] // (settings.tokens_per_step * train["words"]))
            if step <= last:
                steps.setdefault(step, []).append(name)
    elif extra == "log2":
        powers = (1 << n for n in range(interval.bit_length()))
        steps |= {step: [] for step in (0, *powers) if step <= last}
    elif extra:
        steps |= {int(step): [] for step in extra.split(",")}
    return dict(sorted(steps.items()))
