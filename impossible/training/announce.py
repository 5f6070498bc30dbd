"""The messages that a run prints before its first step."""

import dataclasses

import torch

from impossible.training import device as devices
from impossible.training.kept import words_beyond
from impossible.training.log import Log, duration
from impossible.training.run import Run

_MANY_EPOCHS = 100  # published: about 12


def announce(run: Run, log: Log) -> float:
    """Describe the run and its devices. Returns the total peak FLOP/s, the reference for MFU."""
    s, world = run.settings, run.world
    peak, source = devices.peak_flops(run.device, getattr(torch, s.dtype))
    peak = sum(world.gather(peak))
    names = [f"{count} x {name}" for name, count in run.sessions[-1]["devices"].items()]
    micro_steps = ", ".join(map(str, dict.fromkeys(run.micro_steps)))
    if len(set(run.micro_steps)) > 1:
        micro_steps = "/".join(map(str, run.micro_steps))
    seconds = 2 * s.tokens_per_step * run.model.flops_per_token() / peak
    epochs = s.max_steps * s.tokens_per_step / (len(run.train_blocks) * s.block_size)
    log.say(
        f"{run.meta.language} from {run.meta.corpus_version}: {len(run.train_blocks):,} blocks of "
        f"{s.block_size} tokens to train on, {len(run.val_blocks):,} to validate on"
    )
    log.say(
        f"a step of {s.tokens_per_step:,} tokens: {world.size} process(es) x {micro_steps} "
        f"micro-step(s) x {s.batch_size} blocks, {s.dtype}, on {', '.join(names)}"
    )
    log.say(f"MFU is the share of the peak of {peak / 1e12:.2f} TFLOP/s in all ({source})")
    log.say(
        f"a rough estimate, at half of that peak: {duration(seconds)} a step, "
        f"{duration(seconds * (s.max_steps - run.step))} in all"
    )
    log.say(f"{s.max_steps:,} steps read the training data {epochs:.1f} times")
    if beyond := words_beyond(dataclasses.asdict(s), dataclasses.asdict(run.meta)):
        log.say(
            "the run is too short for the checkpoints after "
            + ", ".join(f"{words // 10**6}M" for words in beyond)
            + " words"
        )
    if epochs > _MANY_EPOCHS:
        log.say(f"warning: that is more than {_MANY_EPOCHS} times. Is it the corpus you meant?")
    if run.device.type == "cpu" and s.dtype == "float16":
        log.say("warning: float16 is slow on a CPU; --dtype=float32 and bfloat16 are not")
    if s.compile:
        log.say("compiling: the first step takes a minute or more")
    is_resumed = len(run.sessions) > 1
    log.say(f"resuming at step {run.step}" if is_resumed else f"from scratch, into {s.out_dir}")
    return peak
