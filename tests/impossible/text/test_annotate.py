"""Annotated words: by spaCy, and from files."""

import gzip
import itertools
import json
import os
import shutil
import signal
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import plain
import plain_hop
import pytest
from conftest import fail, speeches, start, succeed, wait_for, write_config

import perturb
import prepare
from impossible.settings import UserError, load
from impossible.text import annotate, token_files
from impossible.text.tokenizer import Tokenizer, write_transformers_files
from impossible.text.verbs import PLURAL, SINGULAR

PUBLISHED = ("no_hop", "token_hop", "word_hop")
NAMES = (*PUBLISHED, "phrase_hop")
SPLITS = {"train": "100M", "val": "dev", "test": "test"}
TEXT = "He cleans his very messy bookshelf."
SENTENCE = [
    ("He",),
    ("cleans", "clean", SINGULAR),
    *zip(("his", "very", "messy", "bookshelf", ".")),
]


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
        data = (odd + "\n".join(lines[i::6])).encode()
        (folder / name / "second.txt").write_bytes(b"He likes the caf\xe9 very much here.\n" + data)
    return folder


@pytest.fixture(scope="module")
def annotated(texts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All Hop languages, prepared together."""
    folder = tmp_path_factory.mktemp("together")
    printed = succeed("prepare.py", *configs(folder), f"--corpus={texts}")
    assert printed.count("were replaced by U+FFFD 1 times") == 3 * len(NAMES)
    return folder


def configs(folder: Path, names: tuple[str, ...] = NAMES) -> list[Path]:
    """Config files of languages whose data are in a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        lines = f'language = "{name}"\ndata_dir = "{folder / name}"\nsegmenter = "line"\n'
        (folder / f"{name}.py").write_text(lines + 'invalid_utf8 = "replace"\n')
    return [folder / f"{name}.py" for name in names]


def write_splits(folder: Path, name: str, data: str | bytes) -> Path:
    """A folder with one file, the same in each split."""
    for split in SPLITS.values():
        (folder / split).mkdir(parents=True)
        (folder / split / name).write_bytes(data.encode() if isinstance(data, str) else data)
    return folder


def meta_of(data_dir: Path) -> dict:
    return json.loads((data_dir / "meta.json").read_text(encoding="utf-8"))


def stored(folder: Path) -> Path:
    """The folder of the annotations beside prepared data."""
    (path,) = (folder / "annotations").iterdir()
    return path


def parts_of(path: Path) -> list[list]:
    """The sentences in a file of annotations."""
    (sentences,) = json.loads(gzip.decompress(path.read_bytes())).values()
    return sentences


def words_of(folder: Path, split: str) -> list[list[list[plain_hop.Word]]]:
    """By part (small genres have one), the sentences of a split as annotations store them."""
    parts = []
    for path in sorted((folder / split).iterdir()):
        sentences = []
        for words, places, is_plural, lemmas, _, heads, relations in parts_of(path):
            verbs = zip(places, lemmas, is_plural, strict=True)
            number = {at: (lemma, "Plur" if plural else "Sing") for at, lemma, plural in verbs}
            rows = enumerate(zip(words, heads, relations, strict=True))
            sentences.append(
                [plain_hop.Word(t, *number.get(i, (None, None)), *tree) for i, (t, *tree) in rows]
            )
        parts.append(sentences)
    return parts


def check(path: Path, sentences: list[list[int]]) -> None:
    expected = [token for sentence in sentences for token in [*sentence, plain.END_OF_TEXT]]
    np.testing.assert_array_equal(np.fromfile(path, np.dtype("<u2")), expected)


@pytest.mark.parametrize("name", NAMES)
def test_token_files_are_those_of_the_published_rules(
    name: str, annotated: Path, tmp_path: Path
) -> None:
    write_transformers_files(tmp_path, Tokenizer([]), 1024)
    encode = plain.gpt2_tokenizer(tmp_path).encode
    for split in SPLITS:
        unaffected, affected, mixed = [], [], []
        for genre in words_of(stored(annotated), split):
            perturbed = [(s, plain_hop.perturb(name, s, encode)) for s in genre]
            kept = [(any(w.number for w in s), t) for s, t in perturbed if t]
            parts = [[t for marked, t in kept if marked == which] for which in (False, True)]
            unaffected += parts[0]
            affected += parts[1]
            mixed += [*parts[0], *parts[1]]
        if split == "test":
            check(annotated / name / "test.bin", affected)
            assert meta_of(annotated / name)["splits"]["test"]["unmarked"] == len(unaffected)
        else:
            np.random.default_rng(41).shuffle(mixed)
            check(annotated / name / f"{split}.bin", mixed)
        assert unaffected and affected


def test_meta_says_who_annotated_and_counts_the_words_of_the_text(
    annotated: Path, texts: Path
) -> None:
    meta = meta_of(annotated / "no_hop")
    assert meta["annotator"]["model"] == "en_core_web_sm 3.8.0"
    assert meta["annotator"]["versions"].keys() == {"spacy", "thinc"}
    assert meta_of(stored(annotated)) == meta["annotator"]
    for split, name in SPLITS.items():
        entry = meta["splits"][split]
        data = (path.read_bytes() for path in (texts / name).iterdir())
        if split != "test":  # of which the sentences without a marker are left out
            words = sum(len(text.decode(errors="replace").split()) for text in data)
            assert entry["words"] + entry["dropped_words"] == words
        total = sum(len(parts_of(path)) for path in (stored(annotated) / split).iterdir())
        assert entry["sentences"] + entry["dropped"] + entry.get("unmarked", 0) == total
        assert entry["replaced"] == 1


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Annotates in a thread: a new process would load the model again."""
    monkeypatch.setattr(annotate, "_pool", ThreadPoolExecutor)


@pytest.mark.usefixtures("in_this_process")
def test_languages_prepared_one_at_a_time_and_in_chunks_have_the_same_files(
    annotated: Path, texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prepare, "CHUNK", 7)  # verbs move with their sentences
    names = NAMES[1::2]
    for config in configs(tmp_path, names):
        prepare.main(load("prepare.py", [str(config), f"--corpus={texts}", "--workers=1"]))
    compared = [path for name in names for path in (annotated / name).glob("*.*")]
    for path in [*compared, *stored(annotated).rglob("*.gz")]:
        assert (tmp_path / path.relative_to(annotated)).read_bytes() == path.read_bytes(), path


def test_stored_annotations_need_no_annotator_and_are_checked(
    annotated: Path, texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(annotated / "annotations", tmp_path / "annotations")
    monkeypatch.setattr(annotate, "_MODELS", ("no_such_model",))
    (config,) = configs(tmp_path, ("no_hop",))
    command = ("prepare.py", config, f"--corpus={texts}")
    succeed(*command)
    assert meta_of(tmp_path / "no_hop") == meta_of(annotated / "no_hop")
    shutil.rmtree(tmp_path / "no_hop")
    with monkeypatch.context() as patch:
        patch.setattr(annotate, "RULE", annotate.RULE + 1)
        assert "was made by an older rule (1; now 2)" in succeed(*command)
    shutil.rmtree(tmp_path / "no_hop")
    (stored(tmp_path) / "test" / "000000.json.gz").write_bytes(b"cut")
    assert "000000.json.gz is missing or damaged" in fail(*command)
    for content in ('{"annotator": {"rule": 1}}', "{", "[]"):
        (stored(tmp_path) / "meta.json").write_text(content)
        error = fail(*command)
        assert "meta.json is damaged" in error and "To annotate again, delete" in error


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
    (tmp_path / "hashes").write_text("0" * 64 + "  tagger/model\n")
    monkeypatch.setattr(annotate, "_HASHES", tmp_path / "hashes")
    error = fail(*command)
    assert "tagger/model is not installed, or does not belong to en_core_web_sm 3.8.0" in error
    assert not (tmp_path / "word_hop").exists()


def children(pid: int) -> list[int]:
    tasks = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for task in tasks for child in task.read_text().split()]


def wait_for_end(pids: list[int]) -> None:
    wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids))


@pytest.mark.slow
def test_an_annotation_that_was_killed_continues_after_its_last_part(tmp_path: Path) -> None:
    lines = speeches("1962-Kennedy-1").splitlines()
    write_splits(tmp_path, "a.txt", "\n".join(lines[:40]))
    (tmp_path / "100M" / "a.txt").write_text("\n".join(lines), encoding="utf-8")
    code = "import runpy, sys; from impossible.text import corpus; corpus.CHUNK = 4000; "
    code += "sys.argv = sys.argv[1:]; runpy.run_path('prepare.py', run_name='__main__')"
    (config,) = configs(tmp_path, ("no_hop",))
    command = ("-c", code, "prepare.py", config, f"--corpus={tmp_path}", "--workers=2")
    process = start(*command)
    parts = "annotations/*/*/*.gz"
    wait_for(lambda: len(list(tmp_path.glob(parts))) >= 3 or process.poll() is not None)
    assert process.poll() is None
    workers = children(process.pid)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    wait_for_end(workers)
    before = {path: path.stat().st_ino for path in tmp_path.glob(parts)}
    first, other = min(before), max(before)
    shutil.copy(first, other)  # whole, but of other sentences
    succeed(*command, processes=1)
    assert [path for path in before if path.stat().st_ino != before[path]] == [other]
    undisturbed = tmp_path / "undisturbed"
    (config,) = configs(undisturbed, ("no_hop",))
    succeed("prepare.py", config, f"--corpus={tmp_path}")
    for split in SPLITS:
        path = Path("no_hop", f"{split}.bin")
        assert (tmp_path / path).read_bytes() == (undisturbed / path).read_bytes()
        ours, theirs = (words_of(stored(folder), split) for folder in (tmp_path, undisturbed))
        assert list(itertools.chain(*ours)) == list(itertools.chain(*theirs))


@pytest.mark.slow
def test_ctrl_c_ends_an_annotation_at_once_and_leaves_no_process(tmp_path: Path) -> None:
    text = speeches("1962-Kennedy-1", "1970-Nixon-1", "1981-Carter-1") * 3
    write_splits(tmp_path, "a.txt", text)
    (config,) = configs(tmp_path, ("no_hop",))
    process = start("prepare.py", config, f"--corpus={tmp_path}", "--workers=2")
    wait_for(lambda: len(children(process.pid)) >= 2 or process.poll() is not None)
    time.sleep(3)
    workers = children(process.pid)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=20) == 1
    assert "interrupted. " in process.communicate()[1]
    wait_for_end(workers)


@pytest.mark.usefixtures("in_this_process")
def test_parts_by_another_annotator_are_not_mixed_with_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_splits(tmp_path, "a.txt", TEXT)
    (tmp_path / "test" / "a.txt").write_text("He went.")
    (config,) = configs(tmp_path, ("no_hop",))
    command = ("prepare.py", config, f"--corpus={tmp_path}", "--workers=1")
    assert "no verb of the test split" in fail(*command)
    (part,) = (stored(tmp_path) / "train").iterdir()
    before = part.stat().st_mtime_ns
    monkeypatch.setattr(annotate, "RULE", annotate.RULE + 1)
    fail(*command)
    assert part.stat().st_mtime_ns != before


@pytest.mark.usefixtures("in_this_process")
def test_annotations_of_a_text_that_changed_meanwhile_are_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_splits(tmp_path, "a.txt", TEXT)
    (config,) = configs(tmp_path, ("no_hop",))
    write_split = token_files.write_split

    def write_and_change(*arguments: object) -> dict:
        with open(tmp_path / "test" / "a.txt", "a") as file:
            file.write("One more.\n")
        return write_split(*arguments)

    monkeypatch.setattr(token_files, "write_split", write_and_change)
    assert "changed while it was being read" in fail("prepare.py", config, f"--corpus={tmp_path}")
    assert not list(tmp_path.glob("annotations/*/meta.json"))


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("localedef"), reason="no locale can be made")
def test_a_folder_may_have_letters_that_the_locale_writes_in_another_way(tmp_path: Path) -> None:
    locale = "en_US.ISO-8859-1"
    subprocess.run(["localedef", "-i", "en_US", "-f", "ISO-8859-1", tmp_path / locale], check=True)
    env = {"LOCPATH": str(tmp_path), "LC_ALL": locale, "PYTHONUTF8": "0"}
    folder = write_splits(tmp_path / "kinder_ü", "größe.txt", TEXT)
    command = ("prepare.py", "config/no_hop.py", f"--corpus={folder}", "--workers=1")
    succeed(*command, f"--data_dir={folder / 'data' / 'no_hop'}", env=env)
    assert stored(folder / "data").name.startswith("kinder_ü-")
    assert (stored(folder / "data") / "meta.json").exists()


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


def test_heads_are_numbers_of_words_among_which_white_space_is_none() -> None:
    texts = ("The old dog \u00a0 barks \t at  me.", "He  sees that she sleeps.")
    shown = [
        [(w.text, w.head and words[w.head - 1].text, w.relation) for w in words]
        for words in annotate.words_of(texts)
    ]
    assert shown[0] == [
        ("The", "dog", "det"),
        ("old", "dog", "amod"),
        ("dog", "barks", "nsubj"),
        ("barks", 0, "ROOT"),
        ("at", "barks", "prep"),
        ("me", "at", "pobj"),
        (".", "barks", "punct"),
    ]
    assert shown[1][-2:] == [("sleeps", "sees", "ccomp"), (".", "sees", "punct")]


def test_annotations_do_not_depend_on_batches() -> None:
    sentences = speeches("1962-Kennedy-1").splitlines()[:40]
    together = list(annotate.words_of(sentences))
    assert together == [next(annotate.words_of([sentence])) for sentence in sentences]


def test_a_sentence_that_is_too_long_to_parse_is_refused() -> None:
    with pytest.raises(UserError, match="Break the line in the corpus"):
        next(annotate.words_of(["word " * 30_000]))


# Files


def conllu(words: list[tuple], text: str | None = None) -> str:
    """A sentence in CoNLL-U. words: each a text and, for some, a lemma and features."""
    lines = [f"# text = {text}"] if text else []
    for i, (word, *rest) in enumerate(words, 1):
        lemma, feats = rest or ("_", "_")
        lines.append(f"{i}\t{word}\t{lemma}\tX\t_\t{feats}\t0\t_\t_\t_")
    return "\n".join(lines) + "\n\n"


def test_plain_and_packed_files_give_the_same_tokens(tmp_path: Path) -> None:
    contraction = "1-2\tdoesn't\t_\t_\t_\t_\t_\t_\t_\t_\n1\tdoes\t_\tX\t_\t_\t_\t_\t_\t_\n"
    contraction += "2\tn't\t_\tX\t_\t_\t_\t_\t_\t_\n2.1\tempty\t_\tX\t_\t_\t_\t_\t_\t_\n\n"
    underscore = "1\ta\t_\tX\t_\t_\t_\t_\t_\t_\n2\t_\t_\tSYM\t_\t_\t_\t_\t_\t_\n\n"
    data = (conllu(SENTENCE, TEXT) + underscore + "# text = doesn't\n" + contraction).encode()
    tokens = []
    for name, of_file in {"a.conllu": data, "a.conllu.gz": gzip.compress(data)}.items():
        folder = write_splits(tmp_path / name, name, of_file)
        (config,) = configs(folder / "data", ("token_hop",))
        printed = succeed("prepare.py", config, f"--annotations={folder}", "--corpus=no_such")
        assert "warning: no plural verb is marked in the train split" in printed
        assert list(meta_of(folder / "data" / "token_hop")["splits"]["test"]["genres"]) == ["a"]
        tokens.append((folder / "data" / "token_hop" / "train.bin").read_bytes())
    assert tokens[0] == tokens[1]


TREE = "2 nsubj,0 root,6 nmod:poss,5 advmod,6 amod,2 obj,2 punct"


def conllu_tree(tree: str) -> str:
    """The paper's sentence with other words after it, and with these heads and relations."""
    words = [*SENTENCE[:-1], ("today",), *SENTENCE[-1:]]
    lines = conllu(words).strip().splitlines()
    columns = [*tree.split(",")[:-1], "2 obl:tmod", *tree.split(",")[-1:]]
    rows = zip(lines, columns, strict=True)
    rows = [line.replace("\t0\t_\t", "\t{}\t{}\t".format(*c.split())) for line, c in rows]
    return "\n".join(rows) + "\n\n"


def test_a_treebank_has_the_heads_that_phrase_hop_needs(tmp_path: Path) -> None:
    folder = write_splits(tmp_path / "a", "a.conllu", conllu_tree(TREE))
    succeed("prepare.py", *configs(tmp_path), f"--annotations={folder}")
    tokenizer = Tokenizer((perturb.SINGULAR, perturb.PLURAL))
    shown = {}
    for name in NAMES:
        tokens = np.fromfile(tmp_path / name / "test.bin", np.dtype("<u2"))
        shown[name] = tokenizer.decode(tokens[:-1])
    assert shown["phrase_hop"] == "He clean his very messy bookshelf🅂 today ."
    assert shown["no_hop"] == "He clean🅂 his very messy bookshelf today ."


def test_heads_that_are_no_tree_are_refused_for_phrase_hop_alone(tmp_path: Path) -> None:
    bad = {
        ("5 advmod", "_ advmod"): "word 4 of the sentence, 'very', has the head None and",
        ("5 advmod", "5 _"): "word 4 of the sentence, 'very', has the head 5 and the relation None",
        ("5 advmod", "9 advmod"): "word 4 of the sentence, 'very', has the head 9 and",
        ("5 advmod", "4 advmod"): "word 4 of the sentence, 'very', has the head 4 and",
        ("0 root", "6 root"): "word 1 of the sentence, 'He', has the head 2 and",
    }
    no_hop, phrase_hop = configs(tmp_path, ("no_hop", "phrase_hop"))
    for i, ((old, new), expected) in enumerate(bad.items()):
        tree = conllu_tree(TREE) + conllu_tree(TREE.replace(old, new))
        source = f"--annotations={write_splits(tmp_path / str(i), 'a.conllu', tree)}"
        assert f"a.conllu, line 10: {expected}" in fail("prepare.py", phrase_hop, source)
    assert not (tmp_path / "phrase_hop" / "meta.json").exists()
    succeed("prepare.py", no_hop, source)


VERB = "Mood=Ind|Person=3|Tense=Pres|VerbForm=Fin"
BAD = {
    "words that do not add up": (
        conllu(SENTENCE[:-2], TEXT),
        "line 2: the words 'He cleans his very messy' do not add up to the sentence",
    ),
    "a verb without number": (
        conllu(SENTENCE) + conllu([("It",), ("rains", "rain", VERB)]),
        f"line 9: the verb 'rains' has the lemma 'rain' and the features '{VERB}'",
    ),
    "a verb without lemma": (
        conllu(SENTENCE) + conllu([("It",), ("rains", "_", SINGULAR)]),
        "line 9: the verb 'rains' has the lemma None",
    ),
    "no verb": (conllu([("Hello",), ("world",)]), "no verb of the train split"),
    "no sentence": ("# nothing\n", "a.conllu holds no sentence"),
    "columns": ("1\tHe\the\n\n", "line 1: 3 columns found, 10 expected"),
    "an empty word": ("1\t\tx\t_\t_\t_\t_\t_\t_\t_\n\n", "line 1: the word '' has"),
    "no number": ("x\tHe\t_\t_\t_\t_\t_\t_\t_\t_\n\n", "has the number 'x'"),
    "no blank line between two sentences": (
        conllu(SENTENCE).rstrip() + "\n" + conllu(SENTENCE),
        "line 8: the word 'He' has the number '1'. Expected a word with the number 8",
    ),
    "a blank line within a sentence": (
        conllu(SENTENCE).replace("\n3", "\n\n3"),
        "line 4: the word 'his' has the number '3'. Expected a word with the number 1",
    ),
    "withheld words": (
        conllu(SENTENCE) + conllu([("_",), ("_",), ("_",)], "_ _ _"),
        "line 10: the word is '_'",
    ),
    "not UTF-8": (b"# text = caf\xe9\n\n", "line 1: byte 12 (0xe9) is not UTF-8"),
}


@pytest.mark.parametrize(("text", "expected"), BAD.values(), ids=BAD.keys())
def test_bad_annotations_are_refused_with_their_place(
    text: str | bytes, expected: str, tmp_path: Path
) -> None:
    folder = write_splits(tmp_path / "bad", "a.conllu", text)
    (config,) = configs(tmp_path, ("no_hop",))
    error = fail("prepare.py", config, f"--annotations={folder}")
    assert expected in error
    assert "a.conllu" in error or "no verb" in error
    assert not (tmp_path / "no_hop" / "meta.json").exists()


def test_files_that_are_no_annotations_are_refused(tmp_path: Path) -> None:
    (config,) = configs(tmp_path, ("no_hop",))
    for name, expected in {
        "a.conllu.gz": "a.conllu.gz cannot be read",
        "a.txt": "100M holds no train text (not read: a.txt (does not end in .conllu)",
    }.items():
        folder = write_splits(tmp_path / name, name, "plain")
        assert expected in fail("prepare.py", config, f"--annotations={folder}")
    assert "holds no annotations" in fail(
        "prepare.py", config, f"--annotations={tmp_path / 'none'}"
    )


def test_annotations_are_for_the_hop_languages_alone(texts: Path, tmp_path: Path) -> None:
    """Given on the command line for all languages, they leave the others with their corpus."""
    folder = write_splits(tmp_path / "annotated", "a.conllu", conllu(SENTENCE, TEXT))
    paths = configs(tmp_path, ("no_hop", "no_shuffle"))
    succeed("prepare.py", *paths, f"--corpus={texts}", f"--annotations={folder}")
    corpora = [meta_of(tmp_path / name)["corpus"] for name in ("no_hop", "no_shuffle")]
    assert corpora == [str(folder), str(texts)]


def test_a_genre_whose_files_do_not_follow_each_other_is_refused(tmp_path: Path) -> None:
    for name in ("a.TXT", "a.b.txt", "a.txt"):
        (tmp_path / name).write_text(f"{TEXT}\n" * 40)
    error = fail("prepare.py", f"--corpus={tmp_path}", f"--data_dir={tmp_path / 'data'}")
    assert "the genre 'a' occurs twice, with another genre between" in error
    assert not (tmp_path / "data" / "meta.json").exists()


def test_a_hop_language_goes_all_the_way(
    annotated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From prepared data to exports, their cards, evaluation and samples, without spaCy."""
    monkeypatch.setattr(annotate, "_MODELS", ("no_such_model",))
    places = {"data_dir": str(annotated / "word_hop"), "out_dir": str(tmp_path / "out")}
    config = write_config(tmp_path / "config.py", language="word_hop", **places)
    succeed("train.py", config)
    succeed("convert_to_hf.py", config)
    card = (tmp_path / "out" / "hf" / "checkpoint-6" / "README.md").read_text(encoding="utf-8")
    assert "WordHop: He clean his very messy books he lf 🅂 ." in card
    assert "The verbs were found by en_core_web_sm" in card
    assert "or fewer than 4 words after a verb" in card
    assert "WordHop" in succeed("eval.py", config, "--device=cpu")
    shown = succeed("sample.py", config, "--device=cpu", "--undo", "--new_tokens=3")
    assert "undone: " in shown
