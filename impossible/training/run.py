"""A run: its state, resuming and saving, and readable errors."""

import contextlib
import dataclasses
import math
import os
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn as nn

from impossible import files
from impossible.errors import UserError
from impossible.settings import Train
from impossible.text.token_files import Meta
from impossible.training import checkpoint, order, processes
from impossible.training import device as devices
from impossible.training.log import NAME as LOG
from impossible.training.log import Log
from impossible.training.processes import World
from impossible.training.saving import Saver, copied
from model import GPT

# Of fp16's loss scale: it begins at 2^16 and is halved by each step whose gradient is not finite.
_SMALLEST_SCALE = 2.0**-20
# Settings that may differ between the processes of a run.
_PER_PROCESS = ("device", "data_dir", "out_dir", "tracker", "tracker_project")


@dataclass
class Run:
    """The parts of a run, and its current step."""

    settings: Train  # with the dtype that is used in place of `auto`
    meta: Meta
    world: World
    device: torch.device
    train_blocks: np.ndarray  # (n, T) uint16
    val_blocks: np.ndarray  # (n, T) uint16
    model: GPT
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    wrapped: nn.Module  # the model, compiled and joined with those of the other processes
    kept_steps: frozenset[int]  # those with a checkpoint
    micro_steps: list[int]  # of each process in a step; empty until they are measured
    step: int = 0
    val_loss: float = math.nan  # the latest, in nats per token
    # The log record of this step, until its validation loss is measured.
    record: dict[str, float] | None = field(default_factory=lambda: {"step": 0})
    saved_step: int = 0
    is_saved_unfinished: bool = False  # whether the state on disk lacks a validation loss
    sessions: list[dict[str, Any]] = field(default_factory=list)  # as in a checkpoint
    stop_signals: list[int] = field(default_factory=list)  # that this process got
    saver: Saver = field(default_factory=Saver)
    device_names: list[str] = field(default_factory=list)  # by rank

    @property
    def out_dir(self) -> Path:
        """The folder of the checkpoints."""
        return Path(self.settings.out_dir)

    @property
    def is_done(self) -> bool:
        """Whether there is nothing left to train or to validate."""
        return self.step >= self.settings.max_steps and self.record is None

    def blocks(self, step: int) -> np.ndarray:
        """The training blocks of step `step` (from 0), of all processes."""
        s = self.settings
        return order.step_blocks(len(self.train_blocks), s.blocks_per_step, s.seed_of_order, step)

    def is_to_stop(self) -> bool:
        """Whether any process was asked to stop, or has lost torchrun; all must call it.

        This is checked before each micro-step, because torchrun kills its processes 30 s after
        asking them to end, and a whole step can take that long.
        """
        return self.world.any(bool(self.stop_signals) or processes.is_orphan())

    def loss(self, batch: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """The mean loss of a micro-batch (B, T) over its targets, in nats."""
        with devices.autocast(self.device, getattr(torch, self.settings.dtype)):
            return self.wrapped(batch, targets)


@contextlib.contextmanager
def opened(run: Run) -> Iterator[None]:
    """Hold the lock of the run's folder and the process group; make torch's errors readable."""
    run.out_dir.mkdir(parents=True, exist_ok=True)
    with files.locked(run.out_dir) if run.world.is_first else contextlib.nullcontext():
        processes.connect(run.world, run.device)
        with _told(run):
            try:
                yield
            except BaseException:
                with contextlib.suppress(Exception):  # the first error counts
                    run.saver.wait()
                raise
            run.saver.wait()
        run.wrapped = run.model  # nothing may hold DistributedDataParallel any more
        processes.disconnect(run.world)


@contextlib.contextmanager
def _told(run: Run) -> Iterator[None]:
    """Turn torch's errors about memory, compilation or lost processes into UserErrors."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise UserError(
            f"the device has too little memory for micro-batches of {run.settings.batch_size} "
            f"blocks ({str(error).splitlines()[0]}). If nothing else uses the device, run the same "
            "command with a smaller --batch_size=: the results stay the same."
        )
    except Exception as error:
        if devices.is_compile_error(error):
            print(error, file=sys.stderr)
            raise UserError(
                "torch.compile failed (see above). Train without it (--compile=false), or fix "
                "the compiler. Compilation also fails if the path of TMPDIR or "
                "TORCHINDUCTOR_CACHE_DIR contains a space."
            )
        if not processes.is_loss_of_peer(error):
            raise
        if run.stop_signals and processes.is_launched():
            os._exit(1)  # torchrun ends all processes, for one that tells its own error
        raise UserError(
            "another process of this run has ended: it was killed, or it printed its own error. "
            "Run the same command again to resume from the latest saved state."
        )


def resume(run: Run) -> None:
    """Load the training state, if there is one. All processes must call it.

    Raises UserError if it is damaged, of another run, or not the same for all processes.
    """
    _require_agreement(run)
    run.device_names = run.world.gather(devices.describe(run.device))
    if checkpoint.has_state(run.out_dir):
        _load_state(run)
    elif kept := checkpoint.list_checkpoints(run.out_dir):
        raise UserError(
            f"{run.out_dir} holds {kept[-1].name} but no {checkpoint.STATE} to resume from. "
            "Start again in another folder with --out_dir=, or delete this one."
        )
    steps = run.world.gather(run.step)
    if len(set(steps)) > 1:
        raise UserError(
            f"the processes are at different steps ({steps}, by rank). {run.out_dir} must be one "
            "folder that all machines share."
        )
    run.sessions.append(
        {
            "from_step": run.step,
            "to_step": run.step,
            "minutes": 0.0,
            "devices": dict(Counter(run.device_names)),
            "torch": str(torch.__version__),
        }
    )


def _require_agreement(run: Run) -> None:
    """Raise UserError unless all processes train the same run on the same data."""
    found = dataclasses.asdict(run.settings)
    for name in _PER_PROCESS:
        del found[name]
    for split in ("train", "val"):
        found[f"the SHA-256 of {split}.bin"] = run.meta.splits[split]["sha256"]
    first, *others = run.world.gather(found)
    for rank, other in enumerate(others, 1):
        differences = [
            f"{name} = {other[name]!r}, and {first[name]!r} in the first"
            for name in first
            if other[name] != first[name]
        ]
        if differences:
            raise UserError(
                f"process {rank} has {'; '.join(differences)}. Run the same command on all "
                "machines. For GPUs that choose different dtypes, name one: --dtype=float16"
            )


def _load_state(run: Run) -> None:
    state = checkpoint.load_state(run.out_dir)
    checkpoint.check_same_run(run.out_dir / checkpoint.STATE, state, run.settings, run.meta)
    kept = checkpoint.path_of(run.out_dir, state.step)
    is_due = state.step in run.kept_steps and not state.unfinished_record
    if run.world.is_first and is_due and not kept.exists():  # a crash came between the two writes
        checkpoint.save(kept, state.without_optimizer())
    run.model.load_state_dict(state.model)
    run.optimizer.load_state_dict(state.optimizer)
    run.scaler.load_state_dict(state.scaler)
    run.step = run.saved_step = state.step
    run.is_saved_unfinished = state.unfinished_record is not None
    run.val_loss, run.record = state.val_loss, state.unfinished_record
    run.sessions = state.sessions
    is_same_world = state.measured_on == run.device_names
    total = run.settings.blocks_per_step // run.settings.batch_size
    if run.settings.shares == "auto" and is_same_world and sum(state.micro_steps) == total:
        run.micro_steps = state.micro_steps


def save(run: Run, minutes: float, is_checkpoint: bool = True) -> None:
    """Write the state to resume from, and then the checkpoint of this step, in one process.

    The files are written in the background, from a copy. minutes: training time in this session.
    Raises UserError, and writes nothing, if a weight is not a finite number.
    """
    _compare_replicas(run)
    # In all processes: in `finish`, they must agree whether there is anything to save.
    run.saved_step, run.is_saved_unfinished = run.step, run.record is not None
    if not run.world.is_first:
        return
    largest = torch.stack([p.detach().abs().max() for p in run.model.parameters()]).max()
    require_finite(run, run.step, largest_weight=float(largest))
    run.sessions[-1] |= {"to_step": run.step, "minutes": minutes}
    measured = {}
    if run.settings.shares == "auto":
        measured = {"micro_steps": run.micro_steps, "measured_on": run.device_names}
    state = checkpoint.TrainingState(
        step=run.step,
        model=copied(run.model.state_dict()),
        settings=dataclasses.asdict(run.settings),
        data=dataclasses.asdict(run.meta),
        val_loss=run.val_loss,
        sessions=copied(run.sessions),
        optimizer=copied(run.optimizer.state_dict()),
        scaler=run.scaler.state_dict(),
        unfinished_record=copied(run.record),
        **measured,
    )

    def write() -> None:
        files.sync(run.out_dir / LOG)  # before the state: its lines are not written again
        checkpoint.save_state(run.out_dir, state)
        if is_checkpoint:
            checkpoint.save(checkpoint.path_of(run.out_dir, state.step), state.without_optimizer())

    run.saver.start(write)


def _compare_replicas(run: Run) -> None:
    """Warn if the weights of the processes are no longer the same."""
    if run.world.size == 1:
        return
    # Sums of the bits as whole numbers: exact, in whatever order a device adds them up.
    sums = torch.stack([p.detach().view(torch.int32).sum() for p in run.model.parameters()])
    others = run.world.gather(sums.cpu())
    if run.world.is_first and any(not torch.equal(other, others[0]) for other in others):
        print(
            f"warning: step {run.step}: the weights are no longer the same in all processes. "
            "Checkpoints hold those of the first. GPUs of different kinds may round differently; "
            "if yours are alike, please report it."
        )


def finish(run: Run, unread: list[torch.Tensor], log: Log) -> None:
    """Print that the run is done; or that it stops, after saving the last step.

    unread: as in `read`.
    """
    if run.is_done:
        run.saver.wait()
        log.say(f"done in {log.minutes():.1f} minutes; the checkpoints are in {run.out_dir}")
        return
    if unread:
        read(run, unread)  # nothing is saved of a run that has diverged
    if run.step > run.saved_step or (run.is_saved_unfinished and run.record is None):
        save(run, log.minutes(), is_checkpoint=False)
    run.saver.wait()
    log.say(f"stopped after step {run.step}, as requested. Run the same command again to resume.")


def require_finite(run: Run, step: int, **values: float) -> None:
    """Raise UserError if training has diverged by `step`, so that this step is not saved."""
    for name, value in values.items():
        if not math.isfinite(value):
            run.saver.wait()
            kept = checkpoint.list_checkpoints(run.out_dir)
            good = kept[-1] if kept else "none yet"
            if not kept and checkpoint.has_state(run.out_dir):
                good = run.out_dir / checkpoint.STATE
            blocks = ", ".join(map(str, run.blocks(step - 1)))
            raise UserError(
                f"step {step}: the {name.replace('_', ' ')} is {value}: training has diverged. "
                f"Last good checkpoint: {good}. Try a lower --learning_rate= in another --out_dir= "
                f"(the step read the blocks {blocks} of train.bin)"
            )


def read(run: Run, unread: list[torch.Tensor]) -> tuple[float, float]:
    """The mean loss over all processes, and the norm of the gradient, of the latest step.

    unread: both, (2,), of each step up to the latest, as this process has them, on the device: the
    device works on until they are read. Raises UserError for the first step that diverged.
    """
    rows = (run.world.sum(torch.stack(unread)) / run.world.size).tolist()
    for number, (loss, grad_norm) in enumerate(rows, run.step - len(rows) + 1):
        # fp16's gradients overflow at times; the scaler then skips the step.
        norm = 0.0 if run.scaler.is_enabled() else grad_norm
        require_finite(run, number, loss=loss, gradient_norm=norm)
    if run.scaler.is_enabled() and run.scaler.get_scale() < _SMALLEST_SCALE:
        require_finite(run, run.step, gradient_norm_at_any_loss_scale=math.inf)
    return loss, grad_norm
