"""Saving and loading a training run: kept checkpoints, and the one state to resume from.

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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from impossible import files
from impossible.errors import UserError
from impossible.settings import Train
from impossible.text.token_files import Meta
from model import GPT, GPTConfig

STATE = "training_state.pt"
PREVIOUS_STATE = "training_state.previous.pt"
_PREFIX = "checkpoint-"


@dataclass(frozen=True)
class Checkpoint:
    """The weights after some steps, with the settings and the data of the run."""

    step: int
    model: dict[str, torch.Tensor]  # state_dict of a GPT, fp32
    settings: dict[str, Any]  # all of Train, `auto` replaced by what was used
    data: dict[str, Any]  # meta.json of the data
    val_loss: float  # in nats per token: of this step in a checkpoint, the latest in a state
    # The stretches of training so far, from each start or resume on: from_step, to_step, minutes,
    # devices (name -> processes), torch (version).
    sessions: list[dict[str, Any]]


@dataclass(frozen=True)
class TrainingState(Checkpoint):
    """A checkpoint from which training can resume, bit for bit."""

    optimizer: dict[str, Any]
    scaler: dict[str, Any]
    # The log record of this step, if the run was stopped before its validation loss was measured.
    unfinished_record: dict[str, float] | None = None
    # The measured micro-steps of each process in a step, and the devices they were measured on.
    micro_steps: list[int] = dataclasses.field(default_factory=list)
    measured_on: list[str] = dataclasses.field(default_factory=list)

    def without_optimizer(self) -> Checkpoint:
        """The part of this state that is kept permanently."""
        names = [field.name for field in dataclasses.fields(Checkpoint)]
        return Checkpoint(**{name: getattr(self, name) for name in names})


def path_of(out_dir: Path, step: int) -> Path:
    """The file of the checkpoint after `step` steps."""
    return out_dir / f"{_PREFIX}{step}.pt"


def list_checkpoints(out_dir: Path) -> list[Path]:
    """The checkpoints of a run, by step."""
    paths = [p for p in out_dir.glob(f"{_PREFIX}*.pt") if p.stem[len(_PREFIX) :].isdecimal()]
    return sorted(paths, key=lambda path: int(path.stem[len(_PREFIX) :]))


def hf_dir(out_dir: Path) -> Path:
    """The folder with a run's exports to transformers: a subfolder for each checkpoint."""
    return out_dir / "hf"


def save(path: Path, checkpoint: Checkpoint, previous: Path | None = None) -> None:
    """Write a checkpoint or a training state, whole or not at all.

    checkpoint: its tensors are on the CPU, so that the file can be loaded on every machine.
    previous: the new name of a file that already exists at this path.
    """
    fields = {f.name: getattr(checkpoint, f.name) for f in dataclasses.fields(checkpoint)}
    with files.atomic_write(path, previous) as file:
        torch.save(fields, file)


def save_state(out_dir: Path, state: TrainingState) -> None:
    """Write the state to resume from; the one before it is renamed to PREVIOUS_STATE."""
    save(out_dir / STATE, state, out_dir / PREVIOUS_STATE)


def has_state(out_dir: Path) -> bool:
    """Whether there is a state to resume from."""
    return _state_path(out_dir).exists()


def _state_path(out_dir: Path) -> Path:
    """The latest training state (the previous one after a crash between the two renamings)."""
    path, previous = out_dir / STATE, out_dir / PREVIOUS_STATE
    return previous if previous.exists() and not path.exists() else path


def load(path: Path) -> Checkpoint:
    """Load a checkpoint onto the CPU; its parts are read only when they are used.

    Raises UserError if this program did not write it. `require_whole` detects damaged weights.
    """
    try:
        return _load(path, Checkpoint, mmap=True)
    except _DAMAGE as error:
        raise _damaged(path, error)


def require_whole(path: Path) -> None:
    """Read a whole checkpoint or training state. Raises UserError if a checksum is wrong."""
    try:
        _check_sums(path)
    except _DAMAGE as error:
        raise _damaged(path, error)


def sha256_of_whole(path: Path) -> str:
    """The SHA-256 of a checkpoint. Raises UserError if a byte of it is wrong."""
    require_whole(path)
    return files.sha256(path)


def load_state(out_dir: Path) -> TrainingState:
    """Read the training state onto the CPU.

    Raises UserError if it is damaged, naming the newest good one.
    """
    path, previous = _state_path(out_dir), out_dir / PREVIOUS_STATE
    try:
        _check_sums(path)
        return _load(path, TrainingState, mmap=False)
    except _DAMAGE as error:
        try:
            _check_sums(previous)
            step = _load(previous, TrainingState, mmap=True).step
        except (FileNotFoundError, *_DAMAGE):
            raise UserError(
                f"{path} is damaged ({_reason(error)}), and there is no other state to resume "
                "from. Start again in another --out_dir= (the checkpoints in this folder can "
                "still be exported)."
            )
        raise UserError(
            f"{path} is damaged ({_reason(error)}). The newest intact state is from step "
            f"{step}; to resume from it, run: mv {previous} {path}"
        )


_DAMAGE = (
    RuntimeError,
    ValueError,
    TypeError,
    EOFError,
    pickle.UnpicklingError,
    zipfile.BadZipFile,
    zlib.error,
)


def _load(path: Path, kind: type, mmap: bool) -> Any:
    try:
        return kind(**torch.load(path, map_location="cpu", weights_only=True, mmap=mmap))
    except RuntimeError as error:
        if "allocate memory" in str(error):
            raise MemoryError(f"{path}: {error}") from error  # no damage of the file
        raise


def _check_sums(path: Path) -> None:
    """Compare each part of a file with the CRC-32 that torch.save wrote beside it."""
    try:
        with zipfile.ZipFile(path) as archive:
            if bad := archive.testzip():
                raise zipfile.BadZipFile(f"the checksum of its part {bad} is wrong")
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        raise zipfile.BadZipFile("it refers to a place outside itself")


def _damaged(path: Path, error: Exception) -> UserError:
    others = (other for other in reversed(list_checkpoints(path.parent)) if other != path)
    good = next((other.name for other in others if _is_whole(other)), "none")
    return UserError(
        f"{path} is damaged or was not written by this program ({_reason(error)}). The newest "
        f"intact checkpoint in the folder: {good}. Restore the file from a copy; or delete it "
        f"if {STATE} is at the "
        "same step (train.py then writes the file again); or start again in another --out_dir="
    )


def _is_whole(path: Path) -> bool:
    try:
        _check_sums(path)
    except _DAMAGE:
        return False
    return True


def _reason(error: Exception) -> str:
    if "mmap can only" in str(error):
        return "it is not a zip archive, as torch.save writes"
    return next(iter(str(error).splitlines()), type(error).__name__)


def model_config(settings: dict[str, Any], vocab_size: int) -> GPTConfig:
    """The shape of the model that these settings describe."""
    names = [field.name for field in dataclasses.fields(GPTConfig) if field.name in settings]
    return GPTConfig(vocab_size=vocab_size, **{name: settings[name] for name in names})


def build_model(checkpoint: Checkpoint, path: Path) -> GPT:
    """The model of a checkpoint, in eval mode. Raises UserError if its weights do not fit."""
    with torch.device("meta"):  # shapes alone: the weights are those of the checkpoint
        model = GPT(model_config(checkpoint.settings, checkpoint.data["vocab_size"]))
    expected = model.state_dict()
    for name in sorted(expected.keys() | checkpoint.model.keys()):
        shapes = [
            tuple(weights[name].shape) if name in weights else "nothing"
            for weights in (expected, checkpoint.model)
        ]
        if shapes[0] != shapes[1]:
            raise UserError(
                f"{path}: its settings describe another model than its weights ({name}: expected "
                f"{shapes[0]}, found {shapes[1]}). It is not a checkpoint that train.py wrote."
            )
    model.load_state_dict(checkpoint.model, assign=True)
    return model.eval()


def fixed_settings(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings that determine a run's results; older runs lack some, which had the default."""
    defaults = {f.name: f.default for f in dataclasses.fields(Train)}
    return {name: settings.get(name, defaults[name]) for name in Train.fixed()}


def run_differences(
    settings: dict[str, Any], data: dict[str, Any], now: dict[str, Any], data_now: dict[str, Any]
) -> list[str]:
    """The differences between two runs in their data and in settings that affect results."""
    there, here = fixed_settings(settings), fixed_settings(now)
    differences = [
        f"{name} = {there[name]!r} there, {here[name]!r} now"
        for name in there
        if there[name] != here[name]
    ]
    for split in ("train", "val"):
        there, here = (meta["splits"][split]["sha256"][:12] for meta in (data, data_now))
        if there != here:
            differences.append(f"{split}.bin has SHA-256 {there}… there, {here}… now")
    return differences


def settings_of_run(out_dir: Path) -> dict[str, Any]:
    """The settings by which a run is found again: its language, data and variant.

    Raises UserError if there is no run.
    """
    paths = list_checkpoints(out_dir)
    if not paths:
        raise UserError(
            f"no checkpoint-N.pt in {out_dir}. Name the folder of a run, or train one (train.py)."
        )
    stored = load(paths[-1]).settings
    return {name: stored[name] for name in ("language", "data_dir", "position_embeddings")}


def order_of_run(out_dir: Path) -> dict[str, Any]:
    """The same, with the settings that determine which blocks each step reads."""
    found, stored = settings_of_run(out_dir), load(list_checkpoints(out_dir)[-1]).settings
    names = ("seed", "order_seed", "block_size", "tokens_per_step", "max_steps")
    return found | {name: stored[name] for name in names if name in stored}


def check_series(paths: list[Path], language: str) -> Checkpoint:
    """Raise UserError unless these are checkpoints of one run, each with the name of its step.

    paths: by step. Returns the last checkpoint. Without this check, a checkpoint of another run or
    step would go unnoticed.
    """
    last = load(paths[-1])
    if last.data["language"] != language:
        raise UserError(
            f"{paths[-1]} is a model of {last.data['language']}, but the settings say {language}. "
            "Set --out_dir= or --language=."
        )
    for path in paths:
        loaded = load(path)
        if path_of(path.parent, loaded.step) != path:
            raise UserError(
                f"{path} holds step {loaded.step}: it was renamed or copied. Restore its "
                "original name, or delete the copy."
            )
        differences = run_differences(loaded.settings, loaded.data, last.settings, last.data)
        if differences:
            raise UserError(
                f"{path} belongs to another run than {paths[-1].name}: "
                f"{'; '.join(differences)}. Keep only checkpoints of one run in a folder."
            )
    return last


def check_same_run(path: Path, state: Checkpoint, settings: Train, data: Meta) -> None:
    """Raise UserError if resuming from `state` would mix two different runs."""
    differences = run_differences(
        state.settings, state.data, dataclasses.asdict(settings), dataclasses.asdict(data)
    )
    if differences:
        raise UserError(
            f"{path} belongs to a run with other settings: {'; '.join(differences)}. Continue "
            "with those settings, or start again in another folder with --out_dir="
        )
