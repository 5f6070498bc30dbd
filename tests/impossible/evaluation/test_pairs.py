"""Minimal pairs, compared with lm-evaluation-harness; if reversed, with a plain implementation."""

import json
import shutil
import sys
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import transformers
from conftest import ROOT, fail, run, succeed, write_config
from documented import require_explained
from hub import Hub, asked_here, serve

import perturb
from impossible.evaluation import pairs as module
from impossible.evaluation.pairs import Pair
from impossible.evaluation.scoring import Sequences
from impossible.settings import Settings, UserError
from impossible.text.tokenizer import Tokenizer


def perturbed(pairs: Sequence[Pair], language: str, **options: object) -> Sequences:
    tokenizer = Tokenizer(perturb.get(language).markers)
    return module.perturbed(tuple(pairs), language, tokenizer, **options)


NOUNS = ("dog", "child", "teacher", "senator", "river", "Congress", "bookshelf", "neighbour")
AGREEMENT, ORDER = "regular_plural_subject_verb_agreement_1", "causative"
PAIRS = {
    AGREEMENT: [
        pair
        for noun in NOUNS
        for pair in (
            (f"The {noun} helps the dogs.", f"The {noun} help the dogs."),
            (f"The {noun}s help the dogs.", f"The {noun}s helps the dogs."),
        )
    ],
    ORDER: [
        (f"Some {noun}s saw Mary.", f"Saw Mary some quite old {noun}s.") for noun in NOUNS
    ],  # of unequal length
}
TURKISH = [("Köpek uyuyor.", "Köpek uyuyoruz."), ("Kediler uyuyor.", "Kediler uyuyorsun.")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pairs as BLiMP's files."""
    place = tmp_path_factory.mktemp("pairs") / "mine"
    place.mkdir()
    for name, pairs in PAIRS.items():
        rows = [
            {"sentence_good": good, "sentence_bad": bad, "field": "syntax", "UID": name}
            for good, bad in pairs
        ]
        text = "".join(json.dumps(row | {"pairID": str(i)}) + "\n" for i, row in enumerate(rows))
        (place / f"{name}.jsonl").write_text(text, encoding="utf-8")
    return place


@pytest.fixture(scope="module")
def runs(corpus_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """language -> the config of a tiny run with exports, whose evaluations are added to it."""
    configs = {}
    for language in ("no_shuffle", "partial_reverse"):
        place = tmp_path_factory.mktemp(language)
        places = {"data_dir": str(place / "data"), "out_dir": str(place / "out")}
        options = {"language": language, "corpus": str(corpus_dir), "segmenter": "line"}
        path = write_config(place / "config.py", **places, **options, learning_rate="0.05")
        for command in ("prepare.py", "train.py", "convert_to_hf.py"):
            succeed(command, path)
        configs[language] = path
    return configs


def evaluated(config: Path, source: Path, *options: str) -> pd.DataFrame:
    """The table of a run's pairs, with that of its items."""
    succeed("eval.py", config, f"--pairs={source}", *options)
    name = name_of(source, "--leading_space" in options)
    place = config.parent / "out" / "evaluation" / name
    assert (place / "pairs.png").stat().st_size > 10_000
    table = pd.read_csv(place / "pairs.csv").set_index(["checkpoint", "paradigm"])
    table.attrs["items"] = pd.read_csv(place / "pair_items.csv")
    return table


@pytest.mark.timeout(240)
def test_pairs_get_what_lm_evaluation_harness_gives_them(
    runs: dict[str, Path], folder: Path, tmp_path: Path
) -> None:
    """For BLiMP, the harness puts a space before each sentence; for MultiBLiMP, it does not."""
    turkish = tmp_path / "mine" / "multiblimp_tur.jsonl"
    write_pairs(turkish, *({"sen": good, "wrong_sen": bad} for good, bad in TURKISH))
    config = runs["no_shuffle"]
    tables = dict.fromkeys(PAIRS, evaluated(config, folder, "--leading_space"))
    columns = "--pairs_columns=sen,wrong_sen"
    tables[turkish.stem] = evaluated(config, turkish.parent, columns)
    export = config.parent / "out" / "hf" / "checkpoint-6"
    files = [*(folder / f"{name}.jsonl" for name in PAIRS), turkish]
    env = {"PYTHONPATH": str(Path(sys.prefix) / "lm-eval")}
    printed = succeed(ROOT / "tests" / "lm_eval_scores.py", export, *files, env=env)
    theirs = json.loads(printed.splitlines()[-1])
    assert theirs.keys() == tables.keys()
    for name, table in tables.items():
        good, bad, right = np.array(theirs[name]).T
        items = table.attrs["items"]
        ours = items[(items.checkpoint == "checkpoint-6") & (items.paradigm == name)]
        assert len(ours) == len(PAIRS.get(name, TURKISH))
        np.testing.assert_allclose(ours.log_probability_good, good, atol=1e-3)
        np.testing.assert_allclose(ours.log_probability_bad, bad, atol=1e-3)
        assert ours.is_right.tolist() == right.astype(bool).tolist()
        row = table.loc["checkpoint-6", name]
        assert row.accuracy == right.mean()
        assert (row.pairs, row.left_out) == (len(right), 0)


def test_reversed_pairs_get_what_a_plain_implementation_gives_them(
    runs: dict[str, Path], folder: Path
) -> None:
    config = runs["partial_reverse"]
    table = evaluated(config, folder)
    model = transformers.GPT2LMHeadModel.from_pretrained(
        config.parent / "out" / "hf" / "checkpoint-3"
    ).eval()
    encode = Tokenizer(("🅁",)).encode_ordinary
    expected = []
    for number, (good, bad) in enumerate(PAIRS[AGREEMENT]):
        if len(encode(good)) != len(encode(bad)):
            continue
        rng = np.random.default_rng([21, zlib.crc32(f"{AGREEMENT} {number}".encode())])
        place = rng.choice(len(encode(good)) + 1)
        sums = []
        for text in (good, bad):
            tokens = encode(text)
            tokens = [50256, *tokens[:place], 50257, *tokens[place:][::-1]]
            with torch.no_grad():
                logits = model(torch.tensor([tokens])).logits[0].log_softmax(-1)
            sums.append(sum(logits[i, token].item() for i, token in enumerate(tokens[1:])))
        expected.append(sums)
    items = table.attrs["items"]
    ours = items[items.checkpoint == "checkpoint-3"]
    scores = ours[["log_probability_good", "log_probability_bad"]].to_numpy()
    np.testing.assert_allclose(scores, expected, rtol=1e-5)
    right = [good > bad for good, bad in expected]
    assert ours.is_right.tolist() == right
    rows = table.loc["checkpoint-3"]
    assert rows.loc[AGREEMENT].accuracy == pytest.approx(np.mean(right))
    assert rows.loc[AGREEMENT].left_out + rows.loc[AGREEMENT].pairs == len(PAIRS[AGREEMENT])
    assert (rows.loc[ORDER].left_out, rows.loc[ORDER].pairs) == (len(PAIRS[ORDER]), 0)
    assert np.isnan(rows.loc[ORDER].accuracy)
    assert rows.loc["all"].pairs == rows.pairs[:-1].sum() == len(right)
    assert rows.loc["all"].accuracy_over_paradigms == rows.loc[AGREEMENT].accuracy
    assert rows.accuracy_over_paradigms.isna().sum() == 2
    assert rows.pairs_from.unique().tolist() == [name_of(folder).removeprefix("pairs_")]
    assert items.is_right.isin([0, 1]).all()
    low, high = rows.loc["all"].low, rows.loc["all"].high
    assert 0 <= low < rows.loc["all"].accuracy < high <= 1


def name_of(source: Path | str, leading_space: bool = False) -> str:
    """The name of the folder for results on these pairs."""
    return module.source(Settings(pairs=str(source), leading_space=leading_space)).name


@pytest.mark.parametrize("language", perturb.LANGUAGES)
def test_both_sentences_of_a_pair_are_perturbed_alike(language: str) -> None:
    rule = perturb.get(language)
    pairs = [
        Pair("p", "f", str(i), f"The {noun} clearly likes the small {noun} over there.", bad)
        for i, noun in enumerate(NOUNS)
        for bad in (
            f"The {noun} clearly liked the small {noun} over there.",
            f"The {noun} clearly liked that very small {noun} over there.",
        )
    ]
    made = perturbed(tuple(pairs), language)
    assert len(made.columns) == (len(pairs) if rule.any_length else len(pairs) // 2)
    assert made.counts == {("p", "f"): len(pairs) - len(made.columns)}
    for good, bad in zip(made.parts[::2], made.parts[1::2], strict=True):
        assert good[0] == bad[0] == 50256
        if not rule.any_length:
            assert (good != bad).sum() == 1, "they differ in nothing but the verb"


def test_pairs_with_as_many_words_are_compared_where_words_move() -> None:
    longer = Pair("p", "f", "0", "The dog likes it.", "The dog unhesitatinglys it.")
    shorter = Pair("p", "f", "1", "The dogs like it.", "The dogs do like it.")
    same_tokens = Pair("p", "f", "2", "The bookshelf is so.", "The very is so so.")
    for leading_space in (False, True):
        made = perturbed(
            (longer, shorter, same_tokens),
            "even_odd_shuffle_words",
            leading_space=leading_space,
        )
        assert made.columns["item"].tolist() == ["0"]
        good, bad = (Tokenizer().decode(part[1:]) for part in made.parts)
        assert (good, bad) == (" The likes dog it.", " The unhesitatinglys dog it.")
    with pytest.raises(UserError, match="no pair"):
        perturbed((longer,), "even_odd_shuffle")


def test_pairs_that_cannot_be_compared_are_left_out_and_counted() -> None:
    same = Pair("p", "f", "0", "It is so.", "It is so.")
    other = Pair("p", "f", "1", "It is so.", "It are so.")
    made = perturbed((same, other), "no_shuffle")
    assert (made.columns["item"].tolist(), made.counts) == (["1"], {("p", "f"): 1})
    with pytest.raises(UserError, match="no pair of mine is comparable in NoShuffle"):
        perturbed((same,), "no_shuffle", place="mine")
    with pytest.raises(UserError, match="Leave --leading_space out"):
        perturbed((other,), "no_hop", leading_space=True)


def test_pairs_come_from_a_file_or_a_folder(folder: Path, tmp_path: Path) -> None:
    expected = module.read(str(folder))
    assert [(p.good, p.bad) for p in expected] == PAIRS[ORDER] + PAIRS[AGREEMENT]
    copy = shutil.copytree(folder, tmp_path / "pairs")
    for path in folder.iterdir():
        (copy / f"._{path.name}").write_bytes(b"\xff\xfe of macOS")
    assert module.read(str(copy)) == expected
    assert module.read(str(folder / f"{ORDER}.jsonl")) == expected[: len(PAIRS[ORDER])]
    bare = tmp_path / "bare.jsonl"
    bare.write_text('\n{"sentence_good": "A b.", "sentence_bad": "B a."}\n', encoding="utf-8")
    assert module.read(str(bare)) == [Pair("bare", "", "1", "A b.", "B a.")]


def test_blimp_comes_from_the_hub_at_a_pinned_commit(
    runs: dict[str, Path], folder: Path, tmp_path: Path
) -> None:
    tree = {}
    for path in folder.iterdir():
        rows = pa.Table.from_pylist(list(map(json.loads, path.read_text().splitlines())))
        pq.write_table(rows, tmp_path / "x.parquet")
        packed = (tmp_path / "x.parquet").read_bytes()
        tree[f"{path.stem}/train-00000-of-00001.parquet"] = packed
    made = Hub()
    made.add_dataset("nyu-mll/blimp", module.COMMIT, tree)
    results = runs["no_shuffle"].parent / "out" / "evaluation"
    command = ("eval.py", runs["no_shuffle"], "--revisions=6", "--pairs=blimp")
    with serve(made) as hub, asked_here(hub, tmp_path / "cache"):
        succeed(*command)
    table = pd.read_csv(results / f"pairs_blimp-{module.COMMIT[:8]}" / "pairs.csv")
    assert table.paradigm.tolist() == [ORDER, AGREEMENT, "all"]
    assert table.pairs.tolist()[:2] == [len(PAIRS[ORDER]), len(PAIRS[AGREEMENT])]
    module.read.cache_clear()
    with serve(Hub()) as hub, asked_here(hub, tmp_path / "empty"):
        error = fail(*command)
    assert "name a folder of jsonl files: --pairs=FOLDER" in error


def test_pairs_of_another_language_come_from_a_dataset_of_the_hub(
    runs: dict[str, Path], tmp_path: Path
) -> None:
    rows = [{"sen": a, "wrong_sen": b, "phenomenon": "SV"} for a, b in TURKISH]
    tree, table = {}, pa.Table.from_pylist(rows)
    for config, some in {"tur": table, "deu": table[:0]}.items():
        pq.write_table(some, tmp_path / "x.parquet")
        tree[f"{config}/train-00000-of-00001.parquet"] = (tmp_path / "x.parquet").read_bytes()
    card = "".join(f"- config_name: {x}\n  data_files: {x}/*.parquet\n" for x in ("tur", "deu"))
    tree["README.md"] = f"---\nconfigs:\n{card}---\n".encode()
    commit, made = "b" * 40, Hub()
    made.add_dataset("jumelet/multiblimp", commit, tree)
    repo = made.repos["datasets", "jumelet/multiblimp"]
    repo.branches["main"] = commit
    results = runs["no_shuffle"].parent / "out" / "evaluation"
    command = ("eval.py", runs["no_shuffle"], "--revisions=6")
    with serve(made) as hub, asked_here(hub, tmp_path / "cache"):
        printed = succeed(*command, "--pairs=multiblimp:tur")
        assert f"--pairs=hf:jumelet/multiblimp:tur@{commit}" in printed
        error = fail(*command, "--pairs=multiblimp:tur", "--pairs_columns=good,bad")
        assert "has no good and no bad. Found: sen, wrong_sen, phenomenon" in error
        assert "Available: ['tur', 'deu']" in fail(*command, "--pairs=multiblimp:tr")
        assert "no split may be empty" in fail(*command, "--pairs=multiblimp:deu")
        now = repo.commit("main", "other", repo.commits[commit].tree)
        module._on_hub.cache_clear()
        assert f"@{now}" in succeed(*command, "--pairs=multiblimp:tur")
    (made := Hub()).url = "http://127.0.0.1:9"
    with asked_here(made, tmp_path / "cache"):
        module._on_hub.cache_clear()
        succeed(*command, f"--pairs=multiblimp:tur@{commit}")
    names = {path.name for path in results.glob("pairs_multiblimp*")}
    assert names == {f"pairs_multiblimp-tur-{x[:8]}" for x in (commit, now)}
    results /= f"pairs_multiblimp-tur-{commit[:8]}"
    table = pd.read_csv(results / "pairs.csv")
    assert table.paradigm.tolist() == ["SV", "all"] and table.pairs.tolist() == [2, 2]
    items = pd.read_csv(results / "pair_items.csv")
    assert list(zip(items.good, items.bad, strict=True)) == TURKISH


def test_a_dataset_with_a_loading_script_is_refused_at_once(
    runs: dict[str, Path], tmp_path: Path
) -> None:
    made = Hub()
    made.add_dataset("ada/script", "c" * 40, {"script.py": b"import datasets\n"})
    made.repos["datasets", "ada/script"].branches["main"] = "c" * 40
    with serve(made) as hub, asked_here(hub, tmp_path / "cache"):
        done = run("eval.py", runs["no_shuffle"], "--pairs=hf:ada/script")
    assert done.returncode == 1
    assert "(Dataset scripts are no longer supported, but found script.py)" in done.stderr
    assert "trying again" not in done.stdout


def test_languages_are_compared_on_the_pairs_that_all_have(
    runs: dict[str, Path], folder: Path, tmp_path: Path
) -> None:
    options = (f"--pairs={folder}", f"--eval_dir={tmp_path}")
    printed = succeed("eval.py", *runs.values(), *options)
    table = pd.read_csv(tmp_path / name_of(folder) / "pairs.csv")
    table = table[(table.paradigm == "all") & (table.step == 6)].set_index("test_language")
    both = table.loc["partial_reverse"].pairs
    assert table.pairs_common.tolist() == [both, both]
    assert table.loc["no_shuffle"].pairs > both
    assert table.loc["partial_reverse"].accuracy_common == table.loc["partial_reverse"].accuracy
    both_means = table[["accuracy_over_paradigms", "accuracy_common_over_paradigms"]]
    assert both_means.loc["partial_reverse"].nunique() == 1
    count = sum(map(len, PAIRS.values()))
    assert f"{both} of {count} pairs are evaluated in all languages" in printed
    names = {"pairs.csv", "pair_items.csv", "pairs_means.csv"}
    own = (config.parent / "out" / "evaluation" / name_of(folder) for config in runs.values())
    assert names == set().union(*map(require_explained, (tmp_path, *own)))


def test_results_in_another_language_do_not_replace_those_in_the_own(
    runs: dict[str, Path], folder: Path, tmp_path: Path
) -> None:
    options = (f"--pairs={folder}", "--revisions=6")
    succeed("eval.py", runs["partial_reverse"], *options)
    succeed("eval.py", runs["partial_reverse"], *options, "--test_language=no_shuffle")
    results, name = runs["partial_reverse"].parent / "out" / "evaluation", name_of(folder)
    languages = [
        pd.read_csv(results / place / "pairs.csv").test_language.unique().tolist()
        for place in (name, f"{name}_on_no_shuffle")
    ]
    assert languages == [["partial_reverse"], ["no_shuffle"]]
    export = runs["partial_reverse"].parent / "out" / "hf" / "checkpoint-6"
    printed = succeed(
        "eval.py", *runs.values(), *options, f"--model={export}", f"--eval_dir={tmp_path}"
    )
    assert "on NoShuffle" in printed and "on PartialReverse" in printed


def write_pairs(path: Path, *rows: dict[str, object]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps({"sentence_good": "A b.", "sentence_bad": "B a.", **row}) for row in rows]
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def test_pairs_of_one_name_are_refused_and_null_is_no_name(tmp_path: Path) -> None:
    rows = [{"pairID": None, "UID": None, "field": None}, {"pairID": 7.0}, {"UID": 5}]
    path = write_pairs(tmp_path / "x.jsonl", *rows)
    made = [(p.paradigm, p.field, p.item) for p in module.read(str(path))]
    assert made == [("x", "", "0"), ("x", "", "7"), ("5", "", "2")]
    for folder in ("morphology", "syntax"):
        write_pairs(tmp_path / "two" / folder / "agreement.jsonl", {}, {})
    with pytest.raises(UserError) as error:
        module.read(str(tmp_path / "two"))
    for place in ("morphology", "syntax"):
        assert f"{tmp_path / 'two' / place / 'agreement.jsonl'}, line 1" in str(error.value)
    assert "If these are two paradigms, give them different UIDs" in str(error.value)
    write_pairs(tmp_path / "y.jsonl", {"pairID": 1}, {"pairID": "1"})
    with pytest.raises(
        UserError, match=r"y.jsonl, line 2: the paradigm 'y' already has a pair '1' .* own pairID"
    ):
        module.read(str(tmp_path / "y.jsonl"))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("[]", "line 2 is not a JSON object"),
        ('{"sentence_good": "A."}', "line 2 has no sentence_bad. Found: sentence_good"),
        ('{"sentence_good": "A.", "sentence_bad": " "}', "line 2: .* is empty"),
        ('{"sentence_good": "A.", "sentence_bad": 5}', "sentence_bad = 5. Expected a text"),
        ('{"sentence_good": "A\u200b.", "sentence_bad": "B"}', r"character 2 of .*U\+200B"),
        ('{"sentence_good": "A.", "sentence_bad": "B", "UID": "all"}', "has the name that tables"),
        ('{"sentence_good": "A.", "sentence_bad": "B", "UID": ["a"]}', r'UID = \["a"\]. Expected'),
        ("", "holds no minimal pair"),
    ],
)
def test_what_is_no_pair_is_told(line: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text("\n" + line, encoding="utf-8")
    with pytest.raises(UserError, match=message):
        module.read(str(tmp_path))
    with pytest.raises(UserError, match=r"does not exist\. Expected blimp, multiblimp"):
        module.read(str(tmp_path / "none"))


def test_white_space_in_pairs_is_replaced_and_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_pairs(tmp_path / "x.jsonl", {}, {"sentence_good": "A\u00a0 b.\t"})
    assert module.read(str(path))[1].good == "A b."
    assert "line 2: each tab, line break, no-break space" in (out := capsys.readouterr().out)
    assert "(1 text in all)" in out


def test_results_on_different_pairs_go_to_different_folders(tmp_path: Path) -> None:
    one, same, other = (
        write_pairs(tmp_path / folder / "blimp" / "p.jsonl", {"sentence_bad": bad}).parent
        for folder, bad in (("a", "B a."), ("b", "B a."), ("c", "C a."))
    )
    names = [name_of(source) for source in (one, same, other, "blimp")]
    assert names[0] == names[1]
    assert len(set(names)) == 3
    (one / ".DS_Store").write_bytes(b"x")
    assert name_of(one) == names[0]
    (one / "p.jsonl").rename(one / "q.jsonl")  # another paradigm
    assert name_of(one) != names[0]
    assert name_of("blimp", leading_space=True) == f"{names[3]}_leading_space"


def test_both_sentences_get_the_same_draw_in_a_language_of_ones_own_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def shuffled(s: perturb.Sentences, markers: list[int], rng: np.random.Generator) -> object:
        return s._replace(tokens=s.tokens[rng.permutation(len(s.tokens))])

    rule = perturb.Language("Own", shuffled, "", any_length=True)
    monkeypatch.setitem(perturb.LANGUAGES, "own", rule)
    pairs = [
        Pair("p", "", str(i), "The dog sees the cat.", "The dog see the cat.") for i in range(9)
    ]
    tokens = perturbed(tuple(pairs), "own").sentences.tokens.reshape(9, 2, -1)
    assert ((tokens[:, 0] != tokens[:, 1]).sum(axis=1) == 1).all()
    assert len({tuple(good) for good, _ in tokens.tolist()}) > 5, "each pair in another order"


def test_the_total_gives_the_mean_over_pairs_and_the_mean_over_paradigms() -> None:
    good, bad = "It is so.", "It are so."
    pairs = [Pair(p, "", str(i), good, bad) for i, p in enumerate("aaab")]
    made = perturbed(tuple(pairs), "no_shuffle")

    def losses(*sums: tuple[float, float]) -> np.ndarray:
        """Of all tokens of a sentence the same, so that they have these sums."""
        return np.repeat(np.ravel(sums) / 4, 4).astype(np.float32)

    sums = [(1, 2), (2, 2), (2, 1), (1, 2)]  # a tie is not right
    assert module.log_probabilities(made, losses(*sums)).tolist() == (-np.array(sums)).tolist()
    expected = "50.0% of pairs right (mean over paradigms: 66.7%)"
    assert module.result(made, losses(*sums)) == expected
    table = module.table(made, losses((1, 2), (np.nan, 1), (2, 1), (1, 2)))
    assert table["pairs"].tolist() == [2, 1, 3], "one is too long"
    assert table["left_out"].tolist() == [1, 0, 1]
    assert table["accuracy"].tolist() == pytest.approx([1 / 2, 1, 2 / 3])
    assert table["accuracy_over_paradigms"].tolist()[-1] == pytest.approx(3 / 4)
