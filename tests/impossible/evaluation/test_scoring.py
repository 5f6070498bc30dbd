"""The losses of a sentence do not depend on the other sentences in its batch."""

import numpy as np
import pandas as pd
import torch

from impossible.distributed import World
from impossible.evaluation import scoring
from impossible.evaluation.scoring import Scorer, Sequences
from impossible.text.arrays import from_lengths
from impossible.text.tokenizer import Tokenizer


def test_batches_are_hardly_padded_and_no_sentence_sees_the_padding() -> None:
    rng = np.random.default_rng(0)
    lengths = np.append(rng.integers(2, 30, 1000), [1100, 1101, 1300])
    sentences = from_lengths(rng.integers(0, 90, lengths.sum()).astype(np.uint16), lengths)
    shapes = []

    def body(ids: torch.Tensor) -> torch.Tensor:
        """What has been seen until here, on the average, and how much it is."""
        shapes.append(ids.shape)
        count = torch.arange(1, ids.shape[1] + 1).unsqueeze(1)
        average = torch.nn.functional.one_hot(ids, 90).cumsum(1) / count
        return torch.cat([average, (count / 28).expand(len(ids), -1, 1)], 2)

    head = torch.randn(90, 91)
    losses = scoring.losses(
        Scorer(body, head, context=1101),
        Sequences("", Tokenizer(), sentences, pd.DataFrame()),
        World(),
    )
    scored = lengths[lengths <= 1101] - 1
    assert scored.sum() <= sum(rows * width for rows, width in shapes) < 1.1 * scored.sum()
    assert shapes[:2] == [(1, 1100), (1, 1099)], "one long sentence makes no others long"
    assert all(1024 - width < rows * width <= 1024 for rows, width in shapes[2:-1]), "all full"
    starts = sentences.offsets[:-1] - np.arange(len(lengths))
    for s, (first, n) in enumerate(zip(starts, lengths, strict=True)):
        ids = torch.from_numpy(sentences.tokens[sentences.offsets[s] :][:n].astype(np.int64))
        count = torch.arange(1, n).unsqueeze(1)
        average = torch.nn.functional.one_hot(ids[:-1], 90).cumsum(0) / count
        logits = torch.cat([average, count / 28], 1) @ head.T
        expected = torch.nn.functional.cross_entropy(logits, ids[1:], reduction="none").numpy()
        if n > 1101:
            expected = np.full(n - 1, np.nan)
        np.testing.assert_allclose(losses[first : first + n - 1], expected, rtol=1e-4)
