"""Surprisals of markers equal those of a plain implementation with transformers."""

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import transformers
from conftest import fail, succeed
from documented import require_explained

from impossible.evaluation import markers, perplexity
from impossible.evaluation.models import Series
from impossible.evaluation.scoring import Sequences
from impossible.settings import Settings
from impossible.text import token_files
from impossible.text.arrays import from_lengths
from impossible.text.tokenizer import Tokenizer


def plain(export: Path, test: Sequences) -> np.ndarray:
    """The surprisals of each sentence's first marker and of the next token, in bits, (S, 2)."""
    model, surprisals = transformers.GPT2LMHeadModel.from_pretrained(export).eval(), []
    for tokens in test.parts:
        ids = [*tokens.tolist(), 50256]
        place = next(i for i, token in enumerate(ids) if token in (50257, 50258))
        if len(tokens) > 32:
            surprisals.append([np.nan, np.nan])
            continue
        with torch.no_grad():
            logits = model(torch.tensor([ids[:place]])).logits[0, -1].double()
        bits = -logits.log_softmax(-1) / np.log(2)
        surprisals.append([bits[ids[place]].item(), bits[ids[place + 1]].item()])
    return np.array(surprisals)


def test_surprisals_of_markers_are_those_of_transformers(
    hop_runs: dict[str, list[Path]], tmp_path: Path
) -> None:
    configs = [*hop_runs["no_hop"], *hop_runs["token_hop"]]
    sample = ("--sentences_per_genre=40", "--sample_seed=3")
    printed = succeed("eval.py", *configs, *sample, "--markers", f"--eval_dir={tmp_path}")
    assert f"{tmp_path}/markers.png: NoHop (n = 2 seeds); TokenHop" in printed
    names = {f"markers{kind}.csv" for kind in ("", "_means", "_differences")}
    assert names == require_explained(tmp_path)
    for config in (configs[0], configs[2]):
        data = config.parent / f"my_{config.stem.removesuffix('-1')}"
        test = perplexity.draw(data, token_files.read_meta(data), 40, 3, marked_only=True)
        assert len(test.columns) == 40
        out_dir = config.with_suffix("")
        table = pd.read_csv(out_dir / "evaluation" / "markers.csv").set_index("step")
        for step in (3, 6):
            expected = plain(out_dir / "hf" / f"checkpoint-{step}", test)
            row, scored = table.loc[step], expected[~np.isnan(expected[:, 0])]
            marker, following = scored.T
            assert row.surprisal_marker == pytest.approx(marker.mean(), rel=1e-5)
            assert row.surprisal_next == pytest.approx(following.mean(), rel=1e-5)
            assert row.difference == pytest.approx((following - marker).mean(), abs=1e-4)
            half = 1.96 * (following - marker).std(ddof=1) / len(scored) ** 0.5
            assert row.low == pytest.approx(row.difference - half, abs=half / 4)
            assert row.sentences == len(scored)
            assert row.too_long == len(expected) - len(scored) > 0

    table = pd.read_csv(tmp_path / "markers.csv").query("step == 6")
    no_hop, token_hop = (table[table.model == name].difference for name in ("NoHop", "TokenHop"))
    means = pd.read_csv(tmp_path / "markers_means.csv").query("step == 6")
    of_seeds, of_one = means.itertuples()
    half = 12.706205 * no_hop.std(ddof=1) / 2**0.5  # t(0.975, 1) by tables
    assert (of_seeds.label, of_seeds.n, of_seeds.interval) == ("NoHop", 2, "over seeds")
    assert (of_seeds.mean, of_seeds.low, of_seeds.high) == pytest.approx(
        (no_hop.mean(), no_hop.mean() - half, no_hop.mean() + half), abs=1e-6
    )
    assert (of_one.label, of_one.n, of_one.interval) == ("TokenHop", 1, "within one run")
    assert of_one.mean == token_hop.item()
    differences = pd.read_csv(tmp_path / "markers_differences.csv").query("step == 6")
    (row,) = differences.itertuples()
    assert (row.label, row.measure, row.n) == ("TokenHop - NoHop", "surprisal_difference", 1)
    paired = token_hop.item() - no_hop.iloc[0]
    assert row.difference == pytest.approx(paired, abs=1e-6), "on the same sentences"
    assert {row.sentences} == set(table.sentences)
    assert {row.sentences_drawn} == set(table.sentences + table.too_long)


def test_other_languages_have_no_marker_to_be_known(
    trained: Path, data_dir: Path, tmp_path: Path
) -> None:
    skip = shutil.ignore_patterns("evaluation")
    out_dir = shutil.copytree(trained, tmp_path / "out", ignore=skip)
    error = fail("eval.py", f"--out_dir={out_dir}", "--markers")
    assert "--markers works only for the *Hop languages (such as no_hop), not for" in error
    assert not (out_dir / "evaluation").exists(), "a refused command leaves no folder"


def test_a_marker_may_end_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = np.array([5, 6, 50257, 7, 50258, 50258, 8, 9], np.uint16)
    sentences = from_lengths(tokens, np.array([3, 5]))
    sampled = Sequences("no_hop", Tokenizer("🅂🄿"), sentences, pd.DataFrame())
    monkeypatch.setattr(perplexity, "sequences", lambda *_, **__: sampled)
    made = markers.sequences(Settings(language="no_hop"), Series("", "", "", "", []))
    parts = [[5, 6, 50257], [5, 6, 50256], [7, 50258], [7, 50258]]
    assert [part.tolist() for part in made.parts] == parts, "what follows the first marker"
    assert made.lengths.tolist() == [3, 3, 5, 5], "of the whole sentences"
