"""Losses are those of one sentence at a time, whatever shares a row with it."""

import numpy as np
import pandas as pd
import torch

from impossible.distributed import World
from impossible.evaluation import scoring
from impossible.evaluation.scoring import Scorer, Sequences
from impossible.text.arrays import from_lengths
from impossible.text.tokenizer import Tokenizer


def test_sentences_are_scored_in_full_rows_and_do_not_see_each_other() -> None:
    rng = np.random.default_rng(0)
    lengths = rng.integers(2, 30, 1000)
    scored = lengths[lengths <= 28] - 1
    sentences = from_lengths(rng.integers(0, 90, lengths.sum()).astype(np.uint16), lengths)
    seen = []

    def body(ids: torch.Tensor, positions: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """What has been seen until here, on the average, and how much it is."""
        seen.append(ids.numel())
        words = torch.nn.functional.one_hot(ids, 90).float()
        return torch.cat([mask.squeeze(1).softmax(2) @ words, positions.unsqueeze(2) / 28], 2)

    head = torch.randn(90, 91)
    found = scoring.losses(
        Scorer(body, head, context=28),
        Sequences("", Tokenizer(), sentences, pd.DataFrame()),
        World(),
    )
    assert scored.sum() <= sum(seen) < 1.02 * scored.sum()
    assert len(seen) < 1.1 * scored.sum() / 1024
    starts = sentences.offsets[:-1] - np.arange(1000)
    for s, (first, n) in enumerate(zip(starts, lengths, strict=True)):
        ids = torch.from_numpy(sentences.tokens[sentences.offsets[s] :][:n].astype(np.int64))
        count = torch.arange(n - 1).unsqueeze(1)
        average = torch.nn.functional.one_hot(ids[:-1], 90).cumsum(0) / (count + 1)
        logits = torch.cat([average, count / 28], 1) @ head.T
        expected = torch.nn.functional.cross_entropy(logits, ids[1:], reduction="none").numpy()
        if n > 28:
            expected = np.full(n - 1, np.nan)
        np.testing.assert_allclose(found[first : first + n - 1], expected, rtol=1e-4)
