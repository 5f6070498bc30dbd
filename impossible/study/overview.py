"""The plan of a study before it is begun, and the state of its runs at any time."""

import contextlib
import math
import statistics
import time

import pandas as pd
import torch

from impossible import checkpoint, distributed, log
from impossible.distributed import World
from impossible.settings import UserError
from impossible.study import local, results, states
from impossible.study.plan import Plan, Run, missing_controls
from impossible.text import token_files
from model import GPT, next_tokens

_TRIAL = 3.0  # seconds of training for an estimate
_STATE_SIZE = 3  # a training state: weights and AdamW's two moments; there are two of them


def show_plan(plan: Plan) -> None:
    """Print the runs, the commands, the tokens, and estimates of time and disk."""
    left = [run for run in plan.runs if states.following(plan, run)]
    s = plan.settings
    print(f"{len(s.languages)} language(s) x {len(s.seeds)} seed(s) = {len(plan.runs)} runs")
    print(f"  {len(plan.runs) - len(left)} of them are done already in {plan.folder}")
    for language in s.languages:
        print(f"  {language}: seed {', '.join(map(str, s.seeds))}")
    print("commands, once for all runs:")
    configs = plan.preparing.configs
    print(f"  {plan.preparing._replace(configs=_short(configs))}")
    print("commands for each run, here for the first:")
    for command in plan.commands(plan.runs[0]):
        print(f"  {command}")
    print("commands at the end, for all runs together:")
    for command in plan.joint(plan.runs):
        print(f"  {command._replace(configs=_short(command.configs))}")
    print("(The study writes the config files when it begins.)")
    tokens = sum(run.tokens for run in plan.runs)
    print(f"tokens: {plan.runs[0].tokens:,} for each run, {tokens:,} for all")
    print(f"time left: {_time(plan, left)}")
    print(f"disk: {_disk(plan)}")
    if s.publish:
        print(f"repos: {', '.join(plan.repo(run) for run in plan.runs)}")
    for warning in missing_controls(plan):
        print(f"warning: {warning}")


def _short(configs: list[str]) -> list[str]:
    return configs if len(configs) < 3 else [configs[0], "...", configs[-1]]


def _time(plan: Plan, left: list[Run]) -> str:
    """An estimate of the time that training takes."""
    if not left:
        return "nothing is left to do"
    tokens = sum(run.tokens * (1 - _share_done(run)) for run in left)
    known = [speed for run in plan.runs if (speed := results.speed(run))]
    if plan.settings.cluster == "slurm":
        if not known:
            return "unknown until a run has begun on the cluster"
        hours = plan.runs[0].tokens / (sum(known) / len(known)) / 3600
        return f"about {log.duration(hours * 3600)} of training for each run, by the runs so far"
    shares = local.shares_of(plan)
    try:
        tried = 0.0 if known else _tried_speed(plan, shares[0])
    except torch.OutOfMemoryError:
        return "unknown: a trial ran out of memory. Set a smaller --batch_size="
    if known:
        speed, basis = sum(known) / len(known), "by the runs so far"
    else:
        speed, basis = tried, "by a short trial without torch.compile"
    at_once = min(len(shares), len(left))
    # Each share does several runs, one after the other; the last ones may leave others idle.
    seconds = tokens / len(left) * math.ceil(len(left) / at_once) / speed
    return (
        f"at least {log.duration(seconds)} of training, {at_once} runs at a time at {speed:,.0f} "
        f"tokens/s each ({basis}); export and evaluation are not included"
    )


def _share_done(run: Run) -> float:
    records = log.read(run.folder)
    return records[-1]["step"] / run.settings.max_steps if records else 0.0


def _tried_speed(plan: Plan, share: dict[str, str]) -> float:
    """Tokens per second of a few training steps on this machine."""
    run = plan.runs[0]
    t = run.settings
    device = distributed.pick_device(t.device, World())
    dtype = distributed.pick_dtype(t.dtype, device)
    before = torch.get_num_threads()
    torch.set_num_threads(int(share.get("OMP_NUM_THREADS", before)))
    model = GPT(run.model_config).to(device)
    batch = torch.randint(1000, (t.batch_size, t.block_size), device=device)
    found: list[float] = []  # seconds
    while sum(found) < _TRIAL or len(found) < 2:
        start = time.perf_counter()
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            loss = model(batch, next_tokens(batch))
        loss.backward()
        distributed.synchronize(device)
        found.append(time.perf_counter() - start)
    torch.set_num_threads(before)
    return batch.numel() / statistics.median(found) * plan.processes


def _disk(plan: Plan) -> str:
    """The size of checkpoints, exports and training states."""
    weights = 4 * plan.runs[0].parameters
    t, kept = plan.runs[0].settings, None
    with contextlib.suppress(UserError):
        meta = token_files.read_meta(plan.runs[0].data_dir)
        kept = checkpoint.kept_steps(t, vars(meta))
    if kept is None and t.extra_checkpoints != "babylm":
        kept = checkpoint.kept_steps(t, {})
    if kept is None:
        return "unknown before the data are prepared, as checkpoints follow the number of words"
    each = weights * (len(kept) * 2 + 2 * _STATE_SIZE)
    total = each * len(plan.runs) / 1e9
    return (
        f"about {total:,.1f} GB for all runs: for each one {len(kept)} checkpoints of "
        f"{weights / 1e6:,.0f} MB, as many exports, and the states to resume from; token files and "
        "results are not included"
    )


def show_states(plan: Plan) -> None:
    """Print how far each run is."""
    table = results.runs_table(plan)
    columns = ["run", "state", "step", "loss", "val_loss", "perplexity", "minutes"]
    forms = {"loss": "{:.4f}", "val_loss": "{:.4f}", "perplexity": "{:,.1f}", "minutes": "{:.1f}"}
    formatters = {
        name: lambda v, f=form: "-" if math.isnan(v) else f.format(v)
        for name, form in forms.items()
    }
    with pd.option_context("display.width", None):
        print(table[columns].to_string(index=False, formatters=formatters))
    for run, error in zip(table["run"], table["error"], strict=True):
        if error:
            print(f"{run}: {error}")
    if problem := states.problem_of_data(plan):
        print(problem)
    try:
        results.read_made(plan)
    except UserError as error:
        print(error)
    counts = ", ".join(f"{n} {state}" for state, n in table["state"].value_counts().items())
    print(f"{len(table)} runs: {counts}")
    if "failed" in set(table["state"]):
        print("To try what failed again, add --retry to the command of the study.")
