"""Perplexities of the same sentences by one model: eval.py's way, and the published one."""

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F

import prepare
from bench.turns import REPEATS, compare
from impossible import checkpoint, distributed
from impossible.distributed import World
from impossible.evaluation import models, perplexity
from impossible.evaluation import scoring as scores
from impossible.hub import export
from impossible.settings import Settings
from impossible.text import token_files
from model import GPT

_SCORED = 150  # sentences of each genre to evaluate on
_PUBLISHED_BATCH = 8  # sentences


def scoring(folder: str) -> Callable[[], float]:
    """eval.py's own scoring of a checkpoint."""
    path = checkpoint.path_of(Path(folder), 1)
    place = distributed.pick_device("auto", World())
    if place.type == "cpu":
        distributed.keep_freed_memory()  # as eval.py does
    scorer, test = models.scorer_of(path, place), _sentences(Path(folder))

    def score_all() -> float:
        start = time.perf_counter()
        scores.losses(scorer, test.sentences, World())
        return time.perf_counter() - start

    return score_all


def published_scoring(folder: str) -> Callable[[], float]:
    """The same with transformers: sentences as sampled, in padded batches of eight, all logits."""
    import transformers

    place = distributed.pick_device("auto", World())
    model = transformers.GPT2LMHeadModel.from_pretrained(Path(folder) / "hf").to(place).eval()
    drawn = _sentences(Path(folder))
    parts = [torch.from_numpy(part.astype(np.int64)) for part in drawn.parts]
    chance = np.random.default_rng(0).random(len(parts))
    order = np.lexsort([chance, drawn.columns["genre"].cat.codes])  # genre by genre, as drawn
    ends = range(_PUBLISHED_BATCH, len(order), _PUBLISHED_BATCH)
    batches = [[parts[i] for i in batch] for batch in np.split(order, ends)]

    @torch.no_grad()
    def score_all() -> float:
        start = time.perf_counter()
        for batch in batches:
            lengths = torch.tensor([len(part) for part in batch])
            ids = nn.utils.rnn.pad_sequence(batch, batch_first=True).to(place)
            mask = (torch.arange(ids.shape[1]) < lengths[:, None]).to(place)
            logits = model(ids, attention_mask=mask.long()).logits[:, :-1]
            found = F.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")
            ((found * mask[:, 1:]).sum(1) / (lengths - 1).to(place)).tolist()
        return time.perf_counter() - start

    return score_all


def _sentences(folder: Path) -> scores.Sequences:
    return perplexity.draw(folder, token_files.read_meta(folder), _SCORED, 0)


def table(folder: Path, texts: dict[str, str], settings: Settings | None = None) -> None:
    """The perplexities of the same sentences by the same model, two ways, in fp32.

    texts: by genre. settings: of the model (if None: GPT-2 Small).
    """
    settings = settings or Settings()
    (folder / "text").mkdir()
    for name, text in texts.items():
        (folder / "text" / f"{name}.txt").write_text(text[: 8 * 10**6], encoding="utf-8")
    data = folder / "evaluated"
    prepare.main([Settings(corpus=str(folder / "text"), data_dir=str(data))])
    meta = token_files.read_meta(data)
    model = GPT(checkpoint.model_config(settings, meta.vocab_size))
    made = checkpoint.Checkpoint(
        step=1,
        model=model.state_dict(),
        settings=settings,
        data=dataclasses.asdict(meta),
        val_loss=0.0,
        sessions=[],
    )
    checkpoint.save(checkpoint.path_of(data, 1), made)
    (data / "hf").mkdir()
    export.write_folder(made, data, data / "hf")
    del model, made
    (ours, small), (theirs, large) = compare(
        str(data), ("evaluating.scoring",), ("evaluating.published_scoring",)
    )
    lengths = _sentences(data).sentences.lengths
    print(
        f"\nPerplexities of {len(lengths)} sentences ({lengths.sum():,} tokens) by a model of "
        f"{settings.n_layer} layers, width {settings.n_embd}, in float32, "
        f"medians of {REPEATS} in turns:\n"
    )
    print("| | s | tokens/s | speed relative to the published method | peak memory, GB |")
    print("|---|---|---|---|---|")
    for name, seconds, peak in (
        ("this project", ours, small),
        ("the published method", theirs, large),
    ):
        speed = lengths.sum() / seconds
        print(f"| {name} | {seconds:.1f} | {speed:,.0f} | {theirs / seconds:.2f} | {peak:.1f} |")
