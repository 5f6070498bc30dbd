"""Train GPT-2 on prepared token files, from the first step or from where a run stopped.

    torchrun --nproc_per_node=2 train.py config/partial_reverse.py      # two GPUs, or two CPUs
    python train.py config/partial_reverse.py                           # one device
    python train.py --batch_size=4 --dtype=float16                      # a smaller card

On two machines, the same on both, with the first one's address:

    torchrun --nnodes=2 --nproc_per_node=2 --rdzv_backend=c10d --rdzv_endpoint=HOST:29400 \\
        train.py config/partial_reverse.py

Writes checkpoint-N.pt, training_state.pt and log.jsonl to out_dir, which all machines share. The
same command again goes on at training_state.pt, on a CPU with as many threads bit for bit.
batch_size and the number of processes may change then. On Ctrl-C, when the terminal is closed, and
on SIGTERM, SIGUSR1, SIGUSR2 or SIGXCPU (what schedulers send before they stop a job) it saves the
last whole step and ends with code 75. With torchrun --max-restarts, send signals to torchrun: a
worker that ends alone would be started again.
"""

import contextlib
import dataclasses
import math
import os
import signal
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn as nn
from torch.nn.parallel import DistributedDataParallel

import checkpoint
import configurator
import device as devices
import files
import perturb
import tokens
from configurator import Settings
from device import World
from errors import UserError
from log import Log, duration
from loss import IGNORED
from model import GPT, next_tokens

EXIT_STOPPED = 75  # EX_TEMPFAIL of sysexits.h: run the same command again
# Each asks a process to end. Windows lacks most of them.
_STOP_SIGNALS = [
    getattr(signal, name)
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGXCPU")
    if hasattr(signal, name)
]
# Settings that each process may have for itself.
_OF_A_PROCESS = ("device", "data_dir", "out_dir", "corpus", "wandb_log", "wandb_project")
_MANY_EPOCHS = 100  # published: about 12
# Of fp16: it begins at 2^16 and is halved by each step whose gradient is not finite.
_SMALLEST_SCALE = 2.0**-20


@dataclass
class Run:
    """What a run is made of, but for the step at which it stands."""

    settings: Settings  # with the dtype that is used in place of `auto`
    meta: tokens.Meta
    world: World
    device: torch.device
    train_blocks: np.ndarray  # (n, T) uint16
    val_blocks: np.ndarray  # (n, T) uint16
    model: GPT
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    wrapped: nn.Module  # the model, compiled and joined with those of the other processes
    sessions: list[dict[str, Any]] = field(default_factory=list)  # as in a checkpoint
    # The record of the latest step, while its validation loss is still to be measured.
    unfinished_record: dict[str, float] | None = None
    stop_signals: list[int] = field(default_factory=list)  # that this process got

    def is_to_stop(self) -> bool:
        """Whether any process was asked to stop, or has lost torchrun; all must call it."""
        return self.world.any(bool(self.stop_signals) or devices.is_orphan())

    def loss(self, batch: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """The mean loss of a micro-batch (B, T) over its targets, in nats."""
        with devices.autocast(self.device, getattr(torch, self.settings.dtype)):
            return self.wrapped(batch, targets)


def main(settings: Settings) -> None:
    """Train until max_steps, keeping checkpoints on the way."""
    world = devices.join_world()
    out_dir = Path(settings.out_dir)
    run = open_run(settings, world)
    with files.locked(out_dir) if world.is_first else contextlib.nullcontext():
        devices.connect(world, run.device)
        with _told(run):
            step, val_loss = _resume(run)
            if step < settings.max_steps or run.unfinished_record:
                wrap(run)
                step = _train(run, step, val_loss)
            elif world.is_first:
                print(f"{out_dir} is trained already: {step} of {settings.max_steps} steps")
        is_done = step == settings.max_steps and not run.unfinished_record
        del run
        devices.disconnect(world)
    if not is_done:
        sys.exit(EXIT_STOPPED)


@contextlib.contextmanager
def _told(run: Run) -> Iterator[None]:
    """Turn what torch raises for lack of memory, or of another process, into errors for people."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise UserError(
            f"the device has too little memory for micro-batches of {run.settings.batch_size} "
            f"blocks ({str(error).splitlines()[0]}). If nothing else uses the device, type the "
            "same command with a smaller --batch_size=: what a step reads stays the same."
        )
    except Exception as error:
        if devices.is_compile_error(error):
            print(error, file=sys.stderr)
            raise UserError(
                "torch.compile failed (see above). Train without it (--compile=false), or mend the "
                "compiler. It also fails if the path of TMPDIR or TORCHINDUCTOR_CACHE_DIR has a "
                "space in it."
            )
        if not devices.is_loss_of_peer(error):
            raise
        if run.stop_signals and devices.is_launched():
            os._exit(1)  # torchrun ends all, for one that tells its error itself
        raise UserError(
            "another process of this run has ended: it was killed, or its own error says why. The "
            "same command goes on from what is saved."
        )


def open_run(settings: Settings, world: World) -> Run:
    """Check the settings against the data and the devices, and build what they describe.

    Raises UserError for what does not fit together.
    """
    _check_shares(settings, world)
    device = devices.pick_device(settings.device, world)
    dtype = devices.pick_dtype(settings.dtype, device)
    settings = dataclasses.replace(settings, dtype=str(dtype).removeprefix("torch."))
    meta = _read_meta(settings)
    if settings.verify_data:
        tokens.verify(Path(settings.data_dir), meta)
    train_blocks, val_blocks = (
        tokens.open_blocks(Path(settings.data_dir), meta, split, settings.block_size)
        for split in ("train", "val")
    )
    Path(settings.out_dir).mkdir(parents=True, exist_ok=True)
    if device.type == "cpu":
        devices.keep_freed_memory()
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")  # TF32 where fp32 is asked for
    torch.manual_seed(settings.seed)  # on the CPU: the same weights for every device
    model = GPT(checkpoint.model_config(dataclasses.asdict(settings), meta.vocab_size)).to(device)
    return Run(
        settings=settings,
        meta=meta,
        world=world,
        device=device,
        train_blocks=train_blocks,
        val_blocks=val_blocks[: settings.eval_blocks or None],
        model=model,
        optimizer=make_optimizer(model, settings),
        scaler=torch.amp.GradScaler(device.type, enabled=dtype == torch.float16),
        wrapped=model,
    )


def _train(run: Run, step: int, val_loss: float) -> int:
    """The loop: from `step` to max_steps, or to where a signal stops it. Returns the last step."""
    has_record = run.unfinished_record is None
    log = Log(Path(run.settings.out_dir), run.world.is_first, step, run.settings, has_record)
    _listen(run)
    try:
        return _steps(run, log, step, val_loss)
    finally:
        log.close()


def _steps(run: Run, log: Log, step: int, val_loss: float) -> int:
    s = run.settings
    peak = _announce(run, log, step)
    first = step
    run.sessions.append(_session(run, step))
    unread = []  # loss and norm of the gradient of each step since the last record
    if step == 0:
        run.unfinished_record = {"step": 0}
    while step < s.max_steps or run.unfinished_record:
        if run.unfinished_record is None:
            learning_rate = learning_rate_at(step, s)
            done = update(run, step, learning_rate)
            if done is None:
                break
            step += 1
            unread.append(torch.stack(done))
            is_eval = step % s.eval_interval == 0 or _is_kept(step, s)  # its loss goes with it
            if step % s.log_interval and not is_eval:
                continue
            loss, grad_norm = _read(run, step, unread)
            unread = []
            speed = log.tokens_per_second(step)
            record = {
                "step": step,
                "loss": loss,
                "learning_rate": learning_rate,
                "grad_norm": grad_norm,
                "tokens_per_second": speed,
                "mfu": speed * run.model.flops_per_token() / peak,
            }
            if not is_eval:
                log.write(record)
                continue
            run.unfinished_record = record
        measured = validate(run)
        if measured is None:
            break
        val_loss = measured
        if step:
            _require_finite(run, step, validation_loss=val_loss)
        log.write(run.unfinished_record | {"val_loss": val_loss})
        run.unfinished_record = None
        if _is_kept(step, s):
            _save(run, step, val_loss, log.minutes())
        log.pause_ends(step)
    else:
        log.say(f"done in {log.minutes():.1f} minutes; the checkpoints are in {s.out_dir}")
        return step
    if unread:
        _read(run, step, unread)  # nothing is saved of a run that has diverged
    if step > first:
        _save(run, step, val_loss, log.minutes(), is_checkpoint=False)
    log.say(f"stopped after step {step}, as asked. The same command goes on from there.")
    return step


def _read(run: Run, step: int, unread: list[torch.Tensor]) -> tuple[float, float]:
    """The mean loss over all processes, and the norm of the gradient, of the latest step.

    unread: both of each step up to `step`, as this process has them, on the device. Raises
    UserError for the first step that diverged.
    """
    rows = (run.world.sum(torch.stack(unread)) / run.world.size).tolist()
    for number, (loss, grad_norm) in enumerate(rows, step - len(rows) + 1):
        # fp16's gradients overflow at times; the scaler then skips the step.
        norm = 0.0 if run.scaler.is_enabled() else grad_norm
        _require_finite(run, number, loss=loss, gradient_norm=norm)
    if run.scaler.is_enabled() and run.scaler.get_scale() < _SMALLEST_SCALE:
        _require_finite(run, step, gradient_norm_at_any_loss_scale=math.inf)
    return loss, grad_norm


def update(run: Run, step: int, learning_rate: float) -> tuple[torch.Tensor, torch.Tensor] | None:
    """One optimizer step on the blocks of step `step` (from 0).

    Returns this process's mean loss and the norm of the gradient before clipping, both as
    tensors that are still on the device; or None, with nothing changed, if any process was asked
    to stop.
    """
    s, world = run.settings, run.world
    # Dropout is a function of (seed, step, process): a resumed run draws what it would have.
    torch.manual_seed(_step_seed(s.seed, step, world.rank))
    micro_batches = tokens.micro_batches(_blocks(run, step), s.batch_size, world.rank, world.size)
    total = torch.zeros((), device=run.device)
    for i, indices in enumerate(micro_batches):
        if run.is_to_stop():  # all processes before the same micro-step
            run.optimizer.zero_grad(set_to_none=True)
            return None
        # A GPU still works on the micro-batch before while this one is fetched.
        batch = _load(run.train_blocks, indices, run.device)
        is_last = i == len(micro_batches) - 1
        # Gradients of the processes meet in the last micro-step only.
        with contextlib.nullcontext() if is_last or world.size == 1 else run.wrapped.no_sync():
            loss = run.loss(batch, next_tokens(batch)) / len(micro_batches)
            run.scaler.scale(loss).backward()
        total += loss.detach()
    for group in run.optimizer.param_groups:
        group["lr"] = learning_rate
    run.scaler.unscale_(run.optimizer)
    grad_norm = nn.utils.clip_grad_norm_(run.model.parameters(), s.grad_clip or math.inf)
    run.scaler.step(run.optimizer)
    run.scaler.update()
    # Of several processes, gradients stay in the buckets in which they meet.
    run.optimizer.zero_grad(set_to_none=world.size == 1)
    return total, grad_norm


def _blocks(run: Run, step: int) -> np.ndarray:
    """The blocks of step `step` (from 0), of all processes."""
    s = run.settings
    return tokens.step_blocks(len(run.train_blocks), s.blocks_per_step, s.seed, step)


@torch.no_grad()
def validate(run: Run) -> float | None:
    """The mean loss over the validation blocks, in nats per token; None if asked to stop.

    Each process reads an equal share; all must call this.
    """
    run.model.eval()
    batch_size, world = run.settings.batch_size, run.world
    shares = np.array_split(np.arange(len(run.val_blocks)), world.size)
    totals = torch.zeros(2, dtype=torch.float64)  # summed loss, targets
    for start in range(0, len(shares[0]), batch_size):  # the first share is the largest
        if run.is_to_stop():
            run.model.train()
            return None
        indices = shares[world.rank][start : start + batch_size]
        if len(indices) == 0:
            continue
        # The last batch is filled up with rows that do not count: one shape to compile.
        batch = _load(run.val_blocks, np.resize(indices, batch_size), run.device)
        targets = next_tokens(batch)
        targets[len(indices) :] = IGNORED
        count = len(indices) * (run.settings.block_size - 1)
        totals += torch.tensor([float(run.loss(batch, targets)) * count, count])
    run.model.train()
    summed, count = world.sum(totals.float().to(run.device)).tolist()
    return summed / count


def learning_rate_at(step: int, settings: Settings) -> float:
    """The learning rate of update `step`, from 0: up to its peak in a line, then down to 0.

    transformers' linear schedule, which mistral used: the first update has rate 0.
    """
    if step < settings.warmup_steps:
        return settings.learning_rate * step / settings.warmup_steps
    left = settings.max_steps - step
    return settings.learning_rate * left / (settings.max_steps - settings.warmup_steps)


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


def wrap(run: Run) -> None:
    """Compile the model and join it with those of the other processes, as the settings say."""
    if run.settings.compile:
        devices.require_compiler(run.device)
        run.wrapped = torch.compile(run.wrapped, dynamic=False)
    if run.world.size > 1:
        on_gpu = run.device.type == "cuda"
        run.wrapped = DistributedDataParallel(
            run.wrapped,
            device_ids=[run.device.index] if on_gpu else None,
            gradient_as_bucket_view=True,
        )


def _announce(run: Run, log: Log, step: int) -> float:
    """Say what runs on what. Returns the peak FLOP/s of all processes that MFU refers to."""
    s, world = run.settings, run.world
    peak, source = devices.peak_flops(run.device, getattr(torch, s.dtype))
    peak = sum(world.gather(peak))
    names = [f"{count} x {name}" for name, count in _devices(run).items()]
    micro_steps = s.blocks_per_step // (s.batch_size * world.size)
    log.say(
        f"{run.meta.language} from {run.meta.corpus_version}: {len(run.train_blocks):,} blocks of "
        f"{s.block_size} tokens to train on, {len(run.val_blocks):,} to validate on"
    )
    log.say(
        f"a step of {s.tokens_per_step:,} tokens: {world.size} process(es) x {micro_steps} "
        f"micro-step(s) x {s.batch_size} blocks, {s.dtype}, on {', '.join(names)}"
    )
    log.say(
        f"MFU (the share of the peak that is used) is of {peak / 1e12:.2f} TFLOP/s in all, {source}"
    )
    seconds = 2 * s.tokens_per_step * run.model.flops_per_token() / peak
    log.say(
        f"a rough estimate, at half of that peak: {duration(seconds)} a step, "
        f"{duration(seconds * (s.max_steps - step))} in all"
    )
    epochs = s.max_steps * s.tokens_per_step / (len(run.train_blocks) * s.block_size)
    log.say(f"{s.max_steps:,} steps read the training data {epochs:.1f} times")
    if epochs > _MANY_EPOCHS:
        log.say(f"warning: that is more than {_MANY_EPOCHS} times. Is it the corpus you meant?")
    if run.device.type == "cpu" and s.dtype == "float16":
        log.say("warning: float16 is slow on a CPU; --dtype=float32 or bfloat16 is not")
    if s.compile:
        log.say("compiling: the first step takes a minute or more")
    log.say(f"going on at step {step}" if step else f"from scratch, into {s.out_dir}")
    return peak


def _session(run: Run, step: int) -> dict[str, Any]:
    """This stretch of training, for the record; all processes must call it."""
    return {
        "from_step": step,
        "to_step": step,
        "minutes": 0.0,
        "devices": _devices(run),
        "torch": str(torch.__version__),
    }


def _devices(run: Run) -> dict[str, int]:
    """What the processes run on, and how many on each; all must call it."""
    return dict(Counter(run.world.gather(devices.describe(run.device))))


def _load(blocks: np.ndarray, indices: np.ndarray, device: torch.device) -> torch.Tensor:
    """The tokens of some blocks on the device, (B, T) int64."""
    batch = tokens.to_tensor(blocks, indices)
    if device.type == "cuda":
        return batch.pin_memory().to(device, non_blocking=True)
    return batch.to(device)


def _step_seed(seed: int, step: int, rank: int) -> int:
    return int(np.random.SeedSequence([seed, step, rank]).generate_state(1, np.uint64)[0] >> 1)


def _check_shares(settings: Settings, world: World) -> None:
    """Raise UserError if the processes cannot share the blocks of a step evenly."""
    blocks = settings.blocks_per_step
    if blocks % (settings.batch_size * world.size):
        advice = "another number of processes"
        if blocks % world.size == 0:
            possible = configurator.divisors(blocks // world.size)
            advice = f"a --batch_size= of {', '.join(map(str, possible[:12]))}"
        raise UserError(
            f"the {blocks} blocks of a step cannot be shared by {world.size} processes in "
            f"micro-batches of {settings.batch_size}. What would do: {advice}."
        )


def _read_meta(settings: Settings) -> tokens.Meta:
    """meta.json of the data. Raises UserError if it is of another language."""
    perturb.get(settings.language)
    meta = tokens.read_meta(Path(settings.data_dir))
    if meta.language != settings.language:
        raise UserError(
            f"{settings.data_dir} holds {meta.language}, and the settings say "
            f"{settings.language}. Set --data_dir= or --language=, or prepare that language: "
            f"python prepare.py --language={settings.language}"
        )
    return meta


def _require_finite(run: Run, step: int, **values: float) -> None:
    """Raise UserError if training has diverged by `step`: nothing of it may be saved."""
    for name, value in values.items():
        if not math.isfinite(value):
            out_dir = Path(run.settings.out_dir)
            kept = checkpoint.list_checkpoints(out_dir)
            good = kept[-1] if kept else "none yet"
            if not kept and checkpoint.has_state(out_dir):
                good = out_dir / checkpoint.STATE
            blocks = ", ".join(map(str, _blocks(run, step - 1)))
            raise UserError(
                f"step {step}: the {name.replace('_', ' ')} is {value}: training has diverged. "
                f"Last good checkpoint: {good}. Try a lower --learning_rate= in another --out_dir= "
                f"(the step read the blocks {blocks} of train.bin)"
            )


def _resume(run: Run) -> tuple[int, float]:
    """Load the training state, if there is one: the step it stands at, its validation loss.

    Raises UserError if it is damaged, of another run, or not the same for all processes.
    """
    _require_agreement(run)
    step, val_loss = _load_state(run)
    steps = run.world.gather(step)
    if len(set(steps)) > 1:
        raise UserError(
            f"the processes stand at different steps ({steps}, by rank). {run.settings.out_dir} "
            "must be one folder that all machines share."
        )
    return step, val_loss


def _require_agreement(run: Run) -> None:
    """Raise UserError unless all processes train the same run on the same data."""
    found = dataclasses.asdict(run.settings)
    for name in _OF_A_PROCESS:
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
                f"process {rank} has {'; '.join(differences)}. Type the same command on all "
                "machines; for GPUs that choose different dtypes, name one: --dtype=float16"
            )


def _load_state(run: Run) -> tuple[int, float]:
    out_dir = Path(run.settings.out_dir)
    if not checkpoint.has_state(out_dir):
        if kept := checkpoint.list_checkpoints(out_dir):
            raise UserError(
                f"{out_dir} holds {kept[-1].name} but no {checkpoint.STATE} to go on from. Start "
                "anew in another folder with --out_dir=, or delete this one."
            )
        return 0, math.nan  # not measured yet
    state = checkpoint.load_state(out_dir)
    checkpoint.check_same_run(out_dir / checkpoint.STATE, state, run.settings, run.meta)
    kept = checkpoint.path_of(out_dir, state.step)
    is_due = _is_kept(state.step, run.settings) and not state.unfinished_record
    if (
        run.world.is_first and is_due and not kept.exists()
    ):  # by a crash between the two writes of _save
        checkpoint.save(kept, state.without_optimizer())
    run.model.load_state_dict(state.model)
    run.optimizer.load_state_dict(state.optimizer)
    run.scaler.load_state_dict(state.scaler)
    run.sessions = state.sessions
    run.unfinished_record = state.unfinished_record
    return state.step, state.val_loss


def _save(run: Run, step: int, val_loss: float, minutes: float, is_checkpoint: bool = True) -> None:
    """Write the state to resume from, and then the checkpoint of this step; one process does.

    minutes: of training in this session. Raises UserError, and writes nothing, if a weight is not
    a finite number.
    """
    if not run.world.is_first:
        return
    largest = torch.stack([p.detach().abs().max() for p in run.model.parameters()]).max()
    _require_finite(run, step, largest_weight=float(largest))
    run.sessions[-1] |= {"to_step": step, "minutes": minutes}
    state = checkpoint.TrainingState(
        step=step,
        model=run.model.state_dict(),
        settings=dataclasses.asdict(run.settings),
        data=dataclasses.asdict(run.meta),
        val_loss=val_loss,
        sessions=run.sessions,
        optimizer=run.optimizer.state_dict(),
        scaler=run.scaler.state_dict(),
        unfinished_record=run.unfinished_record,
    )
    out_dir = Path(run.settings.out_dir)
    checkpoint.save_state(out_dir, state)
    if is_checkpoint:
        checkpoint.save(checkpoint.path_of(out_dir, step), state.without_optimizer())


def _is_kept(step: int, settings: Settings) -> bool:
    """Whether there is to be a checkpoint of this step."""
    return step > 0 and (step % settings.checkpoint_interval == 0 or step == settings.max_steps)


def _listen(run: Run) -> None:
    """Let signals end the run after a whole step instead of at once.

    One that was ignored at the start, as nohup does with SIGHUP, stays ignored. A second Ctrl-C
    ends the run at once; but under torchrun, which repeats the first, it does not.
    """
    # Not the run: a handler must not keep the model (devices.disconnect).
    got, is_first = run.stop_signals, run.world.is_first

    def stop(number: int, _: Any) -> None:
        if is_first and not got:  # not by print(), which this may have interrupted
            told = f"\n{signal.Signals(number).name}: stopping, and saving the last whole step\n"
            with contextlib.suppress(OSError):
                os.write(2, told.encode())
        got.append(number)
        if not devices.is_launched():
            signal.signal(signal.SIGINT, signal.default_int_handler)

    for number in _STOP_SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, stop)


if __name__ == "__main__":
    configurator.run("train", main, __doc__)
