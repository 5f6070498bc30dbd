"""Train GPT-2 on prepared token files, from the first step or from where a run stopped.

    torchrun --nproc_per_node=2 train.py config/partial_reverse.py    # two GPUs (or two CPUs)
    python train.py config/partial_reverse.py                         # one device
    python train.py --batch_size=4 --dtype=float16                    # a smaller GPU

Writes checkpoint-N.pt, training_state.pt and log.jsonl to out_dir. The same command resumes a run
from its last training state. Ctrl-C, SIGTERM and the signals that schedulers send before they stop
a job save the last whole step and end with exit code 75. See docs/training.md.
"""

import contextlib
import dataclasses
import math
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # also where PYTHONSAFEPATH is set

import numpy as np
import torch
from torch.nn.parallel import DistributedDataParallel

import perturb
from impossible import command
from impossible.settings import Train
from impossible.text import token_files
from impossible.training import checkpoint, kept, order, processes, shares, signals
from impossible.training import device as devices
from impossible.training import run as runs
from impossible.training.announce import announce
from impossible.training.log import Log
from impossible.training.processes import World
from impossible.training.run import Run
from model import GPT, IGNORED, next_tokens

EXIT_STOPPED = 75  # EX_TEMPFAIL of sysexits.h: run the same command again


def main(settings: Train) -> None:
    """Train until max_steps, keeping checkpoints on the way."""
    run = open_run(settings, processes.join_world())
    with runs.opened(run):
        runs.resume(run)
        if not run.is_done:
            wrap(run)
            shares.settle(run)
            signals.listen(run.stop_signals, run.world.is_first)
            train(run)
        elif run.world.is_first:
            print(f"{run.out_dir} is trained already: {run.step} of {settings.max_steps} steps")
    if not run.is_done:
        sys.exit(EXIT_STOPPED)


def open_run(settings: Train, world: World) -> Run:
    """Check the settings against the data and the devices, and build what they describe.

    Raises UserError if they do not fit together.
    """
    micro_steps = shares.given(settings, world)
    device = devices.pick_device(settings.device, world)
    dtype = devices.pick_dtype(settings.dtype, device)
    settings = dataclasses.replace(settings, dtype=str(dtype).removeprefix("torch."))

    data_dir = Path(settings.data_dir)
    perturb.get(settings.language)
    meta = token_files.read_meta(data_dir, settings.language)
    if settings.verify_data:
        token_files.verify(data_dir, meta)
    train_blocks, val_blocks = (
        token_files.open_blocks(data_dir, meta, split, settings.block_size)
        for split in ("train", "val")
    )

    devices.tune(device)
    torch.manual_seed(settings.seed_of_weights)  # on the CPU: the same weights for every device
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
        micro_steps=micro_steps,
        kept_steps=frozenset(
            kept.kept_steps(dataclasses.asdict(settings), dataclasses.asdict(meta))
        ),
    )


def make_optimizer(model: GPT, settings: Train) -> torch.optim.AdamW:
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
    """Compile the model if the settings say so, and connect it to the other processes."""
    if run.settings.compile:
        devices.require_compiler(run.device)
        run.model.compile_parts()
    if run.world.size > 1:
        ids = [run.device.index] if run.device.type == "cuda" else None
        run.wrapped = DistributedDataParallel(
            run.wrapped, device_ids=ids, gradient_as_bucket_view=True
        )


def train(run: Run) -> None:
    """The loop: update, validate, log and save, until the run is done or asked to stop."""
    s, first = run.settings, run.step
    with Log(run.out_dir, run.world.is_first, first, first if run.record else first + 1, s) as log:
        peak = announce(run, log)
        unread: list[torch.Tensor] = []  # loss and norm of the gradient of steps without a record
        while not run.is_done:
            if run.record is None:  # else this step still lacks its validation loss
                learning_rate = learning_rate_at(run.step, s)
                done = update(run, learning_rate)
                if done is None:
                    break
                run.saver.check()
                run.step += 1
                unread.append(done)
                if run.step % s.log_interval and not is_validated(run):
                    continue
                loss, grad_norm = runs.read(run, unread)
                unread = []
                run.record = {"step": run.step, "loss": loss, "learning_rate": learning_rate}
                run.record |= {"grad_norm": grad_norm} | log.speed(run.step, run.model, peak)
            if is_validated(run):
                val_loss = validate(run)
                if val_loss is None:
                    break
                run.val_loss = run.record["val_loss"] = val_loss
            log.write(run.record)
            run.record = None
            if run.step in run.kept_steps:
                runs.save(run, log.minutes())
            if is_validated(run):
                log.pause_ends(run.step)
        runs.finish(run, unread, log)


def update(run: Run, learning_rate: float) -> torch.Tensor | None:
    """One optimizer step, on the blocks of step `run.step` (from 0).

    Returns this process's mean loss and the norm of the gradient before clipping, (2,), still on
    the device; or None, with nothing changed, if any process was asked to stop.
    """
    s, world = run.settings, run.world
    # Dropout is a function of (seed, step, process): a resumed run draws what it would have.
    torch.manual_seed(order.dropout_seed(s.seed, run.step, world.rank))
    blocks = run.blocks(run.step)
    micro_batches = order.micro_batches(blocks, s.batch_size, world.rank, run.micro_steps)
    agreements = order.agreements(run.micro_steps, world.rank)
    mean_steps = sum(run.micro_steps) / world.size  # processes are averaged, then micro-steps are
    total = torch.zeros((), device=run.device)
    for i, indices in enumerate(micro_batches):
        if i in agreements and run.is_to_stop():  # all processes at the same part of the step
            run.optimizer.zero_grad(set_to_none=True)
            return None
        # A GPU still works on the micro-batch before while this one is fetched.
        batch = load(run.train_blocks, indices, run.device)  # (B, T)
        is_last = i == len(micro_batches) - 1
        # Gradients of the processes meet in the last micro-step only.
        with contextlib.nullcontext() if is_last or world.size == 1 else run.wrapped.no_sync():
            loss = run.loss(batch, next_tokens(batch)) / mean_steps
            run.scaler.scale(loss).backward()
        total += loss.detach()
    for group in run.optimizer.param_groups:
        group["lr"] = learning_rate
    run.scaler.unscale_(run.optimizer)
    grad_norm = torch.nn.utils.get_total_norm([p.grad for p in run.model.parameters()])
    world.share(grad_norm)  # GPUs of different kinds may round it differently
    torch.nn.utils.clip_grads_with_norm_(run.model.parameters(), s.grad_clip or math.inf, grad_norm)
    run.scaler.step(run.optimizer)
    run.scaler.update()
    # Of several processes, gradients stay in the buckets in which they meet.
    run.optimizer.zero_grad(set_to_none=world.size == 1)
    return torch.stack((total, grad_norm))


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
        batch = load(run.val_blocks, np.resize(indices, batch_size), run.device)
        targets = next_tokens(batch)
        targets[len(indices) :] = IGNORED
        count = len(indices) * (run.settings.block_size - 1)
        totals += torch.tensor([float(run.loss(batch, targets)) * count, count])
    run.model.train()
    summed, count = world.sum(totals.float().to(run.device)).tolist()
    if run.step:
        runs.require_finite(run, run.step, validation_loss=summed / count)
    return summed / count


def is_validated(run: Run) -> bool:
    """Whether the validation loss after the current step is measured."""
    return run.step % run.settings.eval_interval == 0 or run.step in run.kept_steps


def learning_rate_at(step: int, settings: Train) -> float:
    """The learning rate of update `step`, from 0: linear up to its peak, then linear down to 0.

    transformers' linear schedule, which mistral used: the first update has rate 0.
    """
    if step < settings.warmup_steps:
        return settings.learning_rate * step / settings.warmup_steps
    left = settings.max_steps - step
    return settings.learning_rate * left / (settings.max_steps - settings.warmup_steps)


def load(blocks: np.ndarray, indices: np.ndarray, device: torch.device) -> torch.Tensor:
    """The tokens of some blocks on the device, (B, T) int64."""
    batch = torch.from_numpy(blocks[indices].astype(np.int64))
    if device.type == "cuda":
        return batch.pin_memory().to(device, non_blocking=True)
    return batch.to(device)


if __name__ == "__main__":
    command.run(Train, main, __doc__)
