"""Surprisals of markers are those of a plain implementation with transformers."""

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import transformers
from conftest import fail, succeed, write_config
from documented import require_explained

from impossible.evaluation import markers, perplexity
from impossible.evaluation.models import Series
from impossible.evaluation.scoring import Sequences
from impossible.settings import Settings
from impossible.text import token_files
from impossible.text.arrays import from_lengths
from impossible.text.tokenizer import Tokenizer

LANGUAGES = ("no_hop", "token_hop")
SAMPLE = ("--sentences_per_genre=30", "--sample_seed=3")


@pytest.fixture(scope="module")
def runs(corpus_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """language -> the config of a tiny run with exports."""
    folder, found = tmp_path_factory.mktemp("hops"), {}
    for language in LANGUAGES:
        places = {"data_dir": str(folder / language), "out_dir": str(folder / "out" / language)}
        options = {"language": language, "corpus": str(corpus_dir), "block_size": "64"}
        path = folder / f"{language}.py"
        found[language] = write_config(path, **places, **options, tokens_per_step="512")
    succeed("prepare.py", *found.values())
    for path in found.values():
        succeed("train.py", path)
        succeed("convert_to_hf.py", path)
    return found


def plain(export: Path, test: Sequences) -> np.ndarray:
    """The surprisals of each sentence's first marker and of the next token, in bits, (S, 2)."""
    model, found = transformers.GPT2LMHeadModel.from_pretrained(export).eval(), []
    for tokens in test.parts:
        ids = [*tokens.tolist(), 50256]
        place = next(i for i, token in enumerate(ids) if token in (50257, 50258))
        if len(tokens) > 64:
            found.append([np.nan, np.nan])
            continue
        with torch.no_grad():
            logits = model(torch.tensor([ids[:place]])).logits[0, -1].double()
        bits = -logits.log_softmax(-1) / np.log(2)
        found.append([bits[ids[place]].item(), bits[ids[place + 1]].item()])
    return np.array(found)


def test_surprisals_of_markers_are_those_of_transformers(
    runs: dict[str, Path], tmp_path: Path
) -> None:
    printed = succeed("eval.py", *runs.values(), *SAMPLE, "--markers", f"--eval_dir={tmp_path}")
    joint = pd.read_csv(tmp_path / "markers.csv")
    assert joint.model.unique().tolist() == ["NoHop", "TokenHop"]
    assert f"{tmp_path}/markers.png: NoHop; TokenHop" in printed
    means = pd.read_csv(tmp_path / "markers_means.csv")
    assert means["mean"].tolist() == joint["difference"].tolist()
    assert (means[["interval", "n"]] == ["within one run", 1]).all(axis=None)
    for language, config in runs.items():
        data, out_dir = config.parent / language, config.parent / "out" / language
        meta = token_files.read_meta(data)
        test = perplexity.draw(data, meta, 30, 3, marked_only=True)
        assert len(test.columns) > 20
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


def test_seeds_are_summarized_and_paired_with_those_of_the_control(
    runs: dict[str, Path], tmp_path: Path
) -> None:
    paths = []
    for language, config in runs.items():
        for seed in ("1", "2"):
            name = f"{language}-{seed}"
            places = {"data_dir": str(config.parent / language), "out_dir": str(tmp_path / name)}
            shape = {"block_size": "64", "tokens_per_step": "512", "max_steps": "3"}
            made = write_config(
                tmp_path / f"{name}.py", **places, **shape, language=language, seed=seed
            )
            succeed("train.py", made)
            paths.append(made)
    succeed("eval.py", *paths, *SAMPLE, "--markers", f"--eval_dir={tmp_path / 'joint'}")
    table = pd.read_csv(tmp_path / "joint" / "markers.csv")
    values = table.pivot_table(values="difference", index="seed", columns="test_language")
    means = pd.read_csv(tmp_path / "joint" / "markers_means.csv")
    names = {f"markers{kind}.csv" for kind in ("", "_means", "_differences")}
    assert names == require_explained(tmp_path / "joint")
    for row in means.itertuples():
        own = values["no_hop" if row.label == "NoHop" else "token_hop"]
        half = 12.706205 * own.std(ddof=1) / 2**0.5  # t(0.975, 1) by tables
        assert (row.step, row.n, row.interval, row.seeds) == (3, 2, "over seeds", "1 2")
        assert (row.mean, row.low, row.high) == pytest.approx(
            (own.mean(), own.mean() - half, own.mean() + half), abs=1e-6
        )
    assert means.label.tolist() == ["NoHop", "TokenHop"]
    (row,) = pd.read_csv(tmp_path / "joint" / "markers_differences.csv").itertuples()
    paired = values["token_hop"] - values["no_hop"]
    assert (row.label, row.measure, row.n) == ("TokenHop - NoHop", "surprisal_difference", 2)
    assert row.difference == pytest.approx(paired.mean(), abs=1e-6), "on the same sentences"
    assert row.p == row.p_holm
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
    found = markers.sequences(Settings(language="no_hop"), Series("", "", "", "", []))
    parts = [[5, 6, 50257], [5, 6, 50256], [7, 50258], [7, 50258]]
    assert [part.tolist() for part in found.parts] == parts, "what follows the first marker"
    assert found.lengths.tolist() == [3, 3, 5, 5], "of the whole sentences"
