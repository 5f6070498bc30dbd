"""The time to compute the losses of the same sentences with eval.py and as published."""

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F

from bench import turns
from impossible import checkpoint, distributed
from impossible.distributed import World
from impossible.evaluation import models, perplexity, scoring
from impossible.hub import export
from impossible.text import token_files
from model import GPT

_SCORED = 300  # sentences of each genre to evaluate on
_PUBLISHED_BATCH = 8  # sentences


def ours(folder: str) -> Callable[[], Any]:
    """A function that scores the test sentences with eval.py's own functions."""
    device = distributed.pick_device("auto", World())
    if device.type == "cpu":
        distributed.keep_freed_memory()  # as eval.py does
    scorer = models.scorer_of(checkpoint.path_of(Path(folder), 1), device)
    sequences = drawn(Path(folder))
    return lambda: scoring.losses(scorer, sequences, World())


def published(folder: str) -> Callable[[], Any]:
    """A function that scores the test sentences as published: padded batches of 8, all logits."""
    import transformers

    device = distributed.pick_device("auto", World())
    model = transformers.GPT2LMHeadModel.from_pretrained(Path(folder) / "hf").to(device).eval()
    test = drawn(Path(folder))
    sentences = [torch.from_numpy(part.astype(np.int64)) for part in test.parts]
    chance = np.random.default_rng(0).random(len(sentences))
    order = np.lexsort([chance, test.columns["genre"].cat.codes])  # genre by genre
    batches = np.split(order, range(_PUBLISHED_BATCH, len(order), _PUBLISHED_BATCH))

    @torch.no_grad()
    def score_all() -> None:
        for batch in batches:
            rows = [sentences[i] for i in batch]
            lengths = torch.tensor([len(row) for row in rows])
            ids = nn.utils.rnn.pad_sequence(rows, batch_first=True).to(device)
            mask = (torch.arange(ids.shape[1]) < lengths[:, None]).to(device)
            logits = model(ids, attention_mask=mask.long()).logits[:, :-1]
            losses = F.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")
            ((losses * mask[:, 1:]).sum(1) / (lengths - 1).to(device)).tolist()

    return score_all


def drawn(folder: Path) -> scoring.Sequences:
    """Sample the test sentences to score."""
    return perplexity.draw(folder, token_files.read_meta(folder), _SCORED, 0)


def export_model(folder: Path, deviation: float | None = None) -> float:
    """Write checkpoint 1 of an untrained model into `folder`, and its export into hf/.

    deviation: standard deviation of its weights (None: GPT-2's). Returns the largest difference
    between the logits of model and export, as a share of the largest logit.
    """
    meta = token_files.read_meta(folder)
    weights = GPT(checkpoint.model_config(turns.MODEL, meta.vocab_size)).state_dict()
    if deviation is not None:
        weights = {name: torch.randn_like(w) * deviation for name, w in weights.items()}
    made = checkpoint.Checkpoint(
        1, weights, turns.MODEL, dataclasses.asdict(meta), 0.0, sessions=[]
    )
    checkpoint.save(checkpoint.path_of(folder, 1), made)
    (folder / "hf").mkdir(exist_ok=True)
    return export.write_folder(made, checkpoint.path_of(folder, 1), folder / "hf")


def table(folder: Path, _: str) -> Iterator[dict[str, Any]]:
    """The time and memory of both methods, in fp32."""
    export_model(folder)
    lengths = drawn(folder).sentences.lengths
    contenders = {"this project": ("evaluating.ours", folder)}
    contenders |= {"the published method": ("evaluating.published", folder)}
    results = turns.compare(contenders)
    slow, _ = results["the published method"]
    for name, (seconds, peak) in results.items():
        yield {
            f"{len(lengths):,} sentences, {lengths.sum():,} tokens": name,
            "s": f"{seconds:.1f}",
            "tokens/s": f"{lengths.sum() / seconds:,.0f}",
            "speed relative to the published method": f"{slow / seconds:.2f}",
            "peak memory, GB": f"{peak:.1f}",
        }
