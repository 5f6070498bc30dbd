"""Perplexities equal those of a plain implementation, wherever the models come from."""

import contextlib
import dataclasses
import functools
import json
import os
import random
import shutil
from pathlib import Path
from unittest import mock

import matplotlib.figure
import matplotlib.image
import numpy as np
import pandas as pd
import pytest
import torch
import transformers
from conftest import fail, kill, start, succeed, wait_for, write_config
from documented import require_explained
from hub import Hub, asked_here, serve
from test_train import with_other

import perturb
from impossible import checkpoint, files, records
from impossible.distributed import World
from impossible.evaluation import models, ngrams, perplexity, plots, scoring
from impossible.evaluation.models import Model, Series
from impossible.evaluation.scores import Scores, Source, score
from impossible.evaluation.scoring import Scorer, Sequences
from impossible.settings import Settings, UserError, read_config
from impossible.text import token_files
from impossible.text.tokenizer import Tokenizer

STEPS = (2, 4)
NAMES = [f"checkpoint-{step}" for step in STEPS]
CPU = torch.device("cpu")
SAMPLE = ("--sentences_per_genre=40", "--sample_seed=7")


@pytest.fixture(scope="module")
def run(corpus_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the config, data, checkpoints and exports of a tiny run. Not to be changed."""
    folder = tmp_path_factory.mktemp("evaluated")
    places = {"data_dir": str(folder / "data"), "out_dir": str(folder / "out")}
    shape = {"block_size": "64", "tokens_per_step": "512", "max_steps": "4", "learning_rate": "0.1"}
    options = shape | {"checkpoint_interval": "2", "corpus": str(corpus_dir)}
    config = write_config(folder / "config.py", **places, **options, segmenter="sentencex")
    for command in ("prepare.py", "train.py", "convert_to_hf.py"):
        succeed(command, config)
    return folder


@pytest.fixture
def copied(run: Path, tmp_path: Path) -> Path:
    """The config of a copy of its checkpoints."""
    shutil.copytree(run / "out", tmp_path / "out")
    places = {"out_dir": str(tmp_path / "out"), "eval_dir": str(tmp_path / "joint")}
    return config_with(run / "config.py", tmp_path / "config.py", **places)


@pytest.fixture
def folder(copied: Path) -> Path:
    """The folder of its results."""
    return copied.parent / "out" / "evaluation"


def config_with(config: Path, path: Path, **values: object) -> Path:
    """A config file with other values than another one."""
    values = read_config(config) | values
    path.write_text("".join(f"{name} = {value!r}\n" for name, value in values.items()), "utf-8")
    return path


def variant(config: Path, name: str, sample_seed: int = 0, **settings: object) -> Path:
    """The config of a copy of a run with other weights, as if it had been trained otherwise."""
    out_dir = config.parent / name
    shutil.copytree(config.parent / "out", out_dir)
    for path in checkpoint.list_checkpoints(out_dir):
        loaded = checkpoint.load(path, mmap=False)
        loaded.model["transformer.ln_f.weight"] *= 1 + random.Random(name).random()
        if not settings.get("position_embeddings", True):
            del loaded.model["transformer.wpe.weight"]
        changed = dataclasses.replace(loaded.settings, **settings)
        checkpoint.save(path, dataclasses.replace(loaded, settings=changed))
    values = {"out_dir": str(out_dir), "sample_seed": sample_seed, **settings}
    return config_with(config, out_dir.with_suffix(".py"), **values)


def evaluated(*arguments: str | Path, draws: bool = False, **options: object) -> str:
    """What a command printed. Pictures are empty unless it draws, which is half of the work."""
    blank = contextlib.nullcontext() if draws else mock.patch.object(plots, "_write", write_blank)
    with blank:
        return succeed("eval.py", *arguments, **options)


def write_blank(_: matplotlib.figure.Figure, path: Path) -> None:
    for suffix in (".png", ".pdf"):
        with files.atomic_write(path.with_suffix(suffix)) as file:
            file.write(b"an empty picture")


refused = functools.partial(fail, "eval.py")


def drawn(data: Path) -> Sequences:
    return perplexity.draw(data, token_files.read_meta(data), 40, 7)


def plain(run: Path, data: Path) -> dict[str, np.ndarray]:
    """checkpoint -> the losses that `scoring.losses` must return, one sentence at a time."""
    losses = {name: [] for name in NAMES}
    for name in NAMES:
        model = transformers.GPT2LMHeadModel.from_pretrained(run / "out" / "hf" / name).eval()
        for sentence in drawn(data).parts:
            if len(sentence) > 64:
                losses[name].append(np.full(len(sentence) - 1, np.nan))
                continue
            ids = torch.from_numpy(sentence.astype(np.int64))
            with torch.no_grad():
                logits = model(ids[None]).logits[0, :-1].double()
            losses[name].append(
                torch.nn.functional.cross_entropy(logits, ids[1:], reduction="none")
            )
    return {name: np.concatenate(of_model) for name, of_model in losses.items()}


def table(folder: Path, name: str = "perplexity.csv") -> pd.DataFrame:
    return pd.read_csv(folder / name)


def overall(folder: Path) -> list[float]:
    perplexities = table(folder)
    return perplexities[perplexities.genre == "all"].perplexity.tolist()


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("[a-z]*.*")}


def test_perplexities_are_those_of_one_sentence_at_a_time(
    run: Path, copied: Path, folder: Path
) -> None:
    printed = evaluated(copied, *SAMPLE, "--sentences", "--surprisals", draws=True)
    test, expected = drawn(run / "data"), plain(run, run / "data")
    names = ("sentences.csv", "perplexity.csv", "surprisals.csv")
    sentences, perplexities, surprisals = (table(folder, name) for name in names)
    too_long = test.sentences.lengths > 64
    assert 0 < too_long.sum() < 20
    for name in NAMES:
        parts = np.split(expected[name], test.sentences.offsets[1:-1] - np.arange(1, len(too_long)))
        means = np.array([part.mean() for part in parts])
        values = sentences[sentences.checkpoint == name].perplexity.to_numpy()
        np.testing.assert_allclose(values[~too_long], np.exp(means[~too_long]), rtol=1e-4)
        assert np.isnan(values[too_long]).all(), "not cut without a word"
        rows = perplexities[perplexities.checkpoint == name].set_index("genre")
        assert rows.loc["all"].perplexity == pytest.approx(np.exp(np.nanmean(means)), rel=1e-5)
        assert f"perplexity {rows.loc['all'].perplexity:,.2f}" in printed
        for genre in ("first", "second"):
            chosen = (test.columns["genre"] == genre).to_numpy()
            row, counted = rows.loc[genre], chosen & ~too_long
            assert row.perplexity == pytest.approx(np.exp(means[counted].mean()), rel=1e-5)
            pairs = zip(parts, test.parts, strict=True)
            unmarked = np.array([np.mean(part[ids[1:] < 50257]) for part, ids in pairs])[counted]
            expected_unmarked = pytest.approx(np.exp(np.nanmean(unmarked)), rel=1e-5)
            assert row.perplexity_without_markers == expected_unmarked
            assert (row.sentences, row.too_long) == (counted.sum(), (chosen & too_long).sum())
            assert row.scored_tokens == (test.sentences.lengths[counted] - 1).sum()
        bits = surprisals[surprisals.checkpoint == name].surprisal.to_numpy()
        np.testing.assert_allclose(bits * np.log(2), expected[name], rtol=1e-4, atol=1e-5)
        ids = np.concatenate([part[1:] for part in test.parts])
        assert surprisals[surprisals.checkpoint == name].token_id.tolist() == ids.tolist()
    assert (perplexities.sample_seed == 7).all()
    assert sentences.tokens.tolist() == 2 * test.sentences.lengths.tolist()
    assert surprisals.position.min() == 2, "the first token has none"
    tokenizer = Tokenizer(("🅁",))
    for row in sentences.itertuples():
        ids = [int(token) for token in row.token_ids.split()]
        assert tokenizer.decode(ids) == row.sentence, "though this may not encode back"
    for name, labels in (
        ("perplexity.png", "PartialReverse"),
        ("losses.png", "PartialReverse, training; PartialReverse, validation"),
    ):
        assert f"{name}: {labels}\n" in printed
        assert matplotlib.image.imread(folder / name).std() > 0.05, "not an empty page"


def test_sentences_that_were_drawn_before_are_counted_or_left_out(tmp_path: Path) -> None:
    text = "One two three four.\nOne two three four.\nFive six seven eight.\n"
    for name in ("train", "valid", "test"):
        (tmp_path / f"{name}.txt").write_text(text * 5, encoding="utf-8")
    ids = []
    for language in ("partial_reverse", "nondeterministic_shuffle", "no_shuffle"):
        data = tmp_path / language
        options = (f"--language={language}", "--segmenter=line", f"--data_dir={data}")
        succeed("prepare.py", f"--corpus={tmp_path}", *options)
        meta = token_files.read_meta(data)
        test = perplexity.draw(data, meta, 10, 0)
        assert [*test.counts.values()] == [8]
        assert len(test.columns) == 10
        test = perplexity.draw(data, meta, 10, 0, drop_duplicates=True)
        assert [*test.counts.values()] == [8]
        assert len(test.columns) == len(test.sentences.lengths) == 2
        ids.append(test.columns["id"].tolist())
    assert ids[0] == ids[1] == ids[2], "the same in all languages"


def test_as_many_sentences_are_drawn_as_are_wanted_or_there(run: Path) -> None:
    meta = token_files.read_meta(run / "data")
    counts = [genre["sentences"] for genre in meta.splits["test"]["genres"].values()]
    few, again, other = (perplexity.draw(run / "data", meta, 10, seed) for seed in (0, 0, 1))
    assert few.sha256 == again.sha256 != other.sha256
    golden = [54, 84, 92, 99, 109, 111, 150, 157, 160, 185]
    golden += [2, 82, 96, 111, 131, 133, 136, 144, 148, 203]
    assert few.columns["id"].tolist() == golden
    assert few.columns["genre"].value_counts().tolist() == [10, 10]
    every = perplexity.draw(run / "data", meta, 10**6, 0)
    assert every.columns["genre"].value_counts(sort=False).tolist() == counts
    ids = np.fromfile(run / "data" / "test.bin", "<u2")
    assert every.sentences.tokens.tolist() == ids[ids != meta.eot_token].tolist()
    lengths = dict(zip(perplexity.sentence_ids(every), every.sentences.lengths, strict=True))
    for name, length in zip(perplexity.sentence_ids(few), few.sentences.lengths, strict=True):
        assert length == lengths[name], "the id is the sentence's place in its genre"


def test_a_sentence_has_one_id_in_all_languages_of_a_corpus(tmp_path: Path) -> None:
    """Languages drop different sentences: the *Shuffle ones also those of more than 350 tokens."""
    lines = ["One.", "Yes", "word " * 400, *(f"Sentence {i} is here." for i in range(30))]
    for split in ("100M", "dev", "test"):
        (tmp_path / "text" / split).mkdir(parents=True)
        for genre in ("a", "b"):
            (tmp_path / "text" / split / f"{genre}.txt").write_text("\n".join(lines))
    texts = {}
    for language in ("no_reverse", "full_reverse", "no_shuffle"):
        data_dir = tmp_path / language
        options = [f"--corpus={tmp_path / 'text'}", f"--data_dir={data_dir}", "--segmenter=line"]
        succeed("prepare.py", f"--language={language}", *options)
        test = perplexity.draw(data_dir, token_files.read_meta(data_dir), 10**6, 0)
        decode = Tokenizer(perturb.get(language).markers).decode
        parts = [part[::-1] if language == "full_reverse" else part for part in test.parts]
        decoded = [decode(part[part != 50257]) for part in parts]
        texts[language] = dict(zip(perplexity.sentence_ids(test), decoded, strict=True))
    expected = {f"{g}:{i}": line.strip() for g in "ab" for i, line in enumerate(lines)}
    for of_language in texts.values():
        assert all(expected[name] == text.strip() for name, text in of_language.items())
    assert len(texts["no_shuffle"]) == len(texts["no_reverse"]) - 2


def test_other_test_data_of_the_language_never_replace_the_results(
    run: Path, copied: Path, folder: Path, corpus_dir: Path, tmp_path: Path
) -> None:
    evaluated(copied, *SAMPLE)
    before = contents(folder)
    shutil.copytree(corpus_dir, tmp_path / "text")
    (tmp_path / "text" / "test" / "first.txt").write_text("Another sentence.\n" * 50)
    data = tmp_path / "other"
    succeed("prepare.py", copied, f"--corpus={tmp_path / 'text'}", f"--data_dir={data}")
    printed = evaluated(copied, *SAMPLE, f"--test_data_dir={data}")
    assert contents(folder) == before
    for place, where in ((folder, run / "data"), (None, data)):
        meta = token_files.read_meta(where)
        digits = meta.splits["test"]["sha256"][:8]
        rows = table(place or folder / f"on_partial_reverse-{digits}")
        names = ["test_language", "test_corpus", "test_hash", "sample_seed"]
        (values,) = rows[names].drop_duplicates().to_numpy().tolist()
        assert values == ["partial_reverse", meta.corpus_version, digits, 7]
    assert f"perplexity.png: PartialReverse on other-{digits}\n" in printed


def test_a_run_is_evaluated_and_exported_by_its_folder_alone(copied: Path, folder: Path) -> None:
    evaluated(copied, *SAMPLE)
    expected = overall(folder)
    shutil.rmtree(folder)
    evaluated(f"--out_dir={folder.parent}", *SAMPLE)
    assert overall(folder) == expected
    succeed("convert_to_hf.py", f"--out_dir={folder.parent}")
    assert "no checkpoint-N.pt in" in refused(f"--out_dir={folder.parent / 'none'}")


def test_results_of_a_run_that_may_not_be_written_go_to_eval_dir(
    copied: Path, folder: Path, tmp_path: Path
) -> None:
    folder.symlink_to("/sys")  # not even root may make a folder there
    printed = evaluated(copied, *SAMPLE)
    (place,) = (tmp_path / "joint").iterdir()
    assert place.name.startswith("out-")
    assert f"{tmp_path / 'out'} cannot be written to: its results go to {place}\n" in printed
    assert len(overall(place)) == 2
    (tmp_path / "forbidden").symlink_to("/sys")
    error = refused(copied, *SAMPLE, f"--eval_dir={tmp_path / 'forbidden'}")
    assert f"{tmp_path / 'forbidden'}" in error and ": Operation not permitted. " in error
    assert "choose another folder with --data_dir=, --out_dir= or --eval_dir=" in error


def test_processes_share_the_work_and_compute_the_same(copied: Path, folder: Path) -> None:
    evaluated(copied, *SAMPLE, "--surprisals", draws=True)
    expected = contents(folder)
    shutil.rmtree(folder)
    evaluated(copied, *SAMPLE, "--surprisals", processes=2)
    assert contents(folder) == expected
    assert {"perplexity.csv", "surprisals.csv"} < expected.keys()


def test_an_evaluation_that_was_killed_goes_on(copied: Path, folder: Path) -> None:
    process = start("eval.py", copied, *SAMPLE)
    wait_for(lambda: list(folder.rglob("checkpoint-2.npz")))
    kill(process)
    assert not (folder / "perplexity.csv").exists()
    printed = evaluated(copied, *SAMPLE).splitlines()
    assert printed[0].endswith("(as computed before)")
    assert "as computed before" not in printed[1]
    whole = overall(folder)
    (scores,) = folder.rglob("checkpoint-4.npz")
    scores.write_bytes(scores.read_bytes()[:1000])  # damaged: computed anew
    assert "as computed before" not in evaluated(copied, *SAMPLE).splitlines()[1]
    assert overall(folder) == whole


def test_the_scores_of_a_model_that_changed_are_computed_anew(
    copied: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def known() -> list[bool]:
        return ["as computed before" in line for line in evaluated(copied, *SAMPLE).splitlines()]

    path = folder.parent / "checkpoint-4.pt"
    assert known()[:2] == [False, False]
    before = overall(folder)
    assert known()[:2] == [True, True]
    other = checkpoint.load(path)
    other.model["transformer.ln_f.weight"] *= 1.1
    checkpoint.save(path, other)
    assert known()[:2] == [True, False]
    after = overall(folder)
    assert after[0] == before[0]
    assert after[1] != pytest.approx(before[1], rel=1e-4)
    monkeypatch.setattr(scoring, "VERSION", scoring.VERSION + 1)
    assert known()[:2] == [False, False]
    assert overall(folder) == after
    (series,) = models.find(Settings(out_dir=str(path.parent)), ["checkpoint-4"])
    other.data["corpus_version"] = "another"
    checkpoint.save(path, other)
    (of_other,) = models.find(Settings(out_dir=str(path.parent)), ["checkpoint-4"])
    assert series.recipe != of_other.recipe, "its curve is another one"


def test_exports_and_revisions_on_the_hub_give_the_same_numbers(
    run: Path, copied: Path, folder: Path, tmp_path: Path
) -> None:
    evaluated(copied, *SAMPLE)
    expected = overall(folder)

    def exported(name: str) -> dict[str, tuple[bytes, bool]]:
        paths = (run / "out" / "hf" / name).iterdir()
        return {p.name: (p.read_bytes(), p.suffix == ".safetensors") for p in paths}

    with serve(Hub()) as hub, asked_here(hub, tmp_path / "cache"):
        repo = hub.add_model("ada/impossible")
        for branch in (*NAMES, "main"):
            repo.branches.setdefault(branch, repo.branches["main"])
            repo.commit(branch, "files", exported(NAMES[-1] if branch == "main" else branch))
        printed = evaluated(copied, *SAMPLE, f"--model=run,{run / 'out' / 'hf'},ada/impossible")
        joint = table(tmp_path / "joint")
        for _, rows in joint[joint.genre == "all"].groupby("run"):
            assert rows.step.tolist() == list(STEPS)
            assert rows.perplexity.tolist() == pytest.approx(expected, rel=1e-5)
        assert joint.run.unique().tolist() == ["out", "out/hf", "ada/impossible"]
        assert joint.seed.notna().equals(joint.run == "out"), "unknown of others"
        label = "ada/impossible on PartialReverse"
        assert f": PartialReverse; out/hf on PartialReverse; {label}\n" in printed
        commit = repo.branches["checkpoint-2"]
        command = (copied, *SAMPLE, "--model=ada/impossible")
        printed = evaluated(*command, f"--revisions=checkpoint-4,main,{commit}")
        assert f"{label}, checkpoint-4 (1 of 3): perplexity {expected[1]:,.2f} (as c" in printed
        assert f"{label}, {commit} (3 of 3): perplexity {expected[0]:,.2f}" in printed
        assert f": {label}; {label}, main; {label}, {commit}\n" in printed, "level lines"
        repo.commit(NAMES[1], "moved", exported(NAMES[0]))
        first, second, *_ = evaluated(*command).splitlines()
        assert first.endswith(f"perplexity {expected[0]:,.2f} (as computed before)")
        assert f"checkpoint-4 (2 of 2): perplexity {expected[0]:,.2f}" in second
        assert "as computed before" not in second
        error = refused(copied, *SAMPLE, "--model=ada/other")
        assert "ada/other could not be read from the Hub (404 " in error
        assert "folder of this name either. Expected --model=FOLDER or --model=USER/NAME" in error


def test_a_model_is_evaluated_on_another_language(
    run: Path, copied: Path, folder: Path, corpus_dir: Path, tmp_path: Path
) -> None:
    data = tmp_path / "no_reverse"
    succeed("prepare.py", "--language=no_reverse", f"--corpus={corpus_dir}", f"--data_dir={data}")
    options = ("--test_language=no_reverse", f"--test_data_dir={data}")
    printed = evaluated(copied, *SAMPLE, *options)
    assert f"PartialReverse ({tmp_path / 'out'}) on NoReverse, checkpoint-2 (1 of 2)" in printed
    assert "perplexity.png: PartialReverse on NoReverse\n" in printed
    sha256 = token_files.read_meta(data).splits["test"]["sha256"]
    folder /= f"on_no_reverse-{sha256[:8]}"
    assert (table(folder).test_language == "no_reverse").all()
    expected = [scoring.sentence_losses(drawn(data), x) for x in plain(run, data).values()]
    expected = [np.exp(np.nanmean(means)) for means in expected]
    assert overall(folder) == pytest.approx(expected, rel=1e-5)
    assert "contains no_reverse, but sentences of partial_reverse are needed" in refused(
        copied, f"--test_data_dir={data}"
    )
    places = {"language": "no_reverse", "data_dir": str(data)}
    other = config_with(copied, tmp_path / "other.py", **places)
    model = f"--model={run / 'out' / 'hf'}"  # one model, the sentences of two languages
    printed = evaluated(copied, other, *SAMPLE, model)
    assert "png: out/hf on PartialReverse; out/hf on NoReverse\n" in printed
    error = refused(copied, "--test_language=even_odd_shuffle", "--model=hub/unasked")
    assert "no prepared sentences of even_odd_shuffle in data/even_odd_shuffle. Prepare" in error
    assert "--language=even_odd_shuffle and --data_dir=" in error
    assert f"--tokenizer={run / 'data'}). If they are in another folder, set --test_data" in error


def test_seeds_of_one_language_are_drawn_as_their_mean(copied: Path, tmp_path: Path) -> None:
    seeds = ({"seed": 1, "order_seed": 0}, {"seed": 2, "init_seed": 7})
    paths = [variant(copied, f"out{s['seed']}", sample_seed=s["seed"], **s) for s in seeds]
    printed = evaluated(copied, *paths, *SAMPLE)
    assert "perplexity.png: PartialReverse (n = 3 seeds)\n" in printed
    assert "losses.png: PartialReverse, training (n = 3 seeds); PartialReverse, val" in printed
    joint = table(tmp_path / "joint")
    assert joint[joint.genre == "all"].groupby("seed").size().to_dict() == {1: 2, 2: 2, 41: 2}
    for row in table(tmp_path / "joint", "perplexity_means.csv").itertuples():
        own = joint[(joint.genre == "all") & (joint.step == row.step)].perplexity
        half = 4.302653 * own.std(ddof=1) / 3**0.5  # t(0.975, 2) by tables
        assert (row.label, row.n, row.interval) == ("PartialReverse", 3, "over seeds")
        assert row.mean == pytest.approx(own.mean())
        assert (row.low, row.high) == pytest.approx((own.mean() - half, own.mean() + half))
    used = joint.groupby("seed")[["init_seed", "order_seed", "data_seed"]].first()
    assert used.to_numpy().tolist() == [[1, 0, 41], [7, 2, 41], [41, 41, 41]], "else as seed"
    printed = evaluated(copied, *paths, "--sentences_per_genre=40")  # each with its own sample
    assert "perplexity.png: PartialReverse (n = 3 seeds)\n" in printed
    assert table(tmp_path / "joint").sample_seed.unique().tolist() == [0, 1, 2]
    (tmp_path / "out2" / "checkpoint-2.pt").unlink()
    printed = evaluated(copied, *paths, *SAMPLE)
    assert "PartialReverse: left out the steps 2, which some seeds lack" in printed
    assert "is named twice" in refused(copied, copied, *SAMPLE)


def test_runs_that_differ_in_more_than_their_seed_are_drawn_apart(run: Path, copied: Path) -> None:
    """One of them without position embeddings, with a label of its own."""
    changes = {"other": {"dropout": 0.5}, "none": {"position_embeddings": False}}
    paths = [variant(copied, name, **changed) for name, changed in changes.items()]
    hub_like = f"--model=run,{run / 'out' / 'hf'}"
    printed = evaluated(copied, *paths, *SAMPLE, hub_like)
    labels = printed.split("perplexity.png: ")[-1].split("\n")[0].split("; ")
    assert labels == [
        "PartialReverse (out)",
        "out/hf on PartialReverse",
        "PartialReverse (other)",
        "PartialReverse without positions",
    ]
    assert "png: PartialReverse (out), training; " in printed
    assert "; PartialReverse (other), validation; " in printed


def test_entropies_of_the_language_stand_beside_its_perplexities(
    run: Path, copied: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluated(copied, *SAMPLE, "--entropies")
    meta = token_files.read_meta(run / "data")
    train, test = (
        token_files.open_blocks(run / "data", meta, split, 1)[:, 0] for split in ("train", "test")
    )
    expected = ngrams.entropies(train, test, 50258, 50256)
    entropies = table(folder, "entropies.csv")
    assert entropies.n.tolist() == [1, 2, 3, 4, 5]
    assert entropies.all_bits.tolist() == pytest.approx([e.all for e in expected.values()])
    assert entropies.local_bits.tolist() == pytest.approx([e.local for e in expected.values()])
    assert 5 < entropies.all_bits[1] < entropies.all_bits[0] < 16
    rows = table(folder)
    assert (rows.bigram_bits.isna() == (rows.genre != "all")).all(), "of the whole split"
    row = rows.iloc[-1]
    assert row.bigram_bits == pytest.approx(expected[2].all)
    assert row.local_5_bits == pytest.approx(expected[5].local)
    printed = evaluated(copied, *SAMPLE, "--entropies")
    assert "n-gram models" not in printed, "they are kept"
    for split in ("train", "test"):
        ngrams.of_data.cache_clear()
        ngrams.of_data(with_other(run / "data", split, tmp_path), tmp_path / "joint")
        assert "n-gram models" in capsys.readouterr().out, "of other data"


def test_tables_of_sentences_and_tokens_are_long_and_joint(
    copied: Path, folder: Path, tmp_path: Path
) -> None:
    second = variant(copied, "second/out")  # the same name elsewhere
    evaluated(copied, second, *SAMPLE, "--sentences", "--surprisals", "--entropies")
    about = ["model", "run", "seed", "init_seed", "order_seed", "data_seed", "test_language"]
    for name, values in (("sentences", "perplexity"), ("surprisals", "surprisal")):
        joint = table(tmp_path / "joint", f"{name}.csv")
        assert {*about, "checkpoint", "step", "sentence_id", values} <= set(joint.columns)
        own = table(folder, f"{name}.csv")
        assert joint.run.nunique() == 2, "digits tell runs of one name apart"
        assert joint.run.str.startswith("out-").all()
        assert own.step.unique().tolist() == list(STEPS)
        pd.testing.assert_frame_equal(joint.iloc[: len(own)], own)
        assert len(joint) == 2 * len(own)
        assert set(joint["drop_duplicates"]) == {0}, "no word for a number"
    for path in tmp_path.rglob("*.csv"):
        assert str(tmp_path) not in path.read_text(encoding="utf-8"), "no local path"
    names = ("perplexity", "perplexity_means", "sentences", "surprisals", "entropies")
    assert {f"{name}.csv" for name in names} == require_explained(tmp_path / "joint")


def test_results_of_other_models_do_not_stay_beside_new_ones(
    copied: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All are replaced at once, so that no two files are of different models."""
    evaluated(copied, *SAMPLE, "--entropies", "--sentences", "--surprisals")
    (folder / "mine.csv").write_text("a,b\n")
    names = contents(folder).keys()
    evaluated(copied, *SAMPLE)
    assert contents(folder).keys() == names, "they are of the same models and sentences"
    before = contents(folder)

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(ngrams, "table", interrupt)
        assert "interrupted" in refused(copied, "--sentences_per_genre=20", "--entropies")
    assert contents(folder) == before
    assert not list(folder.glob("*.unfinished"))
    (folder / "perplexity.png").unlink()  # as if the command before had been killed
    evaluated(copied, "--sentences_per_genre=20")
    pictures = {f"{name}.{kind}" for name in ("losses", "perplexity") for kind in ("png", "pdf")}
    assert contents(folder).keys() == {"mine.csv", "perplexity.csv", *pictures}


def test_a_file_that_no_evaluation_wrote_is_never_replaced(
    copied: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    joint, both = tmp_path / "joint", (copied, variant(copied, "second"), *SAMPLE)
    evaluated(*both)

    def scored(*_: object) -> None:
        raise AssertionError("it was scored")

    for path, is_known in (
        (folder / "perplexity.csv", True),
        (folder / "losses.png", True),
        (joint / "perplexity.csv", True),
        (folder / "sentences.csv", False),
    ):
        whole = path.read_bytes() if is_known else None
        path.write_text("mine\n")
        before = contents(folder), contents(joint)
        with monkeypatch.context() as patch:
            if is_known:  # else this is seen before the results are put there
                patch.setattr(scoring, "losses", scored)
            error = refused(*both, "--sentences")
        assert f"{path} was not written by an evaluation, or was changed since." in error
        assert (contents(folder), contents(joint)) == before
        path.write_bytes(whole) if is_known else path.unlink()
    evaluated(*both, "--sentences")


def test_results_are_written_by_one_command_at_a_time(
    copied: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of each run, and the joint ones."""
    locked, folders = [], (folder, tmp_path / "joint")
    replace = records.replace_results

    def seen(*arguments: object) -> None:
        locked.append([files.is_locked(folder) for folder in folders])
        replace(*arguments)

    monkeypatch.setattr(records, "replace_results", seen)
    evaluated(copied, *SAMPLE, f"--model=run,{tmp_path / 'out' / 'hf'}")
    assert locked == [[True, False], [False, False], [False, True]]


@pytest.mark.parametrize(
    ("head", "reason"),
    [
        (torch.zeros(50257, 1), " has a vocabulary of 50,257 tokens, and the sentences of"),
        (torch.full((50258, 1), torch.nan), ": the perplexity of [0-9]+ sentences is not"),
        (torch.arange(50258.0)[:, None], ": the perplexity of [0-9]+ sentences is not"),
    ],
)
def test_a_model_that_gives_no_numbers_is_refused(
    head: torch.Tensor, reason: str, run: Path, tmp_path: Path
) -> None:
    scorer = Scorer(lambda ids, *_: ids[:, :, None].float(), head, context=64)
    series = Series("Mine", "mine", "Mine", "", [Model("checkpoint-1", str, lambda _: scorer)])
    unscored = Scores(Settings(eval_dir=str(tmp_path)), series, Source("", ""))
    with pytest.raises(UserError, match=f"Mine, checkpoint-1{reason}"):
        score(unscored, drawn(run / "data"), perplexity.result, World(), CPU)
    assert not list(tmp_path.rglob("*.npz"))


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"quantization_config": {"quant_method": "gptq"}}, "with a quantization_config. Expected"),
        ({"n_layer": "2"}, "Field 'n_layer' expected int, got str"),
        ({"dtype": "nonsense"}, "nonsense"),
        ({"id2label": 3}, "cannot be loaded"),
        ({"activation_function": "nope"}, "nope"),
        ({"n_layer": 9}, "missing, unknown or of another shape: transformer.h."),
        ({"n_embd": 8, "n_head": 2}, "of another shape: ('transformer"),
        ({"n_embd": 0, "n_head": 0}, "cannot be loaded"),
        (
            {"architectures": ["GPT2NoPositionalEncodingLMHeadModel"]},
            "EncodingLMHeadModel']. Expected",
        ),
        ({"architectures": 5}, "is a model of the kind 5. Expected a plain"),
        ([], "is a model of the kind []. Expected a plain"),
    ],
)
def test_a_config_with_odd_values_is_refused(
    changed: dict[str, object] | list, reason: str, run: Path, tmp_path: Path
) -> None:
    shutil.copytree(run / "out" / "hf" / "checkpoint-4", tmp_path / "odd")
    path = tmp_path / "odd" / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    changed = config | changed if isinstance(changed, dict) else changed
    path.write_text(json.dumps(changed), encoding="utf-8")
    with pytest.raises(UserError) as error:
        models.find(Settings(model=str(tmp_path / "odd")), [])[0].models[0].load(CPU)
    assert reason in str(error.value)
    assert "\n" not in str(error.value)
    assert transformers.utils.logging.get_verbosity() >= 40, "it reports nothing itself"


def test_the_config_of_a_model_does_not_choose_the_code_of_its_attention(
    run: Path, tmp_path: Path
) -> None:
    """transformers would fetch code for the name of a repo. (The folder's name has a comma.)"""
    whole = run / "out" / "hf" / "checkpoint-4"
    shutil.copytree(whole, tmp_path / "a,b")
    path = tmp_path / "a,b" / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(config | {"attn_implementation": "org/kernel"}), encoding="utf-8")
    tokens = torch.arange(8)[None]
    outputs = []
    for folder in (whole, tmp_path / "a,b"):
        (model,) = models.find(Settings(model=str(folder)), [])[0].models
        outputs.append(model.load(CPU).body(tokens))
    assert torch.equal(*outputs)


def test_what_cannot_be_evaluated_is_refused(run: Path, copied: Path, tmp_path: Path) -> None:
    error = refused(copied, f"--out_dir={tmp_path / 'none'}")
    assert "Train first (train.py" in error
    (tmp_path / "empty").mkdir()
    assert "holds no exported model" in refused(copied, f"--model={tmp_path / 'empty'}")
    error = refused(copied, f"--model={tmp_path / 'out'}")
    assert f"If it is a run, set --out_dir={tmp_path / 'out'} for its checkpoints, or" in error
    assert "--test_data_dir=" in refused(copied, f"--test_data_dir={tmp_path / 'empty'}")
    odd = tmp_path / "models" / os.fsdecode(b"caf\xe9")
    shutil.copytree(run / "out" / "hf" / "checkpoint-4", odd)
    assert "is not UTF-8. Rename it" in refused(copied, f"--model={odd.parent}")
    assert "has no checkpoint-9" in refused(copied, "--revisions=checkpoint-9")
    shutil.copytree(run / "out" / "hf" / "checkpoint-4", tmp_path / "cut")
    weights = tmp_path / "cut" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    assert "cannot be loaded" in refused(copied, f"--model={tmp_path / 'cut'}")
    shutil.copytree(run / "data", tmp_path / "data")
    (tmp_path / "data" / "test_ids.bin").unlink()
    error = refused(copied, f"--test_data_dir={tmp_path / 'data'}")
    assert "test_ids.bin is missing or damaged" in error
    meta = tmp_path / "data" / "meta.json"
    meta.write_text(meta.read_text(encoding="utf-8").replace('"second"', '"all"'))
    error = refused(copied, f"--test_data_dir={tmp_path / 'data'}")
    assert "the test split has a genre named 'all'" in error
    shutil.copy(tmp_path / "out" / "checkpoint-2.pt", tmp_path / "out" / "checkpoint-3.pt")
    assert "checkpoint-3.pt holds step 2: it was renamed or copied" in refused(copied)
