"""Perplexities are those of a plain implementation, whatever the models come from."""

import contextlib
import io
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import matplotlib.figure
import matplotlib.image
import numpy as np
import pandas as pd
import pytest
import torch
import transformers
from conftest import ROOT, fail, kill, start, succeed, write_config
from hub import Hub, serve

import perturb
from impossible import checkpoint, files
from impossible.distributed import World
from impossible.evaluation import curves, ngrams, pictures, results, scoring, series, tables
from impossible.evaluation.scoring import Scorer
from impossible.evaluation.series import Member
from impossible.settings import Settings, UserError, load
from impossible.text import token_files
from impossible.text.arrays import from_lengths
from impossible.text.tokenizer import Tokenizer

COMMAND = runpy.run_path(str(ROOT / "eval.py"))
STEPS = (2, 4)
NAMES = [f"checkpoint-{step}" for step in STEPS]
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
    text = (run / "config.py").read_text(encoding="utf-8")
    text = text.replace(str(run / "out"), str(tmp_path / "out"))
    path = tmp_path / "config.py"
    path.write_text(f"{text}eval_dir = {str(tmp_path / 'joint')!r}\n", encoding="utf-8")
    return path


def evaluated(*arguments: str | Path) -> str:
    """Run the command within this process; what it printed."""
    arguments = list(map(str, arguments))
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        COMMAND["main"](load("eval.py", arguments, checkpoint.settings_of_run))
    return printed.getvalue()


def refused(*arguments: str | Path) -> str:
    """Run the command within this process, which must refuse; the error."""
    with pytest.raises(UserError) as error:
        evaluated(*arguments)
    return str(error.value)


def drawn(data: Path) -> scoring.TestSet:
    return scoring.draw(data, token_files.read_meta(data), 40, 7)


def plain(run: Path, data: Path) -> dict[str, np.ndarray]:
    """checkpoint -> the losses that `scoring.losses` is to find, one sentence at a time."""
    test, found = drawn(data), {}
    for name in NAMES:
        model = transformers.GPT2LMHeadModel.from_pretrained(run / "out" / "hf" / name).eval()
        losses = []
        for sentence in np.split(test.sentences.tokens, test.sentences.offsets[1:-1]):
            if len(sentence) > 64:
                losses.append(np.full(len(sentence) - 1, np.nan))
                continue
            ids = torch.from_numpy(sentence.astype(np.int64))
            with torch.no_grad():
                logits = model(ids[None]).logits[0, :-1].double()
            losses.append(torch.nn.functional.cross_entropy(logits, ids[1:], reduction="none"))
        found[name] = np.concatenate(losses)
    return found


def table(folder: Path, name: str = "perplexity.csv") -> pd.DataFrame:
    return pd.read_csv(folder / name)


def overall(folder: Path) -> list[float]:
    found = table(folder)
    return found[found.genre == "all"].perplexity.tolist()


def test_perplexities_are_those_of_one_sentence_at_a_time(run: Path, copied: Path) -> None:
    options = ("--sentences", "--surprisals")
    printed = evaluated(copied, *SAMPLE, *options)
    folder = copied.parent / "out" / "evaluation"
    test, expected = drawn(run / "data"), plain(run, run / "data")
    sentences = table(folder, "sentences.csv")
    perplexities = table(folder)
    surprisals = table(folder, "surprisals.csv")
    too_long = test.sentences.lengths > 64
    assert 0 < too_long.sum() < 20
    for name in NAMES:
        parts = np.split(expected[name], test.sentences.offsets[1:-1] - np.arange(1, len(too_long)))
        means = np.array([part.mean() for part in parts])
        found = sentences[sentences.checkpoint == name].perplexity.to_numpy()
        np.testing.assert_allclose(found[~too_long], np.exp(means[~too_long]), rtol=1e-4)
        assert np.isnan(found[too_long]).all(), "not cut without a word"
        rows = perplexities[perplexities.checkpoint == name].set_index("genre")
        assert rows.loc["all"].perplexity == pytest.approx(np.exp(np.nanmean(means)), rel=1e-5)
        assert f"perplexity {rows.loc['all'].perplexity:,.2f}" in printed
        for place, genre in enumerate(test.genres):
            chosen = test.genre == place
            row, counted = rows.loc[genre], chosen & ~too_long
            assert row.perplexity == pytest.approx(np.exp(means[counted].mean()), rel=1e-5)
            unmarked = np.array(
                [
                    np.mean([x for x, token in zip(part, tokens[1:], strict=True) if token < 50257])
                    for part, tokens in zip(parts, test.tokens_of(range(len(parts))), strict=True)
                ]
            )[counted]
            assert row.perplexity_without_markers == pytest.approx(
                np.exp(np.nanmean(unmarked)), rel=1e-5
            )
            assert (row.sentences, row.too_long) == (counted.sum(), (chosen & too_long).sum())
            assert row.scored_tokens == (test.sentences.lengths[counted] - 1).sum()
        bits = surprisals[surprisals.checkpoint == name].surprisal.to_numpy()
        np.testing.assert_allclose(bits * np.log(2), expected[name], rtol=1e-4, atol=1e-5)
    assert (perplexities.sample_seed == 7).all()
    assert sentences.tokens.tolist() == 2 * test.sentences.lengths.tolist()
    assert surprisals.position.min() == 2, "the first token has none"
    pictures.draw([], "nothing", folder / "empty.png", logarithmic=True)
    empty = matplotlib.image.imread(folder / "empty.png")
    for name, labels in (
        ("perplexity.png", "PartialReverse"),
        ("losses.png", "PartialReverse, training; PartialReverse, validation"),
    ):
        assert f"{name}: {labels}\n" in printed
        drawn_picture = matplotlib.image.imread(folder / name)
        assert np.abs(drawn_picture - empty).mean() > 0.01


def test_sentences_that_were_drawn_before_are_counted_or_left_out(tmp_path: Path) -> None:
    text = "One two three four.\nOne two three four.\nFive six seven eight.\n"
    for name in ("train", "valid", "test"):
        (tmp_path / f"{name}.txt").write_text(text * 5, encoding="utf-8")
    found = []
    for language in ("partial_reverse", "nondeterministic_shuffle", "no_shuffle"):
        data = tmp_path / language
        options = (f"--language={language}", "--segmenter=line", f"--data_dir={data}")
        succeed("prepare.py", f"--corpus={tmp_path}", *options)
        meta = token_files.read_meta(data)
        test = scoring.draw(data, meta, 10, 0)
        assert test.duplicates.tolist() == [8]
        assert len(test.ids) == 10
        test = scoring.draw(data, meta, 10, 0, drop_duplicates=True)
        assert test.duplicates.tolist() == [8]
        assert len(test.ids) == len(test.sentences.lengths) == len(test.genre) == 2
        found.append(test.ids.tolist())
    assert found[0] == found[1] == found[2], "the same in all languages"


def test_as_many_sentences_are_drawn_as_are_wanted_or_there(run: Path) -> None:
    meta = token_files.read_meta(run / "data")
    counts = [genre["sentences"] for genre in meta.splits["test"]["genres"].values()]
    few, again, other = (scoring.draw(run / "data", meta, 10, seed) for seed in (0, 0, 1))
    hashes = [scoring.sha256_of(test.sentences) for test in (few, again, other)]
    assert hashes[0] == hashes[1] != hashes[2]
    assert np.bincount(few.genre).tolist() == [10, 10]
    every = scoring.draw(run / "data", meta, 10**6, 0)
    assert np.bincount(every.genre).tolist() == counts
    ids = np.fromfile(run / "data" / "test.bin", "<u2")
    assert every.sentences.tokens.tolist() == ids[ids != meta.eot_token].tolist()
    first = dict(zip(every.ids, every.sentences.lengths, strict=True))  # of the last genre
    for n, length in zip(few.ids[few.genre == 1], few.sentences.lengths[10:], strict=True):
        assert length == first[n], "the id is the sentence's place in its genre"


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
        test = scoring.draw(data_dir, token_files.read_meta(data_dir), 10**6, 0)
        decode = Tokenizer(perturb.get(language).markers).decode
        parts = np.split(test.sentences.tokens, test.sentences.offsets[1:-1])
        if language == "full_reverse":
            parts = [part[::-1] for part in parts]
        found = [decode(part[part != 50257]) for part in parts]
        texts[language] = dict(zip(tables._sentence_ids(test), found, strict=True))
    expected = {f"{g}:{i}": line.strip() for g in "ab" for i, line in enumerate(lines)}
    for found in texts.values():
        assert all(expected[name] == text.strip() for name, text in found.items())
    assert len(texts["no_shuffle"]) == len(texts["no_reverse"]) - 2


def test_data_of_an_older_program_is_prepared_again_with_the_same_tokens(
    run: Path, copied: Path, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    shutil.copytree(run / "data", data)
    config = tmp_path / "older.py"
    text = copied.read_text(encoding="utf-8").replace(str(run / "data"), str(data))
    config.write_text(text, encoding="utf-8")
    (data / "test_ids.bin").unlink()
    assert "test_ids.bin is missing or damaged" in refused(config, *SAMPLE)
    assert "is trained already" in succeed("train.py", config)
    before = (data / "test.bin").read_bytes()
    assert "Doing so now" in succeed("prepare.py", config)
    assert (data / "test.bin").read_bytes() == before
    evaluated(config, *SAMPLE)


def test_other_test_data_of_the_language_never_replace_the_results(
    run: Path, copied: Path, corpus_dir: Path, tmp_path: Path
) -> None:
    evaluated(copied, *SAMPLE, "--sentences", "--surprisals")
    folder = copied.parent / "out" / "evaluation"
    before = {path.name: path.read_bytes() for path in folder.glob("*.*")}
    shutil.copytree(corpus_dir, tmp_path / "text")
    (tmp_path / "text" / "test" / "first.txt").write_text("Another sentence.\n" * 50)
    data = tmp_path / "other"
    succeed("prepare.py", copied, f"--corpus={tmp_path / 'text'}", f"--data_dir={data}")
    printed = evaluated(copied, *SAMPLE, f"--test_data_dir={data}", "--sentences")
    sha256 = token_files.read_meta(data).splits["test"]["sha256"]
    assert f"perplexity.png: PartialReverse on other-{sha256[:8]}\n" in printed
    assert {path.name: path.read_bytes() for path in folder.glob("*.*")} == before
    other = folder / f"on_partial_reverse-{sha256[:8]}"
    for place, corpus, where in ((folder, corpus_dir, run / "data"), (other, "text", data)):
        for name in ("perplexity.csv", "sentences.csv"):
            found = table(place, name)
            split = token_files.read_meta(where).splits["test"]
            assert (found.test_hash == split["sha256"][:8]).all(), corpus
            assert (found.test_language == "partial_reverse").all()
            assert (found.test_corpus == token_files.read_meta(where).corpus_version).all()
            assert (found.sample_seed == 7).all()


def test_the_ids_of_tokens_are_told_for_what_does_not_encode_back(copied: Path) -> None:
    evaluated(copied, *SAMPLE, "--sentences")
    found = table(copied.parent / "out" / "evaluation", "sentences.csv")
    tokenizer = Tokenizer(("🅁",))
    for row in found.itertuples():
        ids = [int(token) for token in row.token_ids.split()]
        assert len(ids) == row.tokens
        assert tokenizer.decode(ids) == row.sentence


def test_a_run_is_evaluated_and_exported_by_its_folder_alone(run: Path, copied: Path) -> None:
    out_dir = copied.parent / "out"
    evaluated(copied, *SAMPLE)
    expected = overall(out_dir / "evaluation")
    shutil.rmtree(out_dir / "evaluation")
    evaluated(f"--out_dir={out_dir}", *SAMPLE)
    assert overall(out_dir / "evaluation") == expected
    succeed("convert_to_hf.py", f"--out_dir={out_dir}")
    assert "no checkpoint-N.pt in" in refused(f"--out_dir={out_dir / 'none'}")


def test_results_of_a_run_that_may_not_be_written_go_to_eval_dir(
    copied: Path, tmp_path: Path
) -> None:
    folder = copied.parent / "out" / "evaluation"
    folder.symlink_to("/sys")  # not even root may make a folder there
    printed = evaluated(copied, *SAMPLE)
    (place,) = (tmp_path / "joint").iterdir()
    assert place.name.startswith("out-")
    assert f"{tmp_path / 'out'} cannot be written to: its results go to {place}\n" in printed
    assert len(overall(place)) == 2
    (tmp_path / "forbidden").symlink_to("/sys")
    error = refused(copied, *SAMPLE, f"--eval_dir={tmp_path / 'forbidden'}")
    assert "cannot be created (Operation not permitted). Set --eval_dir=" in error


def test_processes_share_the_work_and_find_the_same(run: Path, copied: Path) -> None:
    succeed("eval.py", copied, *SAMPLE, "--surprisals")
    one = {p.name: p.read_bytes() for p in (copied.parent / "out" / "evaluation").glob("*.csv")}
    shutil.rmtree(copied.parent / "out" / "evaluation")
    succeed("eval.py", copied, *SAMPLE, "--surprisals", processes=2)
    two = {p.name: p.read_bytes() for p in (copied.parent / "out" / "evaluation").glob("*.csv")}
    assert one == two
    assert len(one) == 2


def test_an_evaluation_that_was_killed_goes_on(copied: Path) -> None:
    folder = copied.parent / "out" / "evaluation"
    process = start("eval.py", copied, *SAMPLE, env={"PYTHONUNBUFFERED": "1"})
    assert "checkpoint-2 (1 of 2)" in process.stdout.readline()
    kill(process)
    assert not (folder / "perplexity.csv").exists()
    printed = succeed("eval.py", copied, *SAMPLE).splitlines()
    assert printed[0].endswith("(as computed before)")
    assert "as computed before" not in printed[1]
    whole = overall(folder)
    (scores,) = folder.rglob("checkpoint-4.npz")
    scores.write_bytes(scores.read_bytes()[:1000])  # damaged: computed anew
    assert "as computed before" not in succeed("eval.py", copied, *SAMPLE).splitlines()[1]
    assert overall(folder) == whole


def test_the_scores_of_a_model_that_changed_are_computed_anew(
    copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def known() -> list[bool]:
        return ["as computed before" in line for line in evaluated(copied, *SAMPLE).splitlines()]

    folder, path = copied.parent / "out" / "evaluation", copied.parent / "out" / "checkpoint-4.pt"
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


def test_exports_and_revisions_on_the_hub_give_the_same_numbers(
    run: Path, copied: Path, tmp_path: Path
) -> None:
    succeed("eval.py", copied, *SAMPLE)
    expected = overall(copied.parent / "out" / "evaluation")
    with serve(Hub()) as hub:
        repo = hub.add_model("ada/impossible")
        for branch in (*NAMES, "main"):
            folder = run / "out" / "hf" / (NAMES[-1] if branch == "main" else branch)
            repo.branches.setdefault(branch, repo.branches["main"])
            tree = {p.name: (p.read_bytes(), p.suffix == ".safetensors") for p in folder.iterdir()}
            repo.commit(branch, "files", tree)
        env = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home")}
        models = f"--model=run,{run / 'out' / 'hf'},ada/impossible"
        printed = succeed("eval.py", copied, *SAMPLE, models, env=env)
        joint = table(tmp_path / "joint")
        for _, rows in joint[joint.genre == "all"].groupby("run"):
            assert rows.step.tolist() == list(STEPS)
            assert rows.perplexity.tolist() == pytest.approx(expected, rel=1e-5)
        assert joint.run.unique().tolist() == ["out", "out/hf", "ada/impossible"]
        folder = "out/hf on PartialReverse"
        assert f": PartialReverse; {folder}; ada/impossible on PartialReverse\n" in printed
        commit = repo.branches["checkpoint-2"]
        revisions = f"--revisions=checkpoint-4,main,{commit}"
        command = ("eval.py", copied, *SAMPLE, "--model=ada/impossible")
        printed = succeed(*command, revisions, env=env)
        label = "ada/impossible on PartialReverse"
        assert f"{label}, checkpoint-4 (1 of 3): perplexity {expected[1]:,.2f} (as c" in printed
        assert f"{label}, {commit} (3 of 3): perplexity {expected[0]:,.2f}" in printed
        assert f": {label}; {label}, main; {label}, {commit}\n" in printed, "level lines"
        moved = {p.name: p.read_bytes() for p in (run / "out" / "hf" / NAMES[0]).iterdir()}
        repo.commit(NAMES[1], "moved", {k: (v, k == "model.safetensors") for k, v in moved.items()})
        first, second, *_ = succeed(*command, env=env).splitlines()
        assert first.endswith(f"perplexity {expected[0]:,.2f} (as computed before)")
        assert f"checkpoint-4 (2 of 2): perplexity {expected[0]:,.2f}" in second
        assert "as computed before" not in second
        error = fail("eval.py", copied, *SAMPLE, "--model=ada/other", env=env)
        assert "'ada/other' is neither a local folder nor a model repo on the Hub" in error


def test_a_model_is_evaluated_on_another_language(
    run: Path, copied: Path, corpus_dir: Path, tmp_path: Path
) -> None:
    data = tmp_path / "no_reverse"
    succeed("prepare.py", "--language=no_reverse", f"--corpus={corpus_dir}", f"--data_dir={data}")
    options = ("--test_language=no_reverse", f"--test_data_dir={data}")
    printed = evaluated(copied, *SAMPLE, *options)
    assert f"PartialReverse ({tmp_path / 'out'}) on NoReverse, checkpoint-2 (1 of 2)" in printed
    assert "perplexity.png: PartialReverse on NoReverse\n" in printed
    sha256 = token_files.read_meta(data).splits["test"]["sha256"]
    folder = copied.parent / "out" / "evaluation" / f"on_no_reverse-{sha256[:8]}"
    assert (table(folder).test_language == "no_reverse").all()
    expected = [
        scoring.sentence_losses(x, drawn(data).sentences) for x in plain(run, data).values()
    ]
    expected = [np.exp(np.nanmean(means)) for means in expected]
    assert overall(folder) == pytest.approx(expected, rel=1e-5)
    assert "contains no_reverse, but sentences of partial_reverse are needed" in refused(
        copied, f"--test_data_dir={data}"
    )
    other = tmp_path / "other.py"
    text = copied.read_text(encoding="utf-8").replace("'partial_reverse'", "'no_reverse'")
    text = text.replace(str(run / "data"), str(data))
    other.write_text(f"{text}language = 'no_reverse'\n", encoding="utf-8")
    model = f"--model={run / 'out' / 'hf'}"  # one model, the sentences of two languages
    printed = evaluated(copied, other, *SAMPLE, model)
    assert "png: out/hf on PartialReverse; out/hf on NoReverse\n" in printed
    error = refused(copied, "--test_language=even_odd_shuffle", "--model=hub/unasked")
    command = "own data: python prepare.py --language=even_odd_shuffle"
    assert f"{command} --corpus={corpus_dir} --data_dir=data/even_odd_shuffle (" in error
    text = copied.read_text(encoding="utf-8").replace(f"corpus = '{corpus_dir}'", "")
    copied.write_text(text, encoding="utf-8")  # as if it had been named on the command line
    error = refused(copied, "--test_language=no_reverse", "--test_data_dir=data/my own")
    assert f"no_reverse --corpus={corpus_dir} '--data_dir=data/my own' (" in error


def test_seeds_of_one_language_are_drawn_as_their_mean(copied: Path, tmp_path: Path) -> None:
    paths = []
    for seed in (1, 2):
        text = copied.read_text(encoding="utf-8").replace("/out'", f"/out{seed}'")
        paths.append(tmp_path / f"seed{seed}.py")
        paths[-1].write_text(f"{text}seed = {seed}\nsample_seed = {seed}\n", encoding="utf-8")
        succeed("train.py", paths[-1])
    printed = evaluated(copied, *paths, *SAMPLE)
    assert "perplexity.png: PartialReverse (n = 3)\n" in printed
    assert "losses.png: PartialReverse, training (n = 3); PartialReverse, val" in printed
    found = table(tmp_path / "joint")
    assert found[found.genre == "all"].groupby("seed").size().to_dict() == {1: 2, 2: 2, 41: 2}
    for name in ("init_seed", "order_seed"):
        assert (found[name] == found.seed).all(), "as no setting gave another"
    assert (found.data_seed == Settings.data_seed).all()
    printed = evaluated(copied, *paths, "--sentences_per_genre=40")  # each with its own sample
    assert "perplexity.png: PartialReverse (n = 3)\n" in printed
    assert table(tmp_path / "joint").sample_seed.unique().tolist() == [0, 1, 2]
    (tmp_path / "out2" / "checkpoint-2.pt").unlink()
    printed = evaluated(copied, *paths, *SAMPLE)
    assert "PartialReverse: left out the steps 2, which some seeds lack" in printed
    assert "is named twice" in refused(copied, copied, *SAMPLE)


def test_a_table_of_means_has_the_values_of_the_curves(capsys: pytest.CaptureFixture[str]) -> None:
    def evaluation(seed: int, *steps: int) -> object:
        members = [SimpleNamespace(step=step) for step in steps]
        of_run = SimpleNamespace(seeds=series.Seeds(seed, seed, seed, seed), members=members)
        return SimpleNamespace(series=of_run)

    groups = [
        ("A", [evaluation(1, 2, 4), evaluation(2, 2)]),
        ("B", [evaluation(3, 5)]),
        ("C", [evaluation(4, 5), evaluation(5, 6)]),
    ]
    drawn = curves.curves_of(
        groups, lambda e, m: e.series.seeds.seed * m.step, lambda e, m: (0.0, float(m.step))
    )
    found = curves.means(groups, drawn)
    half = 12.706205 * 1.0  # t(0.975, 1) by tables; the standard error of 2 and 4 is 1
    assert found[["label", "step", "n", "seeds"]].to_numpy().tolist() == [
        ["A", 2, 2, "1 2"],
        ["B", 5, 1, "3"],
    ]
    np.testing.assert_allclose(
        found[["mean", "low", "high"]], [[3, 3 - half, 3 + half], [15, 0, 5]], rtol=1e-6
    )
    assert found["interval"].tolist() == ["over seeds", "within one run"]
    told = capsys.readouterr().out.splitlines()
    assert told == [
        "A: left out the steps 4, which some seeds lack",
        "C: left out the steps 5, 6, which some seeds lack",
    ]


def test_runs_that_differ_in_more_than_their_seed_are_drawn_apart(
    run: Path, copied: Path, tmp_path: Path
) -> None:
    """One of them without position embeddings, with a label of its own."""
    paths = []
    for name, line in (("large", "n_layer = 3"), ("none", "position_embeddings = False")):
        lines = copied.read_text(encoding="utf-8").replace("/out'", f"/{name}'").splitlines()
        kept = [x for x in lines if x.split(" = ")[0] != line.split(" = ")[0]]
        paths.append(tmp_path / f"{name}.py")
        paths[-1].write_text("\n".join([*kept, line]), encoding="utf-8")
        succeed("train.py", paths[-1])
    hub_like = f"--model=run,{run / 'out' / 'hf'}"
    printed = evaluated(copied, *paths, *SAMPLE, hub_like)
    labels = printed.split("perplexity.png: ")[-1].split("\n")[0].split("; ")
    assert labels == [
        "PartialReverse (out)",
        "out/hf on PartialReverse",
        "PartialReverse (large)",
        "PartialReverse without positions",
    ]
    assert "png: PartialReverse (out), training; " in printed
    assert "; PartialReverse (large), validation; " in printed


def test_the_interval_over_seeds_is_students() -> None:
    curve = pictures.mean_curve("NoReverse", [100], np.array([[1.0], [2.0], [3.0]]))
    assert curve.label == "NoReverse (n = 3)"
    assert curve.values == pytest.approx([2.0])
    half = 4.302653 / 3**0.5  # t(0.975, 2) by tables
    low, high = curve.band
    assert low == pytest.approx(curve.values - half)
    assert high == pytest.approx(curve.values + half)


@pytest.mark.parametrize(
    ("low", "high"),
    [
        (833, 992),
        (22, 25),
        (440, 30_000),
        (1, 2),
        (95, 105),
        (3.1, 1e7),
        (2, 9e8),
        (1, 1e20),
        (5, 5),
    ],
)
def test_a_logarithmic_axis_has_a_few_labels_whatever_its_range(low: float, high: float) -> None:
    axes = matplotlib.figure.Figure().add_subplot()
    axes.set_yscale("log")
    axes.plot([1, 2], [low, high])
    pictures._set_logarithmic(axes)
    bottom, top = axes.get_ylim()
    ticks = axes.get_yticks()
    assert 3 <= len(ticks) <= 8
    assert bottom <= min(ticks) < max(ticks) <= top
    labels = [float(label.get_text().replace(",", "")) for label in axes.get_yticklabels()]
    assert labels == pytest.approx(ticks)
    assert len(set(labels)) == len(labels)


def test_entropies_of_the_language_stand_beside_its_perplexities(run: Path, copied: Path) -> None:
    evaluated(copied, *SAMPLE, "--entropies")
    folder = copied.parent / "out" / "evaluation"
    meta = token_files.read_meta(run / "data")
    train, test = (
        token_files.open_blocks(run / "data", meta, split, 1)[:, 0] for split in ("train", "test")
    )
    expected = ngrams.entropies(train, test, 50258, 50256)
    found = table(folder, "entropies.csv")
    assert found.n.tolist() == [1, 2, 3, 4, 5]
    assert found.all_bits.tolist() == pytest.approx([e.all for e in expected.values()])
    assert found.local_bits.tolist() == pytest.approx([e.local for e in expected.values()])
    assert 5 < found.all_bits[1] < found.all_bits[0] < 16
    rows = table(folder)
    assert (rows.bigram_bits.isna() == (rows.genre != "all")).all(), "of the whole split"
    row = rows.iloc[-1]
    assert row.bigram_bits == pytest.approx(expected[2].all)
    assert row.local_5_bits == pytest.approx(expected[5].local)
    printed = evaluated(copied, *SAMPLE, "--entropies")
    assert "n-gram models" not in printed, "they are kept"


def test_seeds_in_tables_are_those_that_were_used() -> None:
    def used(**seeds: int) -> tuple[int, ...]:
        return series._seeds(SimpleNamespace(settings=Settings(**seeds), data={"data_seed": 5}))

    assert used(seed=3) == (3, 3, 3, 5)
    assert used(seed=3, init_seed=-1, order_seed=0) == (3, 3, 0, 5)
    assert used(seed=3, init_seed=7, order_seed=-1) == (3, 7, 3, 5)


def test_tables_of_sentences_and_tokens_are_long_and_joint(copied: Path, tmp_path: Path) -> None:
    second = tmp_path / "second.py"
    shutil.copytree(tmp_path / "out", tmp_path / "second" / "out")  # the same name elsewhere
    text = copied.read_text(encoding="utf-8").replace(f"{tmp_path}/out", f"{tmp_path}/second/out")
    second.write_text(text, encoding="utf-8")
    evaluated(copied, second, *SAMPLE, "--sentences", "--surprisals")
    about = ["model", "run", "seed", "init_seed", "order_seed", "data_seed", "test_language"]
    for name, values in (("sentences", "perplexity"), ("surprisals", "surprisal")):
        joint = table(tmp_path / "joint", f"{name}.csv")
        assert {*about, "checkpoint", "step", "sentence_id", values} <= set(joint.columns)
        own = table(tmp_path / "out" / "evaluation", f"{name}.csv")
        assert joint.run.nunique() == 2, "digits tell runs of one name apart"
        assert joint.run.str.startswith("out-").all()
        assert own.step.unique().tolist() == list(STEPS)
        pd.testing.assert_frame_equal(joint.iloc[: len(own)], own)
        assert len(joint) == 2 * len(own)


def test_tables_hold_no_local_path_and_no_words_for_numbers(
    run: Path, copied: Path, tmp_path: Path
) -> None:
    model = f"--model=run,{tmp_path / 'out' / 'hf'}"
    evaluated(copied, *SAMPLE, model, "--sentences", "--surprisals", "--entropies")
    tables = [*tmp_path.rglob("*.csv")]
    assert len(tables) == 12, "of the run, of the exports, and of both"
    for path in tables:
        text = path.read_text(encoding="utf-8")
        assert str(tmp_path) not in text and str(run) not in text, path
        found = pd.read_csv(path, dtype=str)
        if path.name == "perplexity.csv":
            assert set(found["drop_duplicates"]) == {"0"}
        if path.name != "entropies.csv":
            assert set(found["seed"].dropna()) <= {"41"}, "unknown of exports"


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("[a-z]*.*")}


def test_results_of_other_models_do_not_stay_beside_new_ones(copied: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out" / "evaluation"
    evaluated(copied, *SAMPLE, "--entropies", "--sentences", "--surprisals")
    (folder / "mine.csv").write_text("a,b\n")
    kept = contents(folder)
    evaluated(copied, *SAMPLE)
    assert contents(folder).keys() == kept.keys(), "they are of the same models and sentences"
    evaluated(copied, "--sentences_per_genre=20")
    ours = {"losses.png", "perplexity.csv", "perplexity.png"}
    assert contents(folder).keys() == {"mine.csv", *ours}


def test_a_file_that_no_evaluation_wrote_is_never_replaced(
    copied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, joint = tmp_path / "out" / "evaluation", tmp_path / "joint"
    second = shutil.copy(copied, tmp_path / "second.py")
    shutil.copytree(tmp_path / "out", tmp_path / "second")
    text = copied.read_text(encoding="utf-8").replace(str(tmp_path / "out"), str(second)[:-3])
    second.write_text(text, encoding="utf-8")
    both = (copied, second, *SAMPLE)
    evaluated(*both)
    evaluated(*both)
    evaluated(*both, "--sentences_per_genre=20")

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
                patch.setattr(results, "losses_of", scored)
            error = refused(*both, "--sentences")
        assert f"{path} was not written by an evaluation, or was changed since." in error
        assert (contents(folder), contents(joint)) == before
        path.write_bytes(whole) if is_known else path.unlink()
    evaluated(*both, "--sentences")


@pytest.mark.parametrize("record", ["[]", '{"source": "x"}', '{"source": "x", "files": 5}', "{"])
def test_a_damaged_record_of_results_replaces_nothing(record: str, tmp_path: Path) -> None:
    (tmp_path / ".pairs.json").write_text(record, encoding="utf-8")
    tables.require_own(tmp_path, "pairs")
    (tmp_path / "pairs.csv").write_text("mine\n")
    with pytest.raises(UserError, match=r"pairs.csv was not written by an evaluation"):
        tables.require_own(tmp_path, "pairs")


def test_results_are_written_by_one_command_at_a_time(
    copied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of each run, and the joint ones."""
    locked = []
    write = COMMAND["write_perplexities"]

    def seen(folder: tables.Folder, evaluations: list) -> None:
        locked.append([files.is_locked(p) for p in (tmp_path / "out/evaluation", joint)])
        write(folder, evaluations)

    joint = tmp_path / "joint"
    monkeypatch.setitem(COMMAND["main"].__globals__, "write_perplexities", seen)
    evaluated(copied, *SAMPLE, f"--model=run,{tmp_path / 'out' / 'hf'}")
    assert locked == [[True, False], [False, False], [False, True]]


def test_an_interrupted_command_leaves_the_earlier_results(
    copied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of them, so that no two files are of different models."""
    evaluated(copied, *SAMPLE, "--entropies")
    folder = tmp_path / "out" / "evaluation"
    before = contents(folder)

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(COMMAND["entropies"], "table", interrupt)
        with pytest.raises(KeyboardInterrupt):
            evaluated(copied, "--sentences_per_genre=20", "--entropies")
    assert contents(folder) == before
    assert not list(folder.glob("*.unfinished"))
    (folder / "perplexity.png").unlink()  # as if the command before had been killed
    evaluated(copied, "--sentences_per_genre=20")
    assert contents(folder).keys() == before.keys() - {"entropies.csv"}


def test_a_genre_has_no_name_that_tables_use(run: Path, copied: Path, tmp_path: Path) -> None:
    for split in ("100M", "dev", "test"):
        (tmp_path / "text" / split).mkdir(parents=True)
        for genre in ("all", "a"):
            (tmp_path / "text" / split / f"{genre}.txt").write_text("One two.\nThree four.\n")
    error = fail("prepare.py", f"--corpus={tmp_path / 'text'}", f"--data_dir={tmp_path / 'data'}")
    assert "the test split has a genre named 'all'" in error
    shutil.copytree(run / "data", tmp_path / "data", dirs_exist_ok=True)
    meta = tmp_path / "data" / "meta.json"
    meta.write_text(meta.read_text(encoding="utf-8").replace('"second"', '"all"'))
    error = refused(copied, f"--test_data_dir={tmp_path / 'data'}")
    assert "the test split has a genre named 'all'" in error


def test_the_backend_of_a_notebook_does_not_matter(tmp_path: Path) -> None:
    code = (
        "import pathlib, numpy as np\n"
        "from impossible.evaluation import pictures\n"
        "curve = pictures.Curve('a', [1, 2], np.array([1.0, 2.0]))\n"
        f"pictures.draw([curve], 'y', pathlib.Path({str(tmp_path / 'x.png')!r}))\n"
    )
    env = os.environ | {"MPLBACKEND": "module://no_such_package.backend_inline"}
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=env, check=True)
    assert matplotlib.image.imread(tmp_path / "x.png").shape[2] == 4


@pytest.mark.parametrize("count", [1, 5])  # the legend within the axes, or below them
def test_a_dollar_in_the_name_of_a_folder_is_a_dollar(count: int) -> None:
    label = r"PartialReverse (a$b_{\x$)"
    curves = [pictures.Curve(label, [1, 2], np.array([1.0, 2.0]))] * count
    figure = pictures.figure_of(curves, "y")
    (legend,) = [*figure.legends, *filter(None, [figure.axes[0].get_legend()])]
    assert legend.get_texts()[0].get_text() == label
    figure.canvas.draw()  # as mathtext, this raises an error


def test_the_interval_of_shares_stays_between_0_and_1() -> None:
    rng = np.random.default_rng(0)
    for count in (2, 3, 5):
        shares = rng.random((count, 200))
        shares[:, :100] = shares[:, :100] ** 9  # near 0
        low, high = pictures.share_interval(shares)
        assert ((low >= 0) & (low <= shares.mean(0)) & (shares.mean(0) <= high)).all()
        assert (high <= 1).all()
    close = np.array([[0.5], [0.501], [0.502]])  # far from the ends: Student's
    expected = np.concatenate(pictures.t_interval(close))
    assert np.concatenate(pictures.share_interval(close)) == pytest.approx(expected, abs=1e-5)
    low, high = pictures.share_interval(np.array([[0.6], [0.7]]))
    half = 12.706205 * 0.05 / (0.65 * 0.35)  # t(0.975, 1) by tables
    odds = np.log(0.65 / 0.35) + np.array([-half, half])
    assert [*low, *high] == pytest.approx(1 / (1 + np.exp(-odds)))
    ends = pictures.share_interval(np.array([[0.0, 1.0], [0.0, 1.0]]))
    assert np.isnan(ends).all(), "no interval where all runs have the same extreme"


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
    found = scoring.losses(Scorer(body, head, context=28), sentences, World())
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


@pytest.mark.parametrize(
    ("head", "told"),
    [
        (
            torch.zeros(50257, 1),
            "Mine, checkpoint-1 has a vocabulary of 50,257 tokens, and the sentences of",
        ),
        (
            torch.full((50258, 1), torch.nan),
            "checkpoint-1: the perplexity of [0-9]+ sentences is not",
        ),
        (
            torch.arange(50258.0)[:, None],
            "checkpoint-1: the perplexity of [0-9]+ sentences is not",
        ),
    ],
)
def test_a_model_that_gives_no_numbers_is_refused(
    head: torch.Tensor, told: str, run: Path, tmp_path: Path
) -> None:
    scorer = Scorer(lambda ids, *_: ids[:, :, None].float(), head, context=64)
    member = Member("checkpoint-1", lambda: "made up", lambda _: scorer)
    with pytest.raises(UserError, match=told):
        cpu = torch.device("cpu")
        material = results.Material("Mine", "no_reverse", drawn(run / "data").sentences)
        results.losses_of(member, material, tmp_path / "x", World(), cpu)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"quantization_config": {"quant_method": "gptq"}}, "has a quantization_config in its"),
        ({"n_layer": "2"}, "Field 'n_layer' expected int, got str"),
        ({"n_head": [2]}, "Field 'n_head' expected int, got list"),
        ({"dtype": "nonsense"}, "nonsense"),
        ({"id2label": 3}, "cannot be loaded"),
        ({"activation_function": "nope"}, "nope"),
        ({"n_layer": 9}, "missing, unknown or of another shape: transformer.h."),
        ({"n_embd": 0, "n_head": 0}, "cannot be loaded"),
        ({"n_embd": 0}, "cannot be loaded"),
        ({"architectures": 5}, "is a model of the kind 5. Expected a plain"),
        ([], "is a model of the kind []. Expected a plain"),
    ],
)
def test_a_config_with_odd_values_is_refused(
    changed: dict[str, object] | list, told: str, run: Path, tmp_path: Path
) -> None:
    shutil.copytree(run / "out" / "hf" / "checkpoint-4", tmp_path / "odd")
    path = tmp_path / "odd" / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    changed = config | changed if isinstance(changed, dict) else changed
    path.write_text(json.dumps(changed), encoding="utf-8")
    with pytest.raises(UserError) as error:
        series.find(Settings(model=str(tmp_path / "odd")), [])[0].members[0].load(
            torch.device("cpu")
        )
    assert told in str(error.value)
    assert "\n" not in str(error.value)


def test_weights_that_do_not_fit_are_told_in_one_line(run: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(run / "out" / "hf" / "checkpoint-4", tmp_path / "odd")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps(config | {"n_embd": 8, "n_head": 2}))
    options = (f"--model={folder}", f"--eval_dir={tmp_path}")
    _, error = start("eval.py", run / "config.py", *options).communicate(timeout=120)
    assert re.fullmatch(r"error: .*of another shape: \('transformer.*\n", error)


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
    mask = torch.zeros(1, 1, 8, 8).masked_fill(torch.ones(8, 8).triu(1).bool(), -torch.inf)
    found = []
    for folder in (whole, tmp_path / "a,b"):
        (member,) = series.find(Settings(model=str(folder)), [])[0].members
        found.append(member.load(torch.device("cpu")).body(tokens, tokens, mask))
    assert torch.equal(*found)


def test_what_cannot_be_evaluated_is_told(run: Path, copied: Path, tmp_path: Path) -> None:
    error = refused(copied, f"--out_dir={tmp_path / 'none'}")
    assert "Train first (train.py" in error
    (tmp_path / "empty").mkdir()
    assert "holds no exported model" in refused(copied, f"--model={tmp_path / 'empty'}")
    error = refused(copied, f"--model={tmp_path / 'out'}")
    assert "out is a run, but --model= expects exported models. For its checkpoints set" in error
    assert "--test_data_dir=" in refused(copied, f"--test_data_dir={tmp_path / 'empty'}")
    odd = tmp_path / "models" / os.fsdecode(b"caf\xe9")
    shutil.copytree(run / "out" / "hf" / "checkpoint-4", odd)
    assert "is not UTF-8. Rename it" in refused(copied, f"--model={odd.parent}")
    assert "has no checkpoint-9" in refused(copied, "--revisions=checkpoint-9")
    shutil.copytree(run / "out" / "hf" / "checkpoint-4", tmp_path / "cut")
    weights = tmp_path / "cut" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    error = refused(copied, f"--model={tmp_path / 'cut'}")
    assert "cannot be loaded" in error
    config = (tmp_path / "cut" / "config.json").read_text(encoding="utf-8")
    other = config.replace("GPT2LMHeadModel", "GPT2NoPositionalEncodingLMHeadModel")
    (tmp_path / "cut" / "config.json").write_text(other, encoding="utf-8")
    error = refused(copied, f"--model={tmp_path / 'cut'}")
    assert "of the kind ['GPT2NoPositionalEncodingLMHeadModel']. Expected a plain" in error
    shutil.copytree(run / "data", tmp_path / "data")
    meta = (tmp_path / "data" / "meta.json").read_text(encoding="utf-8")
    counted = token_files.read_meta(run / "data").splits["test"]["genres"]["first"]["sentences"]
    changed = meta.replace(f'"sentences": {counted},', f'"sentences": {counted + 1},')
    (tmp_path / "data" / "meta.json").write_text(changed, encoding="utf-8")
    error = refused(copied, f"--test_data_dir={tmp_path / 'data'}")
    assert "sentences; meta.json says" in error
    shutil.copy(tmp_path / "out" / "checkpoint-2.pt", tmp_path / "out" / "checkpoint-3.pt")
    assert "checkpoint-3.pt holds step 2: it was renamed or copied" in refused(copied)
