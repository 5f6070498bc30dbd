import gzip
import itertools
import json
import os
import re
import shutil
import socket
from pathlib import Path

import datasets
import hub
import huggingface_hub
import pytest
from conftest import fail, succeed
from hypothesis import example, given
from hypothesis import strategies as st

from impossible import asking
from impossible.settings import Settings, UserError
from impossible.text import corpus, sentences, token_files
from impossible.text.corpus import Split


def layout(folder: Path, names: dict[str, str], texts: dict[str, bytes]) -> Path:
    """A corpus folder: split folder -> ending of its files, and genre -> text for each split."""
    for name, ending in names.items():
        (folder / name).mkdir(parents=True)
        for genre, text in texts.items():
            (folder / name / f"{genre}{ending}").write_bytes(text)
    return folder


def opened(name: object, **values: str) -> dict[str, Split]:
    """The splits of a corpus; each line is a sentence, if `values` does not say otherwise."""
    return corpus.open_corpus(Settings(corpus=str(name), **({"segmenter": "line"} | values)))


def version(name: object) -> str:
    return corpus.version(Settings(corpus=str(name)))


def read(folder: Path, segmenter: str = "line", split: str = "train") -> list[str]:
    """All sentences of a split of a corpus folder."""
    return sentences_of(opened(folder, segmenter=segmenter)[split])


def sentences_of(split: Split) -> list[str]:
    parts = (sentences.segmented(part.lines, split.segmenter) for part in split.parts())
    return list(itertools.chain.from_iterable(parts))


def replaced(split: Split) -> int:
    return sum(part.replaced for part in split.parts())


HUB_LAYOUT = {"100M": ".txt", "dev": ".txt", "test": ".txt"}
TASK_LAYOUT = {"babylm_100M": ".train", "babylm_dev": ".dev", "babylm_test": ".test"}


@pytest.mark.parametrize("names", [HUB_LAYOUT, TASK_LAYOUT], ids=["hub", "task"])
@pytest.mark.parametrize("root", ["", "original", "babylm_data"])
def test_both_layouts_of_babylm_are_read_in_the_order_of_the_files(
    names: dict[str, str], root: str, tmp_path: Path
) -> None:
    layout(tmp_path / root, names, {"b": b"two\nthree\n", "a": b"one\n"})
    for split in token_files.SPLITS:
        documents = opened(tmp_path)[split].documents
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
        monkeypatch.setattr(corpus, "CHUNK", size)
        assert read(tmp_path, "sentencex") == whole, size


def test_byte_order_marks_carriage_returns_and_blank_lines_are_no_text(tmp_path: Path) -> None:
    layout(tmp_path, HUB_LAYOUT, {"a": "\ufeffone\r\n\r\n   \n\ttwo \r\nthree".encode()})
    assert read(tmp_path) == ["one", "two", "three"]


LINE = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\n"))


@given(st.lists(st.tuples(LINE, st.sampled_from(["\n", "\r\n", "\r"]))))
def test_no_line_is_lost_or_doubled_where_a_chunk_ends(
    tmp_path_factory: pytest.TempPathFactory, lines: list[tuple[str, str]]
) -> None:
    path = tmp_path_factory.mktemp("chunks") / "train.txt"
    path.write_bytes(("x\n" + "".join(line + end for line, end in lines)).encode())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(corpus, "CHUNK", 5)
        (document,) = opened(path.parent)["train"].documents
        parts = list(document.lines())
        found = [line for lines, _ in parts for line in lines]
        assert sum(size for _, size in parts) == path.stat().st_size
    text = path.read_text(encoding="utf-8")  # Python's own reading of the three line ends
    assert found == [line.strip() for line in text.removesuffix("\n").split("\n")]


def test_bytes_that_are_not_utf8_are_named_with_their_place(tmp_path: Path) -> None:
    layout(tmp_path, HUB_LAYOUT, {"a": b"fine\ncaf\xe9\n"})
    with pytest.raises(UserError, match=r"a\.txt, line 2: byte 8 \(0xe9\) is not UTF-8"):
        read(tmp_path)
    train = opened(tmp_path, invalid_utf8="replace")["train"]
    assert sentences_of(train) == ["fine", "caf\ufffd"]
    assert replaced(train) == 1
    layout(tmp_path / "16", HUB_LAYOUT, {"a": "fine\n".encode("utf-16")})
    with pytest.raises(UserError, match="iconv -f UTF-16"):
        read(tmp_path / "16")


def test_a_replacement_character_of_the_text_itself_is_not_counted(tmp_path: Path) -> None:
    layout(tmp_path, HUB_LAYOUT, {"a": "one \ufffd two\n".encode() + b"\xed\xa0\x80\n"})
    train = opened(tmp_path, invalid_utf8="replace")["train"]
    assert sentences_of(train)[0] == "one \ufffd two"
    assert replaced(train) == 3, "the three bytes of a lone surrogate"


@pytest.mark.parametrize("names", [HUB_LAYOUT, TASK_LAYOUT], ids=["hub", "task"])
def test_text_may_be_packed_by_gzip(names: dict[str, str], tmp_path: Path) -> None:
    text = b"one\ntwo three\n" * 1000
    for name, ending in names.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / f"b{ending}.gz").write_bytes(gzip.compress(text))
        (tmp_path / name / f"a{ending}").write_bytes(b"first\n")
    (first, second) = opened(tmp_path)["train"].documents
    assert (first.genre, second.genre) == ("a", "b")
    assert sum(size for _, size in second.lines()) == second.size, "of the packed file"
    assert read(tmp_path) == ["first", *["one", "two three"] * 1000]
    path = tmp_path / next(iter(names)) / f"b{names[next(iter(names))]}.gz"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=rf"{re.escape(path.name)} is damaged"):
        read(tmp_path)
    path.with_suffix("").write_bytes(b"again\n")
    with pytest.raises(UserError, match="Keep only one of the two"):
        read(tmp_path)


def test_a_folder_without_splits_gives_every_twentieth_line_to_val_and_test(
    tmp_path: Path,
) -> None:
    """Blank lines do not count, and no line is lost or in two splits."""
    for genre in "ab":
        lines = "".join(f"{genre}{i}\n\n" for i in range(40))
        (tmp_path / f"{genre}.txt").write_text(lines)
    found = {split: read(tmp_path, split=split) for split in token_files.SPLITS}
    assert found["val"] == ["a9", "a29", "b9", "b29"]
    assert found["test"] == ["a19", "a39", "b19", "b39"]
    together = itertools.chain(*found.values())
    assert sorted(together) == sorted(f"{g}{i}" for g in "ab" for i in range(40))


def test_a_split_of_paragraphs_is_a_split_of_whole_ones(tmp_path: Path) -> None:
    paragraphs = [f"Paragraph {i}\ngoes on." for i in range(20)]
    (tmp_path / "gutenberg.txt").write_text("\n\n".join(paragraphs))
    assert read(tmp_path, "sentencex", "val") == ["Paragraph 9 goes on."]
    assert len(read(tmp_path, "sentencex")) == 18


def test_a_folder_without_one_of_the_splits_is_refused(tmp_path: Path) -> None:
    layout(tmp_path, {"100M": ".txt", "test": ".txt"}, {"a": b"one\n"})
    with pytest.raises(UserError, match="holds no val text"):
        opened(tmp_path)
    with pytest.raises(UserError, match=rf"no corpus '{tmp_path}/none'\. Expected babylm"):
        opened(tmp_path / "none")
    with pytest.raises(UserError, match="It is a file: name its folder"):
        opened(tmp_path / "test" / "a.txt")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"empty holds no train text. Expected in .*empty: \*\.txt"):
        opened(tmp_path / "empty")


def test_the_version_of_a_folder_changes_with_any_of_its_bytes(tmp_path: Path) -> None:
    layout(tmp_path, HUB_LAYOUT, {"a": b"one\n"})
    before = version(tmp_path)
    assert before == version(tmp_path)
    (tmp_path / "dev" / "a.txt").write_bytes(b"two\n")
    assert before != version(tmp_path)


def test_speeches_are_split_whole_and_each_is_in_one_split() -> None:
    splits = opened("sotu")
    assert [len(splits[name].documents) for name in token_files.SPLITS] == [45, 6, 5]
    documents = {name: splits[name].documents for name in token_files.SPLITS}
    firsts = [next(d.lines())[0][:3] for name in documents for d in documents[name]]
    assert len({tuple(lines) for lines in firsts}) > 50  # speeches, not one many times
    again = opened("sotu")
    assert [d.size for d in documents["test"]] == [d.size for d in again["test"].documents]


@pytest.mark.parametrize("years", ["1950", "a-b", "1950-1951", "2090-2100"])
def test_years_without_enough_speeches_are_refused(years: str) -> None:
    with pytest.raises(UserError, match="sotu_years"):
        opened("sotu", sotu_years=years)


@pytest.mark.parametrize("given_splits", [("train",), ("train", "validation", "test")])
def test_a_dataset_is_read_by_the_datasets_library(
    given_splits: tuple[str, ...], tmp_path: Path
) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    for split in given_splits:
        rows = [json.dumps({"body": f"{split} {2 * i}\n\n{split} {2 * i + 1}"}) for i in range(40)]
        (folder / f"{split}.jsonl").write_text("\n".join(rows))
    splits = opened(f"hf:{folder}", text_column="body")
    found = {name: sentences_of(splits[name]) for name in token_files.SPLITS}
    if len(given_splits) == 1:
        assert found["val"] == ["train 9", "train 29", "train 49", "train 69"]
        assert found["test"] == ["train 19", "train 39", "train 59", "train 79"]
        assert len(found["train"]) == 72
    else:
        assert found["val"][0] == "validation 0"
        assert [len(found[name]) for name in token_files.SPLITS] == [80, 80, 80]
    with pytest.raises(UserError, match=r"no column 'text'. Set --text_column= to one of: body"):
        opened(f"hf:{folder}")
    (tmp_path / "latin").mkdir()
    (tmp_path / "latin" / "a.txt").write_bytes(b"caf\xe9\n" * 40)
    with pytest.raises(UserError, match="can't decode byte 0xe9"):
        opened(f"hf:{tmp_path / 'latin'}")
    with pytest.raises(UserError, match="invalid_utf8 = replace is for text files"):
        opened(f"hf:{folder}", text_column="body", invalid_utf8="replace")


def test_a_dataset_may_be_a_file_a_saved_one_or_a_folder_with_an_odd_name(tmp_path: Path) -> None:
    odd = tmp_path / "ds@x:y"
    odd.mkdir()
    rows = [{"text": f"row {i}", "tags": ["a"]} for i in range(40)]
    (odd / "train.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    datasets.Dataset.from_list(rows).save_to_disk(tmp_path / "saved")
    for place in (odd, odd / "train.jsonl", tmp_path / "saved"):
        splits = opened(f"hf:{place}")
        assert sentences_of(splits["val"]) == ["row 9", "row 29"]
        (document,) = splits["train"].documents
        assert document.size == pytest.approx(sum(size for _, size in document.lines()), rel=0.1)
    before = version(f"hf:{odd}")
    with open(odd / "train.jsonl", "a", encoding="utf-8") as file:
        file.write('\n{"text": "one more", "tags": []}')
    assert version(f"hf:{odd}") != before
    with pytest.raises(UserError, match="no text in the column 'tags'"):
        opened(f"hf:{odd}", text_column="tags")
    datasets.Dataset.from_list([{"number": 1}]).save_to_disk(tmp_path / "numbers")
    with pytest.raises(UserError, match=r"No column holds text \(there are: number\). Choose"):
        opened(f"hf:{tmp_path / 'numbers'}")


@pytest.mark.parametrize("form", ["file", "folder", "saved"])
def test_what_a_dataset_holds_now_is_read_whatever_its_times_say(form: str, tmp_path: Path) -> None:
    """rsync -t, git checkout and archives give other bytes the same time."""
    folder = tmp_path / "mine"
    versions = set()
    for word in ("old", "new"):
        rows = [{"text": f"{word} {i}"} for i in range(40)]
        if form == "saved":
            shutil.rmtree(folder, ignore_errors=True)
            datasets.Dataset.from_list(rows).save_to_disk(folder)
        else:
            folder.mkdir(exist_ok=True)
            (folder / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
        for path in folder.iterdir():
            os.utime(path, (1e9, 1e9))
        name = f"hf:{folder / 'train.jsonl' if form == 'file' else folder}"
        assert sentences_of(opened(name)["val"])[0] == f"{word} 9"
        versions.add(version(name))
    assert len(versions) == 2


def test_a_file_that_moves_between_the_folders_of_a_dataset_makes_it_another(
    tmp_path: Path,
) -> None:
    for split in ("train", "test"):
        (tmp_path / split).mkdir()
    (tmp_path / "test" / "a.txt").write_text("some text\n" * 40)
    before = version(f"hf:{tmp_path}")
    (tmp_path / "test" / "a.txt").rename(tmp_path / "train" / "a.txt")
    assert version(f"hf:{tmp_path}") != before


@pytest.mark.parametrize(
    "name", ["a.jsonl", "a.JSONL", "a.ndjson", "a.jsonl.gz", "a.csv", "a.tsv", "a.TXT", "a.txt.gz"]
)
def test_a_dataset_may_be_a_file_of_any_of_these_kinds(name: str, tmp_path: Path) -> None:
    lines = [f"row {i}, of many" for i in range(40)]
    text = "\n".join(lines)
    if "json" in name.lower():
        text = "\n".join(json.dumps({"text": line}) for line in lines)
    if ".csv" in name:
        text = "text,n\n" + "\n".join(f'"{line}",1' for line in lines)
    if ".tsv" in name:
        text = "text\tn\n" + "\n".join(f"{line}\t1" for line in lines)
    data = gzip.compress(text.encode()) if name.endswith(".gz") else text.encode()
    (tmp_path / name).write_bytes(data)
    splits = opened(f"hf:{tmp_path / name}")
    assert sentences_of(splits["val"]) == ["row 9, of many", "row 29, of many"]


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.csv.gz", "a folder"])
def test_a_cell_that_reads_null_is_text(name: str, tmp_path: Path) -> None:
    """pandas takes these words for missing values, and numbers for numbers."""
    words = ["null", "NA", "None", "nan", "N/A", "007", "He cleans his books."] * 10
    words = ["A row."] + ["007"] * 12_000 + words  # the library reads 10,000 rows at a time
    separator = "\t" if ".tsv" in name else ","
    rows = [f"{word}{separator}{'' if i > 11_000 else i}" for i, word in enumerate(words)]
    data = "\n".join([f"text{separator}n", *rows]).encode()
    path = tmp_path / "mine" / ("train.csv" if name == "a folder" else name)
    path.parent.mkdir()
    path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    place = path.parent if name == "a folder" else path
    splits = opened(f"hf:{place}")
    found = [line for documents in splits.values() for line in sentences_of(documents)]
    assert sorted(found) == sorted(words)
    with pytest.raises(UserError, match=r"no column 'body'. Set --text_column= to one of: text, n"):
        opened(f"hf:{place}", text_column="body")


def test_a_row_with_more_cells_than_columns_is_refused(tmp_path: Path) -> None:
    """Else a sentence with a comma outside quotation marks would be cut."""
    (tmp_path / "a.csv").write_text("text,n\nOne sentence,1\nHello, world,1\n")
    with pytest.raises(UserError, match="Expected 2 fields in line 3, saw 3"):
        opened(f"hf:{tmp_path / 'a.csv'}")
    (tmp_path / "b.csv").write_text("text\nHello, world\nOne sentence\n")
    with pytest.raises(UserError, match=r"b\.csv: a row has more cells"):
        opened(f"hf:{tmp_path / 'b.csv'}")


def test_rows_without_text_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        json.dumps({"text": f"row {i}" if i % 4 else [None, " "][i % 8 // 4]}) for i in range(40)
    ]
    (tmp_path / "a.jsonl").write_text("\n".join(rows))
    splits = opened(f"hf:{tmp_path / 'a.jsonl'}")
    assert sum(len(sentences_of(documents)) for documents in splits.values()) == 30
    assert "train: left out 10 of 40 rows, which have no text\n" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["./a.jsonl", "../a", "/none/a", "a.jsonl", "b/c.csv", "a/b/c"])
def test_a_path_that_is_not_there_is_not_looked_for_on_the_hub(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="no such file or folder here"):
        opened(f"hf:{name}")


def test_a_file_that_hf_does_not_read_is_refused_at_once(tmp_path: Path) -> None:
    (tmp_path / "a.docx").write_bytes(b"text")
    with pytest.raises(UserError, match=r"reads files that end in \.json, \.jsonl"):
        opened(f"hf:{tmp_path / 'a.docx'}")


@pytest.mark.parametrize("val", ["val", "valid", "dev", "validation"])
@pytest.mark.parametrize("form", ["{}.txt", "wiki.{}.txt", "{}.TXT", "{}.txt.gz"])
def test_files_that_are_named_after_splits_are_the_splits(
    val: str, form: str, tmp_path: Path
) -> None:
    for name in ("train", val, "test"):
        path = tmp_path / form.format(name)
        path.write_bytes(gzip.compress(name.encode()) if path.suffix == ".gz" else name.encode())
    splits = opened(tmp_path)
    found = {split: sentences_of(documents) for split, documents in splits.items()}
    assert found == {"train": ["train"], "val": [val], "test": ["test"]}
    (document,) = splits["test"].documents
    assert document.genre == ("wiki" if "wiki" in form else tmp_path.name)


def test_a_split_without_a_file_of_its_name_is_held_out(tmp_path: Path) -> None:
    (tmp_path / "test.txt").write_text("test\n")
    for genre in ("a", "b"):
        (tmp_path / f"{genre}.txt").write_text("".join(f"{genre}{i}\n" for i in range(20)))
    assert read(tmp_path, split="test") == ["test"]
    assert read(tmp_path, split="val") == ["a9", "b9"]
    assert len(read(tmp_path)) == 38


@pytest.mark.parametrize("names", [("train_100M", "dev", "test"), ("train_10M", "valid", "test")])
def test_the_layout_of_babylm_2025_is_read(names: tuple[str, ...], tmp_path: Path) -> None:
    for name in names:
        layout(tmp_path, {name: ".txt"}, {"a": name.encode()})
    found = [read(tmp_path, split=split) for split in token_files.SPLITS]
    assert found == [[name] for name in names]


def test_what_is_read_and_what_is_left_out_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "B.TXT").write_text("b\n" * 40)
    (tmp_path / "a.txt").write_text("a\n" * 40)
    (tmp_path / "._a.txt").write_bytes(b"\x00\x05\xff")
    (tmp_path / "notes.md").write_text("no\n")
    (tmp_path / "more").mkdir()
    assert set(read(tmp_path)) == {"a", "b"}
    told = capsys.readouterr().out
    assert "train: B.TXT, a.txt\n" in told
    assert "val: every 20th line of the files of train\n" in told
    for left_out in ("._a.txt (hidden)", "notes.md (does not end in .txt)", "more/ (a subfolder)"):
        assert left_out in told


def test_names_that_are_not_utf8_are_refused_before_any_work(tmp_path: Path) -> None:
    odd = os.fsdecode(b"caf\xe9")
    for place in (tmp_path / odd, tmp_path / "good"):
        place.mkdir()
        (place / f"{'a' if place.name == odd else odd}.txt").write_text("text\n" * 40)
        error = fail("prepare.py", f"--corpus={place}", f"--data_dir={tmp_path / 'data'}")
        assert "UTF-8" in error
        (place / "a.txt").unlink(missing_ok=True)
    error = fail("prepare.py", f"--corpus={tmp_path}", f"--data_dir={tmp_path / odd}")
    assert "text in UTF-8 (rename" in error
    assert not (tmp_path / "data").exists()


def test_a_dataset_of_long_rows_is_read_a_few_at_a_time(tmp_path: Path) -> None:
    rows = [{"text": "word " * 400_000} for _ in range(20)]
    datasets.Dataset.from_list(rows).save_to_disk(tmp_path / "books")
    (document,) = opened(f"hf:{tmp_path / 'books'}")["train"].documents
    assert [len(lines) for lines, _ in document.lines()] == [2] * 10


def test_short_files_without_splits_share_out_their_lines_together(tmp_path: Path) -> None:
    for i in range(40):
        (tmp_path / f"{i:02}.txt").write_text(f"line {i}\n")
    (tmp_path / "notes.dev").write_text("no text of this corpus\n")
    (tmp_path / "folder.txt").mkdir()
    assert read(tmp_path, split="val") == ["line 9", "line 29"]
    assert read(tmp_path, split="test") == ["line 19", "line 39"]
    assert len(read(tmp_path)) == 36


def test_bytes_are_counted_in_the_split_that_they_are_in(tmp_path: Path) -> None:
    lines = [b"caf\xe9" if i in (0, 9) else b"fine" for i in range(40)]
    (tmp_path / "a.txt").write_bytes(b"\n".join(lines))
    splits = opened(tmp_path, invalid_utf8="replace")
    assert [replaced(splits[split]) for split in token_files.SPLITS] == [1, 1, 0]


ODD_TEXT = st.lists(
    st.sampled_from(["J", "A", ".", " ", "\xa0", "\u3000", "\u2028", "\x85", "é", "Mr", "?", "the"])
)


@given(ODD_TEXT.map("".join))
@example("Written by J\xa0. Smith of London.")
def test_sentences_together_are_the_line(line: str) -> None:
    found = sentences.segmented([line], "sentencex")
    assert "".join("".join(found).split()) == "".join(line.split())
    assert all(sentence.strip() for sentence in found)


def test_a_paragraph_that_never_ends_is_cut(tmp_path: Path) -> None:
    text = b"A line of a book without a blank one.\n" * 60_000
    layout(tmp_path, HUB_LAYOUT, {"gutenberg": text})
    parts = opened(tmp_path, segmenter="sentencex")["train"].parts()
    longest = max(len(line) for part in parts for line in part.lines)
    assert 1_000_000 < longest < 1_000_100
    assert len(read(tmp_path, "sentencex")) == 60_000


def test_text_with_other_line_ends_is_read_a_chunk_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(corpus, "CHUNK", 1000)
    (tmp_path / "train.txt").write_bytes(b"A line.\r" * 2000)
    (document,) = opened(tmp_path)["train"].documents
    parts = [lines for lines, _ in document.lines()]
    assert max(map(len, parts)) < 150
    assert list(itertools.chain(*parts)) == ["A line."] * 2000


GENRES = corpus.BABYLM_GENRES


def babylm(others: dict[str, bytes] | None = None) -> hub.Hub:
    """A Hub with the corpus: a few bytes in each file, or what `others` says."""
    files = {
        f"original/{folder}/{genre}.txt": f"{folder} {genre}.\nA second line.\n".encode()
        for folder in ("100M", "10M", "dev", "test")
        for genre in GENRES
    }
    files |= others or {}
    files["cleaned/100M.gz"] = gzip.compress(b"not wanted")
    made = hub.Hub()
    made.add_dataset(corpus.BABYLM, corpus.BABYLM_COMMIT, files)
    return made


@pytest.mark.parametrize("xet", ["0", "1"])
def test_babylm_is_fetched_once_and_then_read_without_a_network(xet: str, tmp_path: Path) -> None:
    env = {"HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": xet}
    with hub.serve(babylm()) as server:
        env["HF_ENDPOINT"] = server.url
        succeed("prepare.py", f"--data_dir={tmp_path / 'data'}", env=env)
        gets = [r for r in server.requests if r.startswith("GET /datasets/")]
        assert len(gets) == 30, "the three splits alone, each file once"
    meta = token_files.read_meta(tmp_path / "data")
    assert (meta.corpus, meta.corpus_version) == ("babylm", version("babylm"))
    assert list(meta.splits["test"]["genres"]) == list(GENRES)
    succeed(
        "prepare.py", "config/no_reverse.py", f"--data_dir={tmp_path / 'other'}", env=env
    )  # the server is gone


def test_ten_million_words_are_another_corpus_and_the_rest_is_not_fetched_again(
    tmp_path: Path,
) -> None:
    env = {"HF_HOME": str(tmp_path / "home")}
    with hub.serve(babylm()) as server:
        env["HF_ENDPOINT"] = server.url
        succeed("prepare.py", f"--data_dir={tmp_path / 'large'}", env=env)
        server.requests.clear()
        small = ("prepare.py", "--corpus=babylm_10M", f"--data_dir={tmp_path / 'small'}")
        succeed(*small, env=env)
        gets = [r for r in server.requests if r.startswith("GET /datasets/")]
        assert len(gets) == 10
        assert all("/10M/" in r for r in gets)
    meta = token_files.read_meta(tmp_path / "small")
    assert meta.corpus_version.endswith(f"{corpus.BABYLM_COMMIT}, 10M")
    sizes = [(tmp_path / name / "train.bin").read_bytes() for name in ("large", "small")]
    assert sizes[0] != sizes[1]


def test_a_connection_that_is_lost_within_a_file_goes_on_there(tmp_path: Path) -> None:
    env = {"HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1"}
    large = (b"A long line. " * 8000 + b"\n") * 240  # the library writes 10 MB at a time
    with hub.serve(babylm({"original/dev/cbt.txt": large})) as server:
        env["HF_ENDPOINT"] = server.url
        server.cut = ("/dev/cbt.txt", 1)
        succeed("prepare.py", f"--data_dir={tmp_path / 'data'}", "--segmenter=line", env=env)
    (resumed,) = server.resumed
    assert resumed.endswith("/dev/cbt.txt")
    (path,) = (tmp_path / "home").rglob("dev/cbt.txt")
    assert path.read_bytes() == large


def test_a_download_that_was_interrupted_goes_on_with_the_files_that_are_missing(
    tmp_path: Path,
) -> None:
    """What is there is not taken for the corpus, with a network or without one."""
    env = {"HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1"}
    command = ("prepare.py", f"--data_dir={tmp_path / 'data'}")
    with hub.serve(babylm()) as server:
        env["HF_ENDPOINT"] = server.url
        server.cut = ("/dev/qed.txt", 100)
        assert "BabyLM could not be fetched" in fail(*command, env=env)
        offline = env | {"HF_ENDPOINT": "http://127.0.0.1:9"}
        assert "BabyLM could not be fetched" in fail(*command, env=offline)
        there = {f"/{path.parent.name}/{path.name}" for path in (tmp_path / "home").rglob("*.txt")}
        assert 0 < len(there) < 30
        server.requests.clear()
        server.cut = ("", 0)
        succeed(*command, env=env)
        fetched = [r for r in server.requests if r.startswith("GET /datasets/")]
        assert len(fetched) == 30 - len(there)
        assert not any(r.endswith(tuple(there)) for r in fetched)


@pytest.mark.parametrize("corpus_name", ["babylm", "hf:a file"])
def test_a_folder_of_downloads_that_cannot_be_written_is_named(
    corpus_name: str, tmp_path: Path
) -> None:
    home = tmp_path / "home"
    if os.geteuid() == 0:
        home = Path("/sys/nowhere")  # not even root may write there
    else:
        home.mkdir(mode=0o500)
    (tmp_path / "a.csv").write_text("text\nA sentence.\n")
    name = corpus_name.replace("a file", str(tmp_path / "a.csv"))
    with hub.serve(babylm()) as server:
        env = {"HF_HOME": str(home), "HF_ENDPOINT": server.url}
        error = fail("prepare.py", f"--corpus={name}", f"--data_dir={tmp_path / 'data'}", env=env)
    assert f"error: {home}" in error
    assert f"Downloads are stored in HF_HOME = {home}. Set HF_HOME to a folder" in error


def test_an_error_hides_the_token_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    error = ValueError("no token was found for hf_secret")
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    assert asking.text_of(error) == "no token was found for hf_secret"
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "hf_secret")
    assert asking.text_of(error) == "no token was found for (the token)"


def test_without_a_network_the_error_says_what_to_type_instead(tmp_path: Path) -> None:
    env = {"HF_HOME": str(tmp_path / "home")}
    error = fail("prepare.py", f"--data_dir={tmp_path / 'data'}", env=env, timeout=60)
    assert "--corpus=sotu" in error
    assert "--corpus=FOLDER" in error
    assert not (tmp_path / "data").exists()


def test_a_hub_that_never_answers_is_given_up_within_a_minute(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        env = {"HF_HOME": str(tmp_path / "home"), "HF_ENDPOINT": url}
        error = fail("prepare.py", f"--data_dir={tmp_path / 'data'}", env=env, timeout=60)
    assert "--corpus=sotu" in error


def test_a_dataset_of_the_hub_is_read_at_its_revision(tmp_path: Path) -> None:
    rows = b"\n".join(json.dumps({"body": f"This is row {i}."}).encode() for i in range(60))
    made, commit = hub.Hub(), "a" * 40
    made.add_dataset("ada/rows", commit, {"train.jsonl": rows})
    name = f"hf:ada/rows@{commit}"
    with hub.serve(made) as server:
        env = {"HF_HOME": str(tmp_path / "home"), "HF_ENDPOINT": server.url}
        command = ("prepare.py", f"--corpus={name}", "--text_column=body")
        succeed(*command, f"--data_dir={tmp_path / 'data'}", env=env)
    meta = token_files.read_meta(tmp_path / "data")
    assert meta.corpus_version == f"{name}, column body"
    assert [meta.splits[split]["sentences"] for split in token_files.SPLITS] == [54, 3, 3]
    assert "ada/rows" in corpus.about(meta.corpus, meta.corpus_version).description
