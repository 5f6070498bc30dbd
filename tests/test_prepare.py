import dataclasses
import gzip
import json
import os
import random
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import plain
import pytest
from conftest import fail, kill, start, succeed
from hypothesis import given, settings
from hypothesis import strategies as st

import perturb
import prepare
from impossible.settings import Settings, UserError
from impossible.text import corpus, token_files
from impossible.text.arrays import Sentences
from impossible.text.sentences import segmented
from impossible.text.tokenizer import Tokenizer, write_transformers_files

# A folder of real text (files of any names) to compare on instead of a few speeches.
TEXTS = os.environ.get("PLAIN_TEXTS")


@pytest.fixture(scope="module")
def texts_dir(corpus_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The corpus to compare on, in BabyLM's layout."""
    if not TEXTS:
        return corpus_dir
    folder = tmp_path_factory.mktemp("texts")
    paths = sorted(p for p in Path(TEXTS).iterdir() if p.suffix in (".txt", ".test"))
    for split in ("100M", "dev", "test"):
        (folder / split).mkdir()
        for path in paths:
            (folder / split / f"{path.stem}.txt").symlink_to(path.resolve())
    return folder


@pytest.fixture(scope="module")
def encoded(texts_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> dict:
    """split -> sentences as transformers' own tokenizer encodes them, one by one."""
    folder = tmp_path_factory.mktemp("gpt2")
    write_transformers_files(folder, [], 1024)
    tokenizer = plain.gpt2_tokenizer(folder)
    splits = {"train": "100M", "val": "dev", "test": "test"}
    return {
        split: [tokenizer.encode(s) for s in plain.read_lines(list((texts_dir / name).iterdir()))]
        for split, name in splits.items()
    }


@pytest.mark.parametrize("language", sorted(plain.LANGUAGES))
def test_token_files_are_those_of_the_published_rules(
    language: str, texts_dir: Path, encoded: dict, tmp_path: Path
) -> None:
    command = ("prepare.py", f"--language={language}", f"--corpus={texts_dir}", "--segmenter=line")
    succeed(*command, f"--data_dir={tmp_path}", "--data_seed=14")
    for split, sentences in encoded.items():
        expected = plain.split(language, sentences, None if split == "test" else 14)
        found = np.fromfile(tmp_path / f"{split}.bin", np.dtype("<u2"))
        np.testing.assert_array_equal(found, expected)


def test_the_meta_counts_what_is_in_the_files(data_dir: Path, corpus_dir: Path) -> None:
    meta = json.loads((data_dir / "meta.json").read_text(encoding="utf-8"))
    assert meta["language"] == "partial_reverse"
    assert meta["markers"] == {"🅁": 50257}
    assert (meta["vocab_size"], meta["eot_token"], meta["data_seed"]) == (50258, 50256, 41)
    assert (meta["corpus"], meta["segmenter"]) == (str(corpus_dir), "line")
    for split in token_files.SPLITS:
        ids = np.fromfile(data_dir / f"{split}.bin", np.dtype("<u2"))
        entry = meta["splits"][split]
        assert entry["tokens"] == len(ids)
        assert entry["sentences"] == (ids == 50256).sum() == (ids == 50257).sum()
        assert ids[-1] == 50256
    genres = meta["splits"]["test"]["genres"]
    assert list(genres) == ["first", "second"]
    test = np.fromfile(data_dir / "test.bin", np.dtype("<u2"))
    first = test[: genres["first"]["tokens"]]
    assert first[-1] == 50256
    assert (first == 50256).sum() == genres["first"]["sentences"]
    assert sum(g["tokens"] for g in genres.values()) == len(test)


def test_the_order_of_training_sentences_depends_on_the_data_seed_alone(
    corpus_dir: Path, data_dir: Path, tmp_path: Path
) -> None:
    command = ("prepare.py", f"--corpus={corpus_dir}", "--segmenter=line")
    succeed(*command, f"--data_dir={tmp_path / 'same'}")
    succeed(*command, f"--data_dir={tmp_path / 'other'}", "--data_seed=0")
    for split in token_files.SPLITS:
        files = [
            (folder / f"{split}.bin").read_bytes()
            for folder in (data_dir, tmp_path / "same", tmp_path / "other")
        ]
        assert files[0] == files[1]
        assert (files[0] == files[2]) == (split == "test")


def test_a_second_run_finds_its_work_done_and_mends_what_is_cut_short(
    corpus_dir: Path, tmp_path: Path
) -> None:
    command = ("prepare.py", f"--corpus={corpus_dir}", f"--data_dir={tmp_path}")
    succeed(*command)
    path = tmp_path / "train.bin"
    whole, before = path.read_bytes(), path.stat().st_mtime_ns
    assert "is prepared already" in succeed(*command)
    assert path.stat().st_mtime_ns == before
    other_name = f"--corpus={corpus_dir}/../{corpus_dir.name}/"
    assert "is prepared already" in succeed(command[0], other_name, command[2])
    path.write_bytes(whole[:-2])
    assert "Doing so now" in succeed(*command)
    assert path.read_bytes() == whole


def test_data_prepared_otherwise_is_not_overwritten(corpus_dir: Path, tmp_path: Path) -> None:
    succeed("prepare.py", f"--corpus={corpus_dir}", f"--data_dir={tmp_path}")
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    for option in ("--language=no_reverse", "--data_seed=0", "--segmenter=line", "--corpus=sotu"):
        options = [f"--corpus={corpus_dir}", option]  # the later of two wins
        error = fail("prepare.py", *options, f"--data_dir={tmp_path}")
        assert "prepared with other settings" in error
        key = option[2:].split("=")[0].replace("corpus", "corpus_version")
        assert f"{key}: " in error
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_changed_corpus_is_noticed(tmp_path: Path) -> None:
    for split in ("100M", "dev", "test"):
        (tmp_path / split).mkdir()
        (tmp_path / split / "a.txt").write_text("One sentence here.\n")
    command = ("prepare.py", f"--corpus={tmp_path}", f"--data_dir={tmp_path / 'data'}")
    succeed(*command)
    (tmp_path / "100M" / "a.txt").write_text("Another sentence here.\n")
    assert "corpus_version: " in fail(*command)


def test_a_run_that_is_killed_at_any_moment_leaves_nothing_that_looks_whole(
    tmp_path: Path,
) -> None:
    def command(name: str) -> tuple[str, ...]:
        return ("prepare.py", "--corpus=sotu", "--sotu_years=1850-2020", f"--data_dir={name}")

    whole, killed = tmp_path / "whole", tmp_path / "killed"
    began = time.monotonic()
    succeed(*command(whole), processes=1)
    seconds = time.monotonic() - began
    rng = random.Random(0)
    moments = [rng.uniform(0, seconds) for _ in range(4)] + [None]  # None: at the first file
    for moment in moments:
        process = start(*command(killed))
        if moment is None:
            end = time.monotonic() + 60
            while not (killed / "train.bin").exists() and time.monotonic() < end:
                time.sleep(0.002)
        else:
            time.sleep(moment)
        kill(process)
        if (killed / "meta.json").exists():  # it was done
            token_files.verify(killed, token_files.read_meta(killed))
            shutil.rmtree(killed)
    succeed(*command(killed))
    names = [token_files.META, token_files.TEST_IDS, *(f"{s}.bin" for s in token_files.SPLITS)]
    assert [(killed / name).read_bytes() for name in names] == [
        (whole / name).read_bytes() for name in names
    ]
    assert {path.name for path in killed.iterdir()} == {*names, ".lock"}


@pytest.mark.parametrize("content", ["", "\n \n\n", "Yes\nNo\n"])
def test_a_corpus_without_a_sentence_is_refused(content: str, tmp_path: Path) -> None:
    for split in ("100M", "dev", "test"):
        (tmp_path / split).mkdir()
        (tmp_path / split / "a.txt").write_text(content)
    error = fail("prepare.py", f"--corpus={tmp_path}", f"--data_dir={tmp_path / 'data'}")
    assert "the train split has no sentence left" in error
    assert ("all 2 were dropped" if content.startswith("Yes") else "it has no text") in error


@pytest.mark.parametrize("name", ["all.txt", "all.txt.gz", "all.conllu", "all"])
def test_a_genre_with_the_name_of_all_genres_is_refused(name: str, tmp_path: Path) -> None:
    """In tables, it would get the figures of the total."""
    folder = tmp_path / ("all" if name == "all" else "corpus")
    names = [f"{split}/{name}" for split in ("100M", "dev", "test")]
    for place in ("train.txt", "valid.txt", "test.txt") if name == "all" else names:
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
        (folder / place).touch()
    kind = "annotations" if "conllu" in name else "corpus"
    command = ("prepare.py", "config/no_hop.py", f"--{kind}={folder}")
    error = fail(*command, f"--data_dir={tmp_path / 'data' / 'no_hop'}")
    assert "the test split has a genre named 'all'" in error
    assert not (tmp_path / "data").exists()


def test_a_genre_of_the_training_text_alone_may_have_any_name(tmp_path: Path) -> None:
    for place in ("100M/all.txt", "dev/all.txt", "test/a.txt"):
        (tmp_path / place).parent.mkdir()
        (tmp_path / place).write_text("A sentence here.\n")
    succeed("prepare.py", f"--corpus={tmp_path}", f"--data_dir={tmp_path / 'data'}")


def of_ones_own(
    monkeypatch: pytest.MonkeyPatch, function: Callable[..., Sentences], markers: int = 0
) -> None:
    names = tuple(f"<marker {i}>" for i in range(markers))
    language = perturb.Language("Mine", function, "nothing", names)
    monkeypatch.setitem(perturb.LANGUAGES, "mine", language)


def test_a_language_with_too_many_markers_for_uint16_is_refused(
    corpus_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    places = {"corpus": str(corpus_dir), "data_dir": str(tmp_path / "data")}
    of_ones_own(monkeypatch, perturb.no_shuffle, markers=65536 - 50257)
    prepare.main([Settings(language="mine", **places)])
    shutil.rmtree(tmp_path / "data")
    of_ones_own(monkeypatch, perturb.no_shuffle, markers=65537 - 50257)
    with pytest.raises(UserError, match="'mine' has a vocabulary of 65,537"):
        prepare.main([Settings(language="mine", **places)])
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    ("function", "told"),
    [
        (lambda s, *_: Sentences(s.tokens + 9000, s.offsets), "its vocabulary has only 50,257"),
        (lambda s, *_: Sentences(s.tokens.astype(int) - 9, s.offsets), "not 16-bit ids"),
        (lambda s, *_: Sentences(s.tokens / 2, s.offsets), "not 16-bit ids"),
        (
            lambda s, *_: s.take(np.arange(1, len(s.lengths))),
            "must return as many sentences as it gets",
        ),
        (
            lambda s, *_: Sentences(s.tokens[:-1], s.offsets),
            "must return as many sentences as it gets",
        ),
    ],
    ids=["beyond", "negative", "fractions", "too few", "too short"],
)
def test_a_language_that_returns_nonsense_is_refused(
    function: Callable[..., Sentences],
    told: str,
    corpus_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    of_ones_own(monkeypatch, function)
    places = {"corpus": str(corpus_dir), "data_dir": str(tmp_path / "data")}
    with pytest.raises(UserError, match=told):
        prepare.main([Settings(language="mine", **places)])
    assert not (tmp_path / "data" / "meta.json").exists()


def wrong_beyond_ten(tokens: np.ndarray, markers: list[int]) -> np.ndarray:
    return perturb.undo_partial_reverse(tokens, markers)[: 10 if len(tokens) > 11 else None]


@pytest.mark.parametrize(
    ("invert", "result"),
    [
        (lambda tokens, _: tokens, "it returned 'A sentence here🅁.'"),
        (perturb.undo_no_reverse, "it returned 'A. here sentence'"),
        (wrong_beyond_ten, "returned 'Now a sentence that is long enough to be cut'"),
        (lambda tokens, _: tokens[1000], "ended in IndexError"),
        (lambda tokens, _: None, "ended in TypeError"),
    ],
    ids=["perturbed", "other language", "long sentences", "error", "nothing"],
)
def test_a_wrong_inverse_is_refused_with_a_sentence(
    invert: perturb.Invert, result: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Differences from the control pair sentences by it."""
    long = "Now a sentence that is long enough to be cut after ten tokens.\n"
    for split in ("100M", "dev", "test"):
        (tmp_path / split).mkdir()
        (tmp_path / split / "a.txt").write_text(long + "A sentence here.\n" * 300)
    partial = perturb.get("partial_reverse")
    language = dataclasses.replace(partial, title="Mine", invert=invert)
    monkeypatch.setitem(perturb.LANGUAGES, "mine", language)
    places = {"corpus": str(tmp_path), "data_dir": str(tmp_path / "data")}
    with pytest.raises(UserError, match="the inverse of Mine is wrong") as error:
        prepare.main([Settings(language="mine", **places)])
    assert result in str(error.value)
    original = long.strip() if invert is wrong_beyond_ten else "A sentence here."
    assert f"Expected the original sentence: {original!r}" in str(error.value)
    assert not (tmp_path / "data" / "meta.json").exists()
    monkeypatch.setitem(perturb.LANGUAGES, "mine", dataclasses.replace(language, invert=None))
    prepare.main([Settings(language="mine", **places)])


def test_a_language_may_return_wider_numbers(
    corpus_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    of_ones_own(monkeypatch, lambda s, *_: Sentences(s.tokens.astype(np.int64), s.offsets))
    found = []
    for name in ("mine", "no_shuffle"):
        data_dir = tmp_path / name
        places = {"corpus": str(corpus_dir), "data_dir": str(data_dir)}
        prepare.main([Settings(language=name, segmenter="sentencex", **places)])
        found.append((data_dir / "test.bin").read_bytes())
    assert found[0] == found[1]


ODD = ["<|endoftext|>", "🅁", "🅂", "🄿", "\0", "\ufeff", "\ufffd", "é", "e\u0301", "\u2028", "\x85"]
PIECE = st.sampled_from([*ODD, " ", "  ", "\t", "the", " cat", "ing", "42", "'s", "."])
LINE = st.lists(PIECE | st.text(st.characters(exclude_categories=["Cs"]), max_size=3), max_size=12)
LINES = st.lists(LINE.map("".join).filter(lambda line: not set(line) & set("\r\n")), min_size=1)


def undone(name: str, sentence: list[int]) -> list[int]:
    """The tokens of a sentence before it was perturbed."""
    if name.endswith("_reverse"):
        place = sentence.index(plain.MARKER)
        before, after = sentence[:place], sentence[place + 1 :]
        return {
            "no_reverse": before + after,
            "partial_reverse": before + after[::-1],
            "full_reverse": after[::-1] + before[::-1],
        }[name]
    if name == "nondeterministic_shuffle":
        return sentence
    order = plain.perturb(name, [list(range(len(sentence)))])[0]
    old = [0] * len(sentence)
    for new, place in enumerate(order):
        old[place] = sentence[new]
    return old


@settings(max_examples=60)
@given(st.sampled_from(sorted(plain.LANGUAGES)), st.sampled_from(["line", "sentencex"]), LINES)
def test_what_goes_in_comes_out(
    tmp_path_factory: pytest.TempPathFactory, language: str, segmenter: str, lines: list[str]
) -> None:
    """Undoing the language on the token file gives back all sentences but those it drops."""
    folder = tmp_path_factory.mktemp("odd")
    text = "\n".join([*lines, "The end."]).encode()
    for split in ("100M", "dev", "test"):
        (folder / split).mkdir()
        (folder / split / "a.txt").write_bytes(text)
    places = {"corpus": str(folder), "data_dir": str(folder / "data")}
    prepare.main([Settings(language=language, segmenter=segmenter, **places)])
    tokenizer = Tokenizer(perturb.get(language).markers)
    ids = np.fromfile(folder / "data" / "test.bin", np.dtype("<u2")).tolist()
    assert ids[-1] == plain.END_OF_TEXT
    found = []
    while ids:
        end = ids.index(plain.END_OF_TEXT)
        found.append(undone(language, ids[:end]))
        ids = ids[end + 1 :]
    given_lines = [s.strip() for s in text.decode().removeprefix("\ufeff").split("\n") if s.strip()]
    encoded = [tokenizer.encode_ordinary(s) for s in segmented(given_lines, segmenter)]
    limit = perturb.get(language).max_tokens or 10**9
    kept = [ids for ids in encoded if 2 <= len(ids) <= limit]
    if language == "nondeterministic_shuffle":  # its draws are tested with the rules
        assert list(map(sorted, found)) == list(map(sorted, kept))
    else:
        assert list(map(tokenizer.decode, found)) == list(map(tokenizer.decode, kept))
    if segmenter == "line":
        assert [tokenizer.decode(ids) for ids in encoded] == given_lines


@pytest.mark.parametrize("kind", ["with splits", "without splits"])
def test_the_files_do_not_depend_on_workers_and_chunks(
    kind: str, corpus_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "corpus"
    shutil.copytree(corpus_dir, folder)
    if kind == "without splits":
        for split in ("dev", "test"):
            shutil.rmtree(folder / split)
        for path in (folder / "100M").iterdir():
            shutil.move(path, folder)
        (folder / "100M").rmdir()
    else:
        for split in ("100M", "dev", "test"):
            text = (folder / split / "first.txt").read_bytes()
            wrapped = text.replace(b". ", b".\r").replace(b"\n", b"\r\n\r\n") + b"caf\xe9 here"
            (folder / split / "gutenberg.txt.gz").write_bytes(gzip.compress(wrapped))
    written = []
    for workers, chunk in ((1, 1 << 22), (4, 1000), (3, 77)):
        monkeypatch.setattr(corpus, "CHUNK", chunk)
        monkeypatch.setattr(prepare, "CHUNK", chunk)
        data_dir = tmp_path / str(workers)
        places = {"corpus": str(folder), "data_dir": str(data_dir), "invalid_utf8": "replace"}
        prepare.main([Settings(**places, workers=workers, language="nondeterministic_shuffle")])
        names = [token_files.META, token_files.TEST_IDS]
        names += [f"{split}.bin" for split in token_files.SPLITS]
        written.append([(data_dir / name).read_bytes() for name in names])
    assert written[1] == written[0]
    assert written[2] == written[0]


def changing(
    corpus_dir: Path, change: Callable[[Path], object], monkeypatch: pytest.MonkeyPatch
) -> str:
    """The corpus, of which something changes whenever a split is written."""
    write_split = token_files.write_split

    def write_and_change(*arguments: object) -> dict:
        change(corpus_dir)
        return write_split(*arguments)

    monkeypatch.setattr(token_files, "write_split", write_and_change)
    return str(corpus_dir)


def test_a_corpus_that_changes_while_it_is_read_is_noticed(
    corpus_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def change(folder: Path) -> None:
        with open(folder / "test" / "second.txt", "a") as file:
            file.write("One more.\n")

    folder = shutil.copytree(corpus_dir, tmp_path / "corpus")
    settings = Settings(
        corpus=changing(folder, change, monkeypatch), data_dir=str(tmp_path / "data")
    )
    with pytest.raises(UserError, match="changed while it was being read"):
        prepare.main([settings])
    assert not (tmp_path / "data" / "meta.json").exists()
    (folder / "test" / "link.txt").symlink_to(tmp_path / "gone.txt")
    with pytest.raises(UserError, match=r"link\.txt cannot be read \(No such file"):
        prepare.main([settings])


def test_a_file_that_goes_while_it_is_read_is_noticed(
    corpus_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shutil.copytree(corpus_dir, tmp_path / "corpus")
    gone = changing(
        folder, lambda f: (f / "dev" / "second.txt").unlink(missing_ok=True), monkeypatch
    )
    with pytest.raises(UserError, match="changed while it was being read"):
        prepare.main([Settings(corpus=gone, data_dir=str(tmp_path / "data"))])


def test_two_processes_prepare_one_folder_one_after_the_other(tmp_path: Path) -> None:
    command = ("prepare.py", "--corpus=sotu", "--sotu_years=1990-2000", f"--data_dir={tmp_path}")
    processes = [start(*command) for _ in range(2)]
    printed = [process.communicate(timeout=200)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert sorted("is prepared already" in text for text in printed) == [False, True]


def test_bytes_that_are_not_utf8_are_refused_or_replaced_and_counted(tmp_path: Path) -> None:
    for split in ("100M", "dev", "test"):
        (tmp_path / split).mkdir()
        (tmp_path / split / "a.txt").write_bytes(b"One caf\xe9 here.\nTwo here.\n")
    command = ("prepare.py", f"--corpus={tmp_path}", f"--data_dir={tmp_path / 'data'}")
    assert "a.txt, line 1: byte 7 (0xe9) is not UTF-8" in fail(*command)
    printed = succeed(*command, "--invalid_utf8=replace")
    assert "were replaced by U+FFFD 1 times" in printed
    meta = token_files.read_meta(tmp_path / "data")
    assert [meta.splits[split]["replaced"] for split in token_files.SPLITS] == [1, 1, 1]
    assert meta.corpus_version.endswith("what is not UTF-8 replaced")


def test_a_disk_that_takes_no_more_leaves_nothing_that_looks_whole(
    corpus_dir: Path, tmp_path: Path
) -> None:
    command = ("prepare.py", f"--corpus={corpus_dir}", f"--data_dir={tmp_path / 'data'}")
    assert "train.bin: File too large" in fail(*command, largest_file=10_000)
    assert {p.name for p in (tmp_path / "data").iterdir()} == {".lock"}
    succeed(*command)


def test_a_line_of_ten_megabytes_is_read(tmp_path: Path) -> None:
    line = "The quick brown fox jumps over the lazy dog, and on it goes. " * 170_000
    line += "The end"
    for split in ("100M", "dev", "test"):
        (tmp_path / split).mkdir()
        (tmp_path / split / "a.txt").write_text(line if split == "100M" else "A line here.\n")
    for segmenter in ("sentencex", "line"):
        data_dir = tmp_path / segmenter
        succeed(
            *("prepare.py", f"--corpus={tmp_path}", f"--segmenter={segmenter}"),
            f"--data_dir={data_dir}",
        )
        train = token_files.read_meta(data_dir).splits["train"]
        assert train["sentences"] == (170_001 if segmenter == "sentencex" else 1)


@pytest.mark.parametrize("split", token_files.SPLITS)
def test_training_can_verify_its_data(
    split: str, data_dir: Path, tmp_path: Path, config: Callable[..., Path]
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(data_dir, copy)
    data = bytearray((copy / f"{split}.bin").read_bytes())
    data[len(data) // 2 & ~1] ^= 1  # another id of the vocabulary
    (copy / f"{split}.bin").write_bytes(data)
    error = fail("train.py", config(data_dir=str(copy)), "--verify_data")
    assert f"{split}.bin has SHA-256" in error
    assert not list((tmp_path / "out").glob("*.pt"))


def test_languages_prepared_together_have_the_files_of_each_alone(
    corpus_dir: Path, tmp_path: Path
) -> None:
    names = sorted(plain.LANGUAGES)
    configs = []
    for name in names:
        configs.append(tmp_path / f"{name}.py")
        data_dir = tmp_path / "together" / name
        configs[-1].write_text(f"language = {name!r}\ndata_dir = {str(data_dir)!r}\n")
    command = ("prepare.py", f"--corpus={corpus_dir}")
    succeed(*command, configs[3])
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("together/*/*.*")}
    printed = succeed(*command, *configs)
    assert printed.count("is prepared already") == 1
    assert printed.count("train: first.txt, second.txt") == 1, "the corpus is read once"
    for path, time_ns in before.items():
        assert path.stat().st_mtime_ns == time_ns, "what is prepared already is left alone"
    for name in names:
        succeed(*command, f"--language={name}", f"--data_dir={tmp_path / 'alone'}")
        for path in (tmp_path / "alone").glob("*.*"):
            assert (tmp_path / "together" / name / path.name).read_bytes() == path.read_bytes()
        shutil.rmtree(tmp_path / "alone")
    error = fail(*command, *configs[:2], f"--data_dir={tmp_path / 'one'}")
    assert "two languages would be prepared in" in error


def write_splits(folder: Path, train: str, name: str = "a.txt") -> Path:
    """A corpus in BabyLM's layout; val and test are the first lines of train."""
    for split in ("100M", "dev", "test"):
        (folder / split).mkdir(parents=True)
        text = train if split == "100M" else "".join(train.splitlines(True)[:20])
        (folder / split / name).write_text(text, encoding="utf-8")
    return folder


@pytest.mark.parametrize("language", ["partial_reverse", "nondeterministic_shuffle"])
def test_a_split_of_many_sentences_is_perturbed_by_one_generator(
    language: str, tmp_path: Path
) -> None:
    """More than 65,536 sentences: the generator runs on, and none is lost."""
    lines = [f"{word} and {other} ." for word in ("He", "It", "A b c") for other in ("so", "1 2")]
    numbers = random.Random(0).choices(range(len(lines)), k=70_000)
    folder = write_splits(tmp_path / "corpus", "".join(f"{lines[i]}\n" for i in numbers))
    options = (f"--corpus={folder}", "--segmenter=line", f"--language={language}")
    succeed("prepare.py", *options, f"--data_dir={tmp_path / 'data'}")
    tokens = [Tokenizer().encode_ordinary(line) for line in lines]
    expected = plain.split(language, [tokens[i] for i in numbers], 41)
    written = np.fromfile(tmp_path / "data" / "train.bin", np.dtype("<u2"))
    np.testing.assert_array_equal(written, expected)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("segmenter", ("line", "sentencex")),
        ("sotu_years", ("1950-1961", "1970-1981")),
        ("text_column", ("text", "other")),
        ("invalid_utf8", ("error", "replace")),
    ],
)
def test_configs_that_read_the_text_in_another_way_do_not_share_it(
    name: str, values: tuple[str, str], tmp_path: Path
) -> None:
    rows = ["text,other"] + [f'"One {i}. Two here.","Three {i} here. Four."' for i in range(60)]
    (tmp_path / "a.csv").write_text("\n".join(rows))
    folder = str(write_splits(tmp_path / "corpus", "One here. Two here.\n" * 3))
    source = {"sotu_years": "sotu", "text_column": f"hf:{tmp_path / 'a.csv'}"}.get(name, folder)
    configs = []
    for value in values:
        configs.append(tmp_path / f"{value}.py")
        data_dir = str(tmp_path / "together" / value)
        configs[-1].write_text(f"{name} = {value!r}\ndata_dir = {data_dir!r}\n")
    succeed("prepare.py", *configs, f"--corpus={source}")
    files = []
    for value in values:
        alone = tmp_path / "alone" / value
        succeed("prepare.py", f"--corpus={source}", f"--{name}={value}", f"--data_dir={alone}")
        for path in alone.glob("*.*"):
            assert (tmp_path / "together" / value / path.name).read_bytes() == path.read_bytes()
        meta = token_files.read_meta(alone)
        files.append((meta.corpus_version, meta.segmenter))
    assert files[0] != files[1]


def test_data_made_with_other_versions_of_packages_are_not_taken_for_these(
    data_dir: Path, corpus_dir: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(data_dir, tmp_path / "data")
    meta = json.loads((copy / "meta.json").read_text(encoding="utf-8"))
    assert meta["made_with"].keys() == {"numpy", "sentencex", "tiktoken"}
    for package in meta["made_with"]:
        other = meta | {"made_with": meta["made_with"] | {package: "0.1"}}
        (copy / "meta.json").write_text(json.dumps(other), encoding="utf-8")
        command = ("prepare.py", f"--corpus={corpus_dir}", "--segmenter=line")
        error = fail(*command, f"--data_dir={copy}")
        assert "prepared with other settings (made_with: " in error


def test_a_file_that_moves_to_another_split_makes_it_another_corpus(tmp_path: Path) -> None:
    folder = write_splits(tmp_path / "corpus", "One sentence here.\n" * 3)
    (folder / "100M" / "b.txt").write_text("One more here.\n")
    command = ("prepare.py", f"--corpus={folder}", f"--data_dir={tmp_path / 'data'}")
    succeed(*command)
    (folder / "100M" / "b.txt").rename(folder / "dev" / "b.txt")
    assert "corpus_version: " in fail(*command)


def test_damaged_numbers_of_test_sentences_are_written_again(
    corpus_dir: Path, tmp_path: Path
) -> None:
    command = ("prepare.py", f"--corpus={corpus_dir}", f"--data_dir={tmp_path}")
    succeed(*command)
    path = tmp_path / token_files.TEST_IDS
    whole = path.read_bytes()
    path.write_bytes(bytes([whole[0] ^ 1]) + whole[1:])
    printed = succeed(*command)
    assert "test_ids.bin is missing" in printed and "Doing so now" in printed
    assert path.read_bytes() == whole
