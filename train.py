"""Train GPT-2 on prepared token files, from the first step or from where a run stopped.

    torchrun --nproc_per_node=2 train.py config/partial_reverse.py    # two GPUs (or two CPUs)
    python train.py config/partial_reverse.py                         # one device
    python train.py --batch_size=4 --dtype=float16                    # a smaller GPU

Writes checkpoint-N.pt, training_state.pt and log.jsonl to out_dir. The same command resumes a run
from its last training state. After Ctrl-C, SIGTERM or another signal that schedulers send before
they stop a job, the run saves its last whole step and exits with code 75. See docs/training.md.
"""

import contextlib
import dataclasses
import math
import os
import signal
import sys
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn as nn
from torch.nn.parallel import DistributedDataParallel

from impossible import checkpoint, distributed, files
from impossible.checkpoint import Checkpoint
from impossible.distributed import World
from impossible.log import NAME as LOG
from impossible.log import Log
from impossible.settings import Settings, UserError, run_command
from impossible.text import token_files
from impossible.text.token_files import Meta
from model import GPT, IGNORED, next_tokens

EXIT_STOPPED = 75  # EX_TEMPFAIL of sysexits.h: run the same command again
# SIGQUIT (Ctrl-\) is not among them: it still ends a run at once.
STOP_SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGXCPU")
# The smallest loss scale in fp16. It starts at 2^16, and each non-finite gradient halves it.
_SMALLEST_SCALE = 2.0**-20
# Settings that may differ between the processes of a run.
_PER_PROCESS = ("device", "data_dir", "out_dir", "tracker", "tracker_project")


class Stopped(Exception):  # noqa: N818 (not an error)
    """A process of the run was asked to stop."""


@dataclass
class Run:
    """The components and the current step of a training run."""

    settings: Settings  # with the dtype that is used in place of `auto`
    meta: Meta
    world: World
    device: torch.device
    attention: str  # the name of its kernel
    train_blocks: np.ndarray  # (n, T) uint16
    val_blocks: np.ndarray  # (n, T) uint16
    model: GPT
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    wrapped: nn.Module  # the model, compiled and connected to the other processes
    kept_steps: dict[int, list[str]]  # step with a checkpoint -> BabyLM's names for it
    step: int = 0
    val_loss: float = math.nan  # the latest, in nats per token
    # The log record of this step until it is written; it may still lack its validation loss.
    record: dict[str, float] | None = field(default_factory=lambda: {"step": 0})
    saved_step: int = 0
    sessions: list[dict[str, Any]] = field(default_factory=list)  # as in a checkpoint
    stop_signals: list[int] = field(default_factory=list)  # received by this process
    pool: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1))
    saving: Future[None] | None = None  # the state that is being written in the background

    @property
    def out_dir(self) -> Path:
        """The folder of the checkpoints."""
        return Path(self.settings.out_dir)

    @property
    def is_done(self) -> bool:
        """Whether all steps are trained and validated."""
        return self.step >= self.settings.max_steps and self.record is None

    @property
    def is_validated(self) -> bool:
        """Whether the model is to be validated after the current step."""
        return self.step % self.settings.eval_interval == 0 or self.step in self.kept_steps

    @property
    def is_checkpoint(self) -> bool:
        """Whether the current step is complete and is to be saved as a checkpoint."""
        return self.step in self.kept_steps and self.record is None

    def blocks(self, step: int) -> np.ndarray:
        """Indices of the blocks that step `step` (from 0) reads, (blocks_per_step,) int64."""
        s = self.settings
        count = len(self.train_blocks)
        return token_files.step_blocks(count, s.blocks_per_step, s.seed_of_order, step)

    def stop_if_asked(self) -> None:
        """Raise Stopped if any process was asked to stop or lost torchrun. All must call this.

        This is checked before each micro-batch, because torchrun kills its processes 30 s after
        asking them to end, and a whole step can take that long.
        """
        if self.world.any(bool(self.stop_signals) or distributed.is_orphan()):
            raise Stopped

    def loss(self, batch: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """The mean loss of a micro-batch (B, T) over its targets, in nats."""
        dtype = getattr(torch, self.settings.dtype)
        with torch.autocast(self.device.type, dtype, enabled=dtype != torch.float32):
            return self.wrapped(batch, targets)


def main(settings: Settings) -> None:
    """Train until max_steps, and save checkpoints."""
    run = open_run(settings, distributed.join_world())
    with opened(run):
        resume(run)
        if not run.is_done:
            wrap(run)
            listen(run)
            train(run)
        elif run.world.is_first:
            print(f"{run.out_dir} is trained already: {run.step} of {settings.max_steps} steps")
    if not run.is_done:
        sys.exit(EXIT_STOPPED)


def open_run(settings: Settings, world: World) -> Run:
    """Build the run that the settings describe.

    Raises UserError if the settings, the data and the devices do not fit together.
    """
    require_equal_shares(settings, world.size)
    device = distributed.pick_device(settings.device, world)
    dtype = distributed.pick_dtype(settings.dtype, device)
    settings = dataclasses.replace(settings, dtype=str(dtype).removeprefix("torch."))

    data_dir = Path(settings.data_dir)
    meta = token_files.read_meta(data_dir, settings.language)
    train_blocks, val_blocks = (
        token_files.open_blocks(data_dir, meta, split, settings.block_size)
        for split in ("train", "val")
    )

    if device.type == "cpu":
        distributed.keep_freed_memory()
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")  # TF32 where fp32 is asked for
    torch.manual_seed(settings.seed_of_weights)  # weights drawn on the CPU: the same on any device
    model = GPT(checkpoint.model_config(settings, meta.vocab_size)).to(device)
    return Run(
        settings=settings,
        meta=meta,
        world=world,
        device=device,
        attention=distributed.choose_attention(settings, device, dtype),
        train_blocks=train_blocks,
        val_blocks=val_blocks[: settings.eval_blocks or None],
        model=model,
        optimizer=make_optimizer(model, settings),
        scaler=torch.amp.GradScaler(device.type, enabled=dtype == torch.float16),
        wrapped=model,
        kept_steps=checkpoint.kept_steps(settings, dataclasses.asdict(meta)),
    )


def require_equal_shares(settings: Settings, processes: int) -> None:
    """Raise UserError unless all processes can compute equally many micro-batches of a step."""
    blocks = settings.blocks_per_step
    if blocks % (settings.batch_size * processes):
        sizes = [str(n) for n in range(1, 65) if blocks % (n * processes) == 0]
        size = f"a --batch_size= of {', '.join(sizes)}, or " if sizes else ""
        raise UserError(
            f"{processes} processes cannot take equal shares of a step of {blocks} blocks in "
            f"micro-batches of {settings.batch_size}. Use {size}another number of processes."
        )


def make_optimizer(model: GPT, settings: Settings) -> torch.optim.AdamW:
    """AdamW with weight decay on matrices and embeddings, none on biases and layer norms."""
    parameters = list(model.parameters())
    groups = [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": settings.weight_decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]
    betas = (settings.beta1, settings.beta2)
    fused = parameters[0].device.type in ("cuda", "cpu")
    return torch.optim.AdamW(groups, settings.learning_rate, betas, eps=1e-8, fused=fused)


@contextlib.contextmanager
def opened(run: Run) -> Iterator[None]:
    """Lock the folder and open the process group for a `with` block; explain torch's errors."""
    run.out_dir.mkdir(parents=True, exist_ok=True)
    with files.locked(run.out_dir) if run.world.is_first else contextlib.nullcontext():
        distributed.connect(run.world, run.device)
        try:
            yield
            wait_for_saving(run)
        except BaseException as error:
            with contextlib.suppress(Exception):  # the first error counts
                wait_for_saving(run)
            raise readable(error, run)
        run.wrapped = run.model  # nothing may hold DistributedDataParallel any more
        distributed.disconnect(run.world)


def readable(error: BaseException, run: Run) -> BaseException:
    """A UserError for an error about memory, compilation or a lost process; else the same error."""
    if isinstance(error, torch.OutOfMemoryError):
        return UserError(
            f"micro-batches of {run.settings.batch_size} blocks need too much memory "
            f"({str(error).splitlines()[0]}). Unless another program uses the device, set a "
            "smaller --batch_size=: the data of a step stay the same."
        )
    if type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
        print(error, file=sys.stderr)
        return UserError(
            "torch.compile failed (see above). Set --compile=false, or install a C++ compiler and "
            "Python's headers (Debian: apt install g++ python3-dev), and keep spaces out of the "
            "paths in TMPDIR and TORCHINDUCTOR_CACHE_DIR."
        )
    if not distributed.is_loss_of_peer(error):
        return error
    if run.stop_signals and distributed.is_launched():
        os._exit(1)  # torchrun is ending all processes: another one has printed its error
    return UserError(
        "another process of this run was killed or printed its own error. Run the same command "
        "again to resume from the latest saved state."
    )


def wrap(run: Run) -> None:
    """Compile the model if the settings say so, and connect it to the other processes."""
    if run.settings.compile:
        run.model.compile_parts()
    if run.world.size > 1:
        ids = [run.device.index] if run.device.type == "cuda" else None
        run.wrapped = DistributedDataParallel(run.model, ids, gradient_as_bucket_view=True)


def listen(run: Run) -> None:
    """Make each of STOP_SIGNALS stop the run, which then saves its last whole step.

    A signal that is ignored already (nohup ignores SIGHUP) stays ignored. A second Ctrl-C ends
    the process at once. torchrun passes on the first one as SIGINT and the second one as SIGTERM.
    """

    def stop(number: int, _: Any) -> None:
        if run.world.is_first and not run.stop_signals:
            text = f"\n{signal.Signals(number).name}: stopping, and saving the last whole step\n"
            with contextlib.suppress(OSError):  # not print(): the signal may interrupt one
                os.write(2, text.encode())
        run.stop_signals.append(number)
        if number == signal.SIGINT:
            second = signal.SIGTERM if distributed.is_launched() else signal.SIGINT
            signal.signal(second, signal.default_int_handler)

    for name in STOP_SIGNALS:
        if signal.getsignal(getattr(signal, name)) != signal.SIG_IGN:
            signal.signal(getattr(signal, name), stop)


def train(run: Run) -> None:
    """Run the training loop: update, validate, log and save, until done or asked to stop."""
    s, first = run.settings, run.step
    with Log(s, run.world.is_first, first, first if run.record else first + 1) as log:
        peak = announce(run, log)
        pending: list[torch.Tensor] = []  # loss and gradient norm of steps without a record
        with contextlib.suppress(Stopped):
            while not run.is_done:
                if run.record is None:  # else this step still lacks its validation loss
                    learning_rate = learning_rate_at(run.step, s)
                    pending.append(update(run, learning_rate))
                    if run.saving and run.saving.done():
                        run.saving.result()  # raises the error if saving failed
                    run.step += 1
                    if run.step % s.log_interval and not run.is_validated:
                        continue
                    loss, grad_norm = read(run, pending)
                    pending = []
                    run.record = {"step": run.step, "loss": loss, "learning_rate": learning_rate}
                    run.record |= {"grad_norm": grad_norm}
                    run.record |= log.speed(run.step, run.model.flops_per_token(), peak)
                if run.is_validated:
                    run.val_loss = run.record["val_loss"] = validate(run)
                log.write(run.record)
                run.record = None
                if run.is_checkpoint:
                    save(run, log.minutes())
                if run.is_validated:
                    log.end_pause(run.step)
        finish(run, pending, log)


def update(run: Run, learning_rate: float) -> torch.Tensor:
    """Run one optimizer step, on the blocks of step `run.step` (from 0).

    Returns this process's mean loss and the norm of the gradient before clipping, (2,), still on
    the device. Raises Stopped, with the weights unchanged, if any process was asked to stop.
    """
    s, world = run.settings, run.world
    # Dropout depends only on (seed, step, process): a resumed run draws the same masks.
    torch.manual_seed(dropout_seed(s.seed, run.step, world.rank))
    micro_batches = run.blocks(run.step).reshape(-1, s.batch_size)[world.rank :: world.size]
    total = torch.zeros((), device=run.device)
    for i, indices in enumerate(micro_batches):
        run.stop_if_asked()
        # While this micro-batch is loaded, a GPU still works on the previous one.
        batch = load(run.train_blocks, indices, run.device)  # (B, T)
        is_last = i == len(micro_batches) - 1
        # The processes exchange gradients only in the last micro-batch.
        with contextlib.nullcontext() if is_last or world.size == 1 else run.wrapped.no_sync():
            loss = run.loss(batch, next_tokens(batch)) / len(micro_batches)
            run.scaler.scale(loss).backward()
        total += loss.detach()
    for group in run.optimizer.param_groups:
        group["lr"] = learning_rate
    run.scaler.unscale_(run.optimizer)
    grad_norm = nn.utils.get_total_norm([p.grad for p in run.model.parameters()])
    nn.utils.clip_grads_with_norm_(run.model.parameters(), s.grad_clip or math.inf, grad_norm)
    run.scaler.step(run.optimizer)
    run.scaler.update()
    # With several processes, gradients stay in the buckets that DistributedDataParallel sends.
    run.optimizer.zero_grad(set_to_none=world.size == 1)
    return torch.stack((total, grad_norm))


@torch.no_grad()
def validate(run: Run) -> float:
    """The mean loss over the validation blocks, in nats per token.

    All processes must call it; each reads a share. Raises Stopped if one is asked to stop.
    """
    run.model.eval()
    batch_size, world = run.settings.batch_size, run.world
    shares = np.array_split(np.arange(len(run.val_blocks)), world.size)
    totals = torch.zeros(2, dtype=torch.float64)  # summed loss, targets
    for start in range(0, len(shares[0]), batch_size):  # the first share is the largest
        run.stop_if_asked()
        indices = shares[world.rank][start : start + batch_size]
        if len(indices) == 0:
            continue
        # Rows that do not count fill up the last batch, so that all batches have one shape.
        batch = load(run.val_blocks, np.resize(indices, batch_size), run.device)
        targets = next_tokens(batch)
        targets[len(indices) :] = IGNORED
        count = len(indices) * (run.settings.block_size - 1)
        totals += torch.tensor([float(run.loss(batch, targets)) * count, count])
    run.model.train()
    summed, count = world.sum(totals.float().to(run.device)).tolist()
    if run.step:
        require_finite(run, run.step, "validation loss", summed / count)
    return summed / count


def learning_rate_at(step: int, settings: Settings) -> float:
    """The learning rate of step `step` (from 0): it rises linearly, then falls linearly to 0.

    transformers' linear schedule, which mistral used: the first update has rate 0.
    """
    if step < settings.warmup_steps:
        return settings.learning_rate * step / settings.warmup_steps
    remaining = settings.max_steps - step
    return settings.learning_rate * remaining / (settings.max_steps - settings.warmup_steps)


def dropout_seed(seed: int, step: int, rank: int) -> int:
    """The seed for dropout in one process and one step."""
    return int(np.random.SeedSequence([seed, step, rank]).generate_state(1, np.uint64)[0] >> 1)


def load(blocks: np.ndarray, indices: np.ndarray, device: torch.device) -> torch.Tensor:
    """Copy the blocks with these indices to the device. Returns their tokens, (B, T) int64."""
    batch = torch.from_numpy(blocks[indices].astype(np.int64))
    if device.type == "cuda":
        return batch.pin_memory().to(device, non_blocking=True)
    return batch.to(device)


def read(run: Run, pending: list[torch.Tensor]) -> tuple[float, float]:
    """The loss (mean over all processes) and the gradient norm of the latest step.

    pending: what `update` returned for each step since the last record. It is read only
    here, so that the device need not wait after each step. Raises UserError if a step diverged.
    """
    rows = (run.world.sum(torch.stack(pending)) / run.world.size).tolist()
    for step, (loss, grad_norm) in enumerate(rows, run.step - len(rows) + 1):
        # fp16's gradients overflow at times; the scaler then skips the step.
        norm = 0.0 if run.scaler.is_enabled() else grad_norm
        require_finite(run, step, "loss", loss)
        require_finite(run, step, "gradient norm", norm)
    if run.scaler.is_enabled() and run.scaler.get_scale() < _SMALLEST_SCALE:
        require_finite(run, run.step, "gradient norm at any loss scale", math.inf)
    return loss, grad_norm


def require_finite(run: Run, step: int, name: str, value: float) -> None:
    """Raise UserError if a value of `step` is not finite, so that a diverged run is not saved."""
    if math.isfinite(value):
        return
    wait_for_saving(run)
    kept = checkpoint.list_checkpoints(run.out_dir)
    raise UserError(
        f"step {step}: the {name} is {value}: training has diverged. Last good checkpoint: "
        f"{kept[-1] if kept else 'none yet'}. Try a lower --learning_rate= in another --out_dir= "
        f"(the step read the blocks {', '.join(map(str, run.blocks(step - 1)))} of train.bin)"
    )


def announce(run: Run, log: Log) -> float:
    """Print the run and its devices. Returns the total peak FLOP/s, the reference for MFU."""
    s, world = run.settings, run.world
    peak = sum(world.gather(distributed.peak_flops(run.device, getattr(torch, s.dtype))))
    devices = ", ".join(f"{n} x {name}" for name, n in run.sessions[-1]["devices"].items())
    count = s.blocks_per_step // s.batch_size // world.size
    log.say(
        f"{run.meta.language} from {run.meta.corpus_version}: {len(run.train_blocks):,} blocks of "
        f"{s.block_size} tokens to train on, {len(run.val_blocks):,} to validate on\n"
        f"a step of {s.tokens_per_step:,} tokens: {world.size} process(es) x {count} micro-batches "
        f"x {s.batch_size} blocks, {s.dtype}, {run.attention} attention, on {devices}. "
        f"MFU is relative to {peak / 1e12:.2f} TFLOP/s"
    )
    names = [name for names in run.kept_steps.values() for name in names]
    if s.extra_checkpoints == "babylm" and len(names) < len(checkpoint.BABYLM):
        beyond = ", ".join(name for name in checkpoint.BABYLM if name not in names)
        log.say(f"the run is too short for the checkpoints {beyond}")
    log.say(f"resuming at step {run.step}" if len(run.sessions) > 1 else "starting from scratch")
    return peak


# Resuming and saving


def resume(run: Run) -> None:
    """Load the training state, if there is one. All processes must call it.

    Raises UserError if it is damaged, belongs to another run or differs between processes.
    """
    path = checkpoint.state_path(run.out_dir)
    if path.exists():
        load_state(run, path)
    elif kept := checkpoint.list_checkpoints(run.out_dir):
        raise UserError(
            f"{run.out_dir} holds {kept[-1].name} but no {checkpoint.STATE} to resume from. "
            "Start again in another folder with --out_dir=, or delete this one."
        )
    require_agreement(run)
    if run.world.is_first and run.meta.tokenizer:  # else it is GPT-2's
        for name in token_files.TOKENIZER:
            files.copy(Path(run.settings.data_dir) / name, run.out_dir)
    session = {"from_step": run.step, "to_step": run.step, "minutes": 0.0}
    devices = Counter(run.world.gather(distributed.describe(run.device)))
    session |= {"devices": dict(devices), "torch": str(torch.__version__)}
    run.sessions.append(session | {"attention": run.attention})


def require_agreement(run: Run) -> None:
    """Raise UserError unless all processes start the same run, on the same data, from one step."""
    facts = run.settings.read_by("train.py")
    facts = {name: value for name, value in facts.items() if name not in _PER_PROCESS}
    for split in ("train", "val"):
        facts[f"the SHA-256 of {split}.bin"] = run.meta.splits[split]["sha256"]
    facts["the step to resume from"] = run.step
    first, *others = run.world.gather(facts)
    for rank, other in enumerate(others, 1):
        for name, value in other.items():
            if value != first[name]:
                raise UserError(
                    f"process {rank} has {name} = {value!r}, process 0 has {first[name]!r}. Run "
                    "the same command on all machines, with an out_dir that they share. For GPUs "
                    "that choose different dtypes, name one: --dtype=float16"
                )


def load_state(run: Run, path: Path) -> None:
    """Continue from a training state. Raises UserError if that would mix two different runs."""
    saved = checkpoint.load(path, is_checked=True, mmap=False)
    now = run.settings, dataclasses.asdict(run.meta)
    if differences := checkpoint.differences(saved.settings, saved.data, *now):
        raise UserError(
            f"{path} belongs to a run with other settings: {'; '.join(differences)}. Continue "
            "with those settings, or start again in another folder with --out_dir="
        )
    run.model.load_state_dict(saved.model)
    run.optimizer.load_state_dict(saved.state["optimizer"])
    run.scaler.load_state_dict(saved.state["scaler"])
    run.step = run.saved_step = saved.step
    run.val_loss, run.record = saved.val_loss, saved.state["unfinished_record"]
    run.sessions = saved.sessions
    kept = checkpoint.path_of(run.out_dir, run.step)
    if run.world.is_first and run.is_checkpoint and not kept.exists():
        # a crash came between the two writes
        checkpoint.save(kept, dataclasses.replace(saved, state=None))


def save(run: Run, minutes: float) -> None:
    """Save the training state and, if one is due, a checkpoint. Only the first process writes.

    The files are written in the background, from a copy. minutes: training time in this session.
    Raises UserError, and writes nothing, if a weight is not a finite number.
    """
    run.saved_step = run.step  # in all processes, so that they agree in `finish`
    if not run.world.is_first:
        return
    largest = torch.stack([p.detach().abs().max() for p in run.model.parameters()]).max()
    require_finite(run, run.step, "largest weight", float(largest))
    run.sessions[-1] |= {"to_step": run.step, "minutes": minutes}
    state = Checkpoint(
        step=run.step,
        model=copied(run.model.state_dict()),
        settings=run.settings,
        data=dataclasses.asdict(run.meta),
        val_loss=run.val_loss,
        sessions=copied(run.sessions),
        state={
            "optimizer": copied(run.optimizer.state_dict()),
            "scaler": run.scaler.state_dict(),
            "unfinished_record": copied(run.record),
        },
    )
    wait_for_saving(run)
    run.saving = run.pool.submit(write, run.out_dir, state, run.is_checkpoint)


def write(out_dir: Path, state: Checkpoint, is_checkpoint: bool) -> None:
    """Write a training state and, if is_checkpoint, a checkpoint of the same step."""
    files.sync(out_dir / LOG)  # before the state: a resumed run does not write these lines again
    checkpoint.save(out_dir / checkpoint.STATE, state, out_dir / checkpoint.PREVIOUS_STATE)
    if is_checkpoint:
        path = checkpoint.path_of(out_dir, state.step)
        checkpoint.save(path, dataclasses.replace(state, state=None))


def copied(value: Any) -> Any:
    """A copy of a nested value, with its tensors copied to the CPU."""
    if isinstance(value, torch.Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: copied(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(copied, value))
    return value


def wait_for_saving(run: Run) -> None:
    """Wait until the last state is written. If that failed, raises the error, but only once."""
    saving, run.saving = run.saving, None  # a second Ctrl-C ends the wait for good
    if saving:
        saving.result()


def finish(run: Run, pending: list[torch.Tensor], log: Log) -> None:
    """Save the last step if it is not saved yet, and print whether the run is done or stopped.

    pending: as in `read`.
    """
    if pending:
        read(run, pending)  # nothing is saved of a run that has diverged
    if run.step > run.saved_step:
        save(run, log.minutes())
    wait_for_saving(run)
    end = f"stopped after step {run.step}, as requested. Run the same command again to resume."
    if run.is_done:
        end = f"done in {log.minutes():.1f} minutes; the checkpoints are in {run.out_dir}"
    log.say(end)


if __name__ == "__main__":
    run_command("train.py", main, __doc__)
