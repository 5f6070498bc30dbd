"""Annotated words: by spaCy, and from files."""

import gzip
import itertools
import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import plain
import plain_hop
import pytest
from conftest import fail, run, speeches, start, succeed, write_config

import perturb
from impossible.settings import UserError
from impossible.text import annotate, token_files
from impossible.text.tokenizer import write_transformers_files
from impossible.text.verbs import PLURAL, SINGULAR

NAMES = ("no_hop", "token_hop", "word_hop")
SPLITS = {"train": "100M", "val": "dev", "test": "test"}
SINGULAR_VERB = ("cleans", "clean", SINGULAR)
SENTENCE = [("He",), SINGULAR_VERB, ("his",), ("very",), ("messy",), ("bookshelf",), (".",)]


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Real text of two genres, with what spaCy finds hard: other apostrophes, other white space."""
    folder = tmp_path_factory.mktemp("texts")
    odd = (
        "It’s late.\u00a0 He   doesn't  care, does he?\nThey don’t know what the dogs want here.\n"
    )
    lines = speeches("1962-Kennedy-1").splitlines()[:60]
    for i, name in enumerate(SPLITS.values()):
        (folder / name).mkdir()
        (folder / name / "first.txt").write_text("\n".join(lines[i::3]), encoding="utf-8")
        (folder / name / "second.txt").write_text(odd + "\n".join(lines[i::6]), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def prepared(texts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All three languages, prepared together."""
    folder = tmp_path_factory.mktemp("together")
    succeed("prepare.py", *configs(folder), f"--corpus={texts}")
    return folder


def configs(folder: Path, names: tuple[str, ...] = NAMES) -> list[Path]:
    """Config files of languages whose data are in a folder."""
    for name in names:
        lines = f'language = "{name}"\ndata_dir = "{folder / name}"\nsegmenter = "line"\n'
        (folder / f"{name}.py").write_text(lines)
    return [folder / f"{name}.py" for name in names]


def stored(folder: Path) -> Path:
    """The folder of the annotations beside prepared data."""
    (found,) = (folder / "annotations").iterdir()
    return found


def parts_of(path: Path) -> list[list]:
    """The sentences in a file of annotations."""
    return json.loads(gzip.decompress(path.read_bytes()))["sentences"]


def words_of(folder: Path, split: str) -> list[list[list[plain_hop.Word]]]:
    """By genre (of at most one part), the sentences of a split as annotations store them."""
    genres = []
    for path in sorted((folder / split).iterdir()):
        sentences = []
        for words, places, is_plural, lemmas, _ in parts_of(path):
            verbs = zip(places, lemmas, is_plural, strict=True)
            number = {at: (lemma, "Plur" if plural else "Sing") for at, lemma, plural in verbs}
            texts = enumerate(words)
            sentences.append([plain_hop.Word(t, *number.get(i, (None, None))) for i, t in texts])
        genres.append(sentences)
    return genres


@pytest.mark.parametrize("name", NAMES)
def test_token_files_are_those_of_the_published_rules(
    name: str, prepared: Path, tmp_path: Path
) -> None:
    write_transformers_files(tmp_path, [], 1024)
    encode = plain.gpt2_tokenizer(tmp_path).encode
    for split in SPLITS:
        unaffected, affected, mixed = [], [], []
        for genre in words_of(stored(prepared), split):
            perturbed = [(s, plain_hop.perturb(name, s, encode)) for s in genre]
            kept = [(any(w.number for w in s), t) for s, t in perturbed if t]
            parts = [[t for marked, t in kept if marked == which] for which in (False, True)]
            unaffected += parts[0]
            affected += parts[1]
            mixed += [*parts[0], *parts[1]]
        if split == "test":
            check(prepared / name / "test.bin", affected)
            meta = json.loads((prepared / name / "meta.json").read_text())
            assert meta["splits"]["test"]["unmarked"] == len(unaffected)
        else:
            np.random.default_rng(41).shuffle(mixed)
            check(prepared / name / f"{split}.bin", mixed)
        assert unaffected and affected


def check(path: Path, sentences: list[list[int]]) -> None:
    expected = [token for sentence in sentences for token in [*sentence, plain.END_OF_TEXT]]
    np.testing.assert_array_equal(np.fromfile(path, np.dtype("<u2")), expected)


def test_meta_says_who_annotated_and_counts_the_words_of_the_text(
    prepared: Path, texts: Path
) -> None:
    meta = json.loads((prepared / "no_hop" / "meta.json").read_text())
    assert meta["annotator"]["model"] == "en_core_web_sm 3.8.0"
    assert meta["annotator"]["versions"].keys() == {"spacy", "thinc"}
    for split, name in SPLITS.items():
        words = sum(len(p.read_text(encoding="utf-8").split()) for p in (texts / name).iterdir())
        entry = meta["splits"][split]
        if split != "test":  # of which the sentences without a marker are left out
            assert entry["words"] + entry["dropped_words"] == words
    assert json.loads((stored(prepared) / "meta.json").read_text()) == meta["annotator"]
    for split in SPLITS:
        entry = meta["splits"][split]
        total = sum(len(parts_of(path)) for path in (stored(prepared) / split).iterdir())
        assert entry["sentences"] + entry["dropped"] + entry.get("unmarked", 0) == total


def test_languages_prepared_one_at_a_time_have_the_same_files(
    prepared: Path, texts: Path, tmp_path: Path
) -> None:
    for config in configs(tmp_path):
        succeed("prepare.py", config, f"--corpus={texts}", "--workers=1")
    for name in NAMES:
        for path in (prepared / name).glob("*.*"):
            assert (tmp_path / name / path.name).read_bytes() == path.read_bytes(), path
    ours, theirs = stored(tmp_path), stored(prepared)
    assert ours.name == theirs.name
    for path in theirs.rglob("*.gz"):
        assert (ours / path.relative_to(theirs)).read_bytes() == path.read_bytes()


def test_stored_annotations_need_no_annotator(
    prepared: Path, texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(prepared / "annotations", tmp_path / "annotations")
    monkeypatch.setattr(annotate, "_MODELS", ("no_such_model",))
    (config,) = configs(tmp_path, ("no_hop",))
    succeed("prepare.py", config, f"--corpus={texts}")
    meta = (tmp_path / "no_hop" / "meta.json").read_bytes()
    assert meta == (prepared / "no_hop" / "meta.json").read_bytes()
    (stored(tmp_path) / "test" / "000000.json.gz").write_bytes(b"cut")
    shutil.rmtree(tmp_path / "no_hop")
    error = fail("prepare.py", config, f"--corpus={texts}")
    assert "000000.json.gz is missing or damaged" in error


def test_annotations_of_another_shape_are_refused(
    prepared: Path, texts: Path, tmp_path: Path
) -> None:
    shutil.copytree(prepared / "annotations", tmp_path / "annotations")
    (config,) = configs(tmp_path, ("no_hop",))
    for content in ('{"annotator": {"rule": 1}}', "{", "[]"):
        (stored(tmp_path) / "meta.json").write_text(content)
        error = fail("prepare.py", config, f"--corpus={texts}")
        assert "meta.json is damaged" in error and "annotate again" in error


def test_without_spacy_or_its_very_model_the_error_says_what_to_install(
    texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (config,) = configs(tmp_path, ("word_hop",))
    command = ("prepare.py", config, f"--corpus={texts}")
    annotate._pipeline.cache_clear()  # an earlier test may have loaded it in this process
    with monkeypatch.context() as patch:
        patch.setattr(annotate, "_MODELS", ("no_such_model",))
        assert "en_core_web_sm is not installed" in fail(*command)
        assert "make install-hop" in fail("perturb.py", "word_hop", "He runs.")
    hashes = tmp_path / "hashes"
    hashes.write_text("0" * 64 + "  tagger/model\n")
    monkeypatch.setattr(annotate, "_HASHES", hashes)
    error = fail(*command)
    assert "tagger/model is missing or differs from en_core_web_sm 3.8.0" in error
    assert not (tmp_path / "word_hop").exists()


def test_an_annotation_that_was_killed_continues_after_its_last_part(tmp_path: Path) -> None:
    lines = speeches("1962-Kennedy-1", "1970-Nixon-1").splitlines()
    for name in SPLITS.values():
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.txt").write_text("\n".join(lines), encoding="utf-8")
        lines = lines[:100]
    code = "import runpy, sys; from impossible.text import annotate as a; a.PART = 40; "
    code += "sys.argv = sys.argv[1:]; runpy.run_path('prepare.py', run_name='__main__')"
    (config,) = configs(tmp_path, ("no_hop",))
    command = ("-c", code, "prepare.py", config, f"--corpus={tmp_path}", "--workers=2")
    process = start(*command)
    deadline = time.monotonic() + 120
    parts = "annotations/*/*/*.gz"
    while len(list(tmp_path.glob(parts))) < 3:
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.05)
    workers = [int(pid) for pid in children(process.pid)]
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    while any(Path(f"/proc/{pid}").exists() for pid in workers):  # none stays behind
        assert time.monotonic() < deadline
        time.sleep(0.1)
    before = {path: path.stat().st_ino for path in tmp_path.glob(parts)}
    first, other = min(before), max(before)
    shutil.copy(first, other)  # whole, but of other sentences
    resumed = start(*command)
    assert resumed.wait(timeout=120) == 0
    resumed.communicate()
    assert [path for path in before if path.stat().st_ino != before[path]] == [other]
    other_dir = tmp_path / "undisturbed"
    other_dir.mkdir()
    (config,) = configs(other_dir, ("no_hop",))
    succeed("prepare.py", config, f"--corpus={tmp_path}")
    for split in SPLITS:
        for path in (other_dir / "no_hop").glob("*.bin"):
            assert (tmp_path / "no_hop" / path.name).read_bytes() == path.read_bytes()
        ours, theirs = (words_of(stored(folder), split) for folder in (tmp_path, other_dir))
        assert list(itertools.chain(*ours)) == list(itertools.chain(*theirs))
    assert not (stored(tmp_path) / "begun.json").exists()


def children(pid: int) -> list[str]:
    tasks = Path(f"/proc/{pid}/task").glob("*/children")
    return [child for task in tasks for child in task.read_text().split()]


def test_numbers_of_verbs_are_read_from_their_subjects() -> None:
    cases = {
        "The dogs sleep in the garden all day.": ["sleep 🄿"],
        "I think that they know it.": ["know 🄿"],
        "You and he go home every day.": [],
        "We are here, and there are two books on the table.": ["are 🄿"],
        "The girls who live here don't like it.": ["live 🄿", "do 🄿"],
        "She doesn’t know what he wants.": ["does 🅂", "wants 🅂"],
        "Do the children sing and dance?": ["Do 🄿"],
        "Go home and sleep.": [],
        "He was there, they were there, and she had slept.": [],
    }
    for text, words in zip(cases, annotate.words_of(list(cases)), strict=True):
        marker = {SINGULAR: perturb.SINGULAR, PLURAL: perturb.PLURAL}
        assert [f"{w.text} {marker[w.feats]}" for w in words if w.feats] == cases[text], text


def test_annotations_do_not_depend_on_batches() -> None:
    sentences = speeches("1962-Kennedy-1").splitlines()[:80]
    together = list(annotate.words_of(sentences))
    assert together == [next(annotate.words_of([sentence])) for sentence in sentences]


def conllu(words: list[tuple], text: str | None = None) -> str:
    """A sentence in CoNLL-U. words: each a text and, for some, a lemma and features."""
    lines = [f"# text = {text}"] if text else []
    for i, (word, *rest) in enumerate(words, 1):
        lemma, feats = rest or ("_", "_")
        lines.append(f"{i}\t{word}\t{lemma}\tX\t_\t{feats}\t0\t_\t_\t_")
    return "\n".join(lines) + "\n\n"


def write_splits(folder: Path, name: str, data: bytes) -> Path:
    for split in SPLITS.values():
        (folder / split).mkdir(parents=True)
        (folder / split / name).write_bytes(data)
    return folder


def test_files_of_each_kind_give_the_same_tokens(tmp_path: Path) -> None:
    text = "He cleans his very messy bookshelf."
    contraction = "1-2\tdoesn't\t_\t_\t_\t_\t_\t_\t_\t_\n1\tdoes\t_\tX\t_\t_\t_\t_\t_\t_\n"
    contraction += "2\tn't\t_\tX\t_\t_\t_\t_\t_\t_\n2.1\tempty\t_\tX\t_\t_\t_\t_\t_\t_\n\n"
    underscore = "1\ta\t_\tX\t_\t_\t_\t_\t_\t_\n2\t_\t_\tSYM\t_\t_\t_\t_\t_\t_\n\n"
    plain_text = (conllu(SENTENCE, text) + underscore + "# text = doesn't\n" + contraction).encode()
    folders = {
        "plain": ("a.conllu", plain_text),
        "packed": ("a.conllu.gz", gzip.compress(plain_text)),
    }
    found = []
    for kind, (name, data) in folders.items():
        folder = write_splits(tmp_path / kind, name, data)
        (tmp_path / f"data_{kind}").mkdir()
        paths = configs(tmp_path / f"data_{kind}")
        printed = succeed("prepare.py", *paths, f"--annotations={folder}", "--corpus=no_such")
        assert "warning: no plural verb is marked in the train split" in printed
        names = [f"{name}/{split}.bin" for name in NAMES for split in SPLITS]
        found.append([(tmp_path / f"data_{kind}" / name).read_bytes() for name in names])
    assert found[0] == found[1]


VERB = "Mood=Ind|Person=3|Tense=Pres|VerbForm=Fin"
BAD = {
    "words that do not add up": (
        "a.conllu",
        conllu(SENTENCE[:-2], "He cleans his very messy bookshelf."),
        "a.conllu, line 2: the words 'He cleans his very messy' do not add up to the sentence",
    ),
    "a verb without number": (
        "a.conllu",
        conllu(SENTENCE) + conllu([("It",), ("rains", "rain", VERB)]),
        "a.conllu, line 9: the verb 'rains' has the features",
    ),
    "no verb": ("a.conllu", conllu([("Hello",), ("world",)]), "no verb of the train split"),
    "no sentence": ("a.conllu", "# nothing\n", "a.conllu holds no sentence"),
    "columns": (
        "a.conllu",
        "1\tHe\the\n\n",
        "a.conllu, line 1: 3 columns found, 10 expected",
    ),
    "an empty word": ("a.conllu", "1\t\tx\t_\t_\t_\t_\t_\t_\t_\n\n", "line 1: the word '' has"),
    "no number": ("a.conllu", "x\tHe\t_\t_\t_\t_\t_\t_\t_\t_\n\n", "has the number 'x'"),
    "a verb without lemma": (
        "a.conllu",
        conllu(SENTENCE) + conllu([("It",), ("rains", "_", SINGULAR)]),
        "a.conllu, line 9: the verb 'rains' has no lemma",
    ),
    "no blank line between two sentences": (
        "a.conllu",
        conllu(SENTENCE).rstrip() + "\n" + conllu(SENTENCE),
        "a.conllu, line 8: the word 'He' has the number '1'. Expected a word with the number 8",
    ),
    "a blank line within a sentence": (
        "a.conllu",
        conllu(SENTENCE).replace("\n3", "\n\n3"),
        "a.conllu, line 4: the word 'his' has the number '3'. Expected a word with the number 1",
    ),
    "withheld words": (
        "a.conllu",
        conllu(SENTENCE) + conllu([("_",), ("_",), ("_",)], "_ _ _"),
        "a.conllu, line 10: the word is '_'",
    ),
    "not packed": ("a.conllu.gz", "plain", "a.conllu.gz is damaged"),
    "no annotations": ("a.txt", "He runs.", "holds no annotations for train"),
}


@pytest.mark.parametrize(("name", "text", "expected"), BAD.values(), ids=BAD.keys())
def test_bad_annotations_are_refused_with_their_place(
    name: str, text: str, expected: str, tmp_path: Path
) -> None:
    folder = write_splits(tmp_path / "bad", name, text.encode())
    (config,) = configs(tmp_path, ("no_hop",))
    assert expected in fail("prepare.py", config, f"--annotations={folder}")
    assert not (tmp_path / "no_hop" / "meta.json").exists()
    assert not list(tmp_path.glob("annotations/*/meta.json"))


def test_a_sentence_that_is_too_long_to_parse_is_refused() -> None:
    with pytest.raises(UserError, match="Break the line in the corpus"):
        next(annotate.words_of(["word " * 30_000]))


def test_annotations_are_for_the_hop_languages_alone(
    texts: Path, prepared: Path, tmp_path: Path
) -> None:
    """Given on the command line for all languages, they leave the others with their corpus."""
    data = conllu(SENTENCE, "He cleans his very messy bookshelf.").encode()
    folder = write_splits(tmp_path / "annotated", "a.conllu", data)
    paths = configs(tmp_path, ("no_hop", "no_shuffle"))
    succeed("prepare.py", *paths, f"--corpus={texts}", f"--annotations={folder}")
    metas = [json.loads((tmp_path / n / "meta.json").read_text()) for n in ("no_hop", "no_shuffle")]
    assert [meta["corpus"] for meta in metas] == [str(folder), str(texts)]


@pytest.mark.parametrize("language", ["no_hop", "no_shuffle"])
def test_a_genre_whose_files_do_not_follow_each_other_is_refused(
    language: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for split in SPLITS.values():
        (tmp_path / split).mkdir()
        for name in ("a", "b", "c"):
            (tmp_path / split / f"{name}.txt").write_text("He cleans his very messy bookshelf.")
    monkeypatch.setattr("impossible.text.corpus._genre", lambda path: "ab"[path.stem == "b"])
    (config,) = configs(tmp_path, (language,))
    error = fail("prepare.py", config, f"--corpus={tmp_path}")
    assert "the genre 'a' occurs twice, with another genre between" in error
    assert not (tmp_path / language / "meta.json").exists()


def test_annotations_of_a_text_that_changed_meanwhile_are_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for split in SPLITS.values():
        (tmp_path / split).mkdir()
        (tmp_path / split / "a.txt").write_text("He cleans his very messy bookshelf.\n")
    (config,) = configs(tmp_path, ("no_hop",))
    write_split = token_files.write_split

    def write_and_change(*arguments: object) -> dict:
        with open(tmp_path / "test" / "a.txt", "a") as file:
            file.write("One more.\n")
        return write_split(*arguments)

    monkeypatch.setattr(token_files, "write_split", write_and_change)
    assert "changed while it was being read" in fail("prepare.py", config, f"--corpus={tmp_path}")
    assert not list(tmp_path.glob("annotations/*/meta.json"))


def test_two_files_of_one_genre_are_refused(tmp_path: Path) -> None:
    folder = write_splits(tmp_path / "two", "a.conllu", conllu(SENTENCE).encode())
    (folder / "100M" / "a.conllu.gz").write_bytes(gzip.compress(conllu(SENTENCE).encode()))
    (config,) = configs(tmp_path, ("no_hop",))
    error = fail("prepare.py", config, f"--annotations={folder}")
    assert "a.conllu.gz and a.conllu are both of the genre 'a'. Keep only one" in error


@pytest.mark.slow
def test_ctrl_c_ends_an_annotation_at_once_and_leaves_no_process(tmp_path: Path) -> None:
    lines = speeches("1962-Kennedy-1", "1970-Nixon-1", "1981-Carter-1").splitlines() * 3
    for name in SPLITS.values():
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.txt").write_text("\n".join(lines), encoding="utf-8")
    (config,) = configs(tmp_path, ("no_hop",))
    process = start("prepare.py", config, f"--corpus={tmp_path}", "--workers=2")
    deadline = time.monotonic() + 60
    while len(children(process.pid)) < 2:
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.05)
    time.sleep(3)
    workers = [int(pid) for pid in children(process.pid)]
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=20) == 1
    assert "interrupted. " in process.communicate()[1]
    while any(Path(f"/proc/{pid}").exists() for pid in workers):
        assert time.monotonic() < deadline + 60
        time.sleep(0.1)


def test_bytes_that_were_replaced_are_counted(tmp_path: Path) -> None:
    for split in SPLITS.values():
        (tmp_path / split).mkdir()
        (tmp_path / split / "a.txt").write_bytes(b"He cleans his very messy caf\xe9 today.\n")
    (config,) = configs(tmp_path, ("no_hop",))
    printed = succeed("prepare.py", config, f"--corpus={tmp_path}", "--invalid_utf8=replace")
    assert printed.count("were replaced by U+FFFD 1 times") == 3
    meta = json.loads((tmp_path / "no_hop" / "meta.json").read_text())
    assert [meta["splits"][split]["replaced"] for split in SPLITS] == [1, 1, 1]


@pytest.mark.skipif(not shutil.which("localedef"), reason="no locale can be made")
def test_a_folder_may_have_letters_that_the_locale_writes_in_another_way(tmp_path: Path) -> None:
    locale = "en_US.ISO-8859-1"
    subprocess.run(["localedef", "-i", "en_US", "-f", "ISO-8859-1", tmp_path / locale], check=True)
    env = {"LOCPATH": str(tmp_path), "LC_ALL": locale, "PYTHONUTF8": "0"}
    folder = tmp_path / "kinder_ü"
    for split in SPLITS.values():
        (folder / split).mkdir(parents=True)
        (folder / split / "größe.txt").write_text("He cleans his very messy bookshelf.\n")
    command = ("prepare.py", "config/no_hop.py", f"--corpus={folder}", "--workers=1")
    succeed(*command, f"--data_dir={folder / 'data' / 'no_hop'}", env=env)
    (annotated,) = (folder / "data" / "annotations").iterdir()
    assert annotated.name.startswith("kinder_ü-")
    assert (annotated / "meta.json").exists()


def test_annotations_by_an_older_rule_are_told(
    prepared: Path, texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(prepared / "annotations", tmp_path / "annotations")
    monkeypatch.setattr(annotate, "RULE", annotate.RULE + 1)
    (config,) = configs(tmp_path, ("no_hop",))
    assert "was annotated by an older rule" in succeed("prepare.py", config, f"--corpus={texts}")


@pytest.mark.parametrize("source", ["spacy", "files"])
def test_a_hop_language_goes_all_the_way(
    source: str, prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From prepared data to exports, their cards, evaluation and samples, without spaCy."""
    data_dir = prepared / "word_hop"
    if source == "files":
        text = "He cleans his very messy bookshelf."
        data = conllu(SENTENCE, text).encode() * 30
        folder = write_splits(tmp_path / "annotated", "a.conllu", data)
        data_dir = tmp_path / "data" / "word_hop"
        (tmp_path / "data").mkdir()
        (config,) = configs(tmp_path / "data", ("word_hop",))
        succeed("prepare.py", config, f"--annotations={folder}")
    monkeypatch.setattr(annotate, "_MODELS", ("no_such_model",))
    places = {"language": "word_hop", "data_dir": str(data_dir), "out_dir": str(tmp_path / "out")}
    config = write_config(tmp_path / "config.py", **places)
    succeed("train.py", config)
    succeed("convert_to_hf.py", config)
    card = (tmp_path / "out" / "hf" / "checkpoint-6" / "README.md").read_text(encoding="utf-8")
    assert "WordHop: He clean his very messy books he lf 🅂 ." in card
    assert f"The verbs were marked by {source}" in card
    assert "or fewer than 4 words after a verb" in card
    printed = succeed("eval.py", config, "--device=cpu")
    assert "WordHop" in printed
    shown = succeed("sample.py", config, "--device=cpu", "--undo", "--new_tokens=3")
    assert "undone: " in shown


def test_more_sentences_than_are_perturbed_in_one_go_keep_their_verbs(tmp_path: Path) -> None:
    """More than 65,536 sentences: verbs move with their sentences."""
    kinds = [
        [("We",), ("all",), ("go",), (".",)],
        [*SENTENCE, ("Yes",)],
        [("Dogs",), ("sleep", "sleep", PLURAL), ("in",), ("the",), ("big",), ("house",), (".",)],
    ]
    order = np.random.default_rng(0).integers(0, 3, 70_000).tolist()
    folder = write_splits(tmp_path / "annotated", "a.conllu", conllu(kinds[1]).encode())
    texts = [conllu(kind) for kind in kinds]
    (folder / "100M" / "a.conllu").write_text("".join(texts[i] for i in order))
    (config,) = configs(tmp_path, ("token_hop",))
    succeed("prepare.py", config, f"--annotations={folder}")
    write_transformers_files(tmp_path, [], 1024)
    encode = plain.gpt2_tokenizer(tmp_path).encode
    number = {SINGULAR: "Sing", PLURAL: "Plur"}
    tokens = []
    for kind in kinds:
        words = [plain_hop.Word(w[0], *((w[1], number[w[2]]) if w[1:] else ())) for w in kind]
        tokens.append(plain_hop.perturb("token_hop", words, encode))
    expected = [tokens[i] for i in order if not i] + [tokens[i] for i in order if i]
    np.random.default_rng(41).shuffle(expected)
    check(tmp_path / "token_hop" / "train.bin", expected)


def test_parts_by_another_annotator_are_not_mixed_with_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for split in SPLITS.values():
        (tmp_path / split).mkdir()
        text = "He went." if split == "test" else "He cleans his very messy bookshelf."
        (tmp_path / split / "a.txt").write_text(f"{text}\n")
    (config,) = configs(tmp_path, ("no_hop",))
    command = ("prepare.py", config, f"--corpus={tmp_path}", "--workers=1")
    assert "no verb of the test split" in fail(*command)
    before = {path for path in tmp_path.glob("annotations/**/*") if path.is_file()}
    stamps = {path: path.stat().st_mtime_ns for path in before if "train" in str(path)}
    assert stamps
    assert "starting anew" not in run(*command).stdout
    assert all(path.stat().st_mtime_ns == stamps[path] for path in stamps if path.suffix == ".gz")
    monkeypatch.setattr(annotate, "RULE", annotate.RULE + 1)
    done = run(*command)
    assert "was begun with other versions: starting anew" in done.stdout
    assert not any(path.exists() and path.stat().st_mtime_ns == stamps[path] for path in stamps)
