import shutil
from pathlib import Path

import pytest
import torch
import transformers
from conftest import fail, succeed

QUIET = ("--device=cpu", "--new_tokens=6")


@pytest.fixture(scope="module")
def exported(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with its exports."""
    folder = tmp_path_factory.mktemp("sampled") / "out"
    shutil.copytree(trained, folder)
    succeed("convert_to_hf.py", f"--out_dir={folder}")
    return folder


def continuations(*arguments: str | Path) -> dict[str, list[str]]:
    """checkpoint -> what it printed."""
    found: dict[str, list[str]] = {}
    name = ""
    for line in succeed("sample.py", *arguments, *QUIET).splitlines():
        if line.startswith("  "):
            found[name].append(line.strip())
        else:
            name = line.split(", ")[-1].removesuffix(":")
            found[name] = []
    return found


def test_all_checkpoints_continue_a_prompt_side_by_side(trained: Path) -> None:
    where = f"--out_dir={trained}"
    found = continuations(where, "--checkpoint=all", "--samples=3", "--prompt=The people")
    assert list(found) == ["checkpoint-3", "checkpoint-6"]
    for texts in found.values():
        assert len(texts) == 3
        assert len(set(texts)) > 1
        assert all(text.startswith("'The people") for text in texts)
    assert list(continuations(where)) == ["checkpoint-6"], "the last one, if none is named"
    assert list(continuations(where, "--checkpoint=3")) == ["checkpoint-3"]


def test_the_seed_decides(trained: Path) -> None:
    where = f"--out_dir={trained}"
    first, again, other = (continuations(where, f"--seed={seed}") for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_temperature_zero_is_the_greedy_continuation_of_transformers(
    exported: Path,
) -> None:
    """Of a run and of its export, with a marker in the prompt."""
    export = exported / "hf" / "checkpoint-6"
    tokenizer = transformers.GPT2Tokenizer.from_pretrained(export)
    model = transformers.GPT2LMHeadModel.from_pretrained(export)
    inputs = tokenizer("He cleans 🅁 his", return_tensors="pt")
    assert inputs.input_ids.tolist() == [[1544, 20658, 50257, 465]]
    with torch.no_grad():
        output = model.generate(**inputs, max_new_tokens=6, do_sample=False, pad_token_id=0)[0]
    words = tokenizer.decode(output[4:])
    for arguments in ([f"--out_dir={exported}"], [f"--model={export}"]):
        (texts,) = continuations(*arguments, "--temperature=0", "--prompt=He cleans 🅁 his").values()
        assert texts[0].strip("'\"").endswith(words)


def test_top_k_of_one_is_greedy_too(trained: Path) -> None:
    where = f"--out_dir={trained}"
    assert continuations(where, "--top_k=1") == continuations(where, "--temperature=0")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--prompt=He\u200b cleans"], "sample.py: character 3 of prompt cannot be seen: U+200B"),
        (
            ["--prompt=He clean", "--new_tokens=100"],
            "reads at most 32 tokens; the prompt has 2, and new_tokens = 100",
        ),
        (["--checkpoint=9"], "has no checkpoint-9"),
        (
            ["--language=no_shuffle", "--model=EXPORT"],
            "a vocabulary of 50,258 tokens, but no_shuffle has 50,257",
        ),
    ],
)
def test_what_cannot_be_continued_is_told(arguments: list[str], told: str, exported: Path) -> None:
    export = str(exported / "hf" / "checkpoint-6")
    arguments = [argument.replace("EXPORT", export) for argument in arguments]
    assert told in fail("sample.py", f"--out_dir={exported}", *arguments)


def test_without_a_prompt_a_new_sentence_begins(trained: Path) -> None:
    command = ("sample.py", f"--out_dir={trained}", "--new_tokens=3", "--device=cpu")
    text = succeed(*command, "--top_k=0").splitlines()[-1].strip().strip("'")
    assert text and "<|endoftext|>" not in text
    begun = succeed(*command, "--top_k=0", "--prompt=He").splitlines()[-1]
    assert begun.strip().strip("'").startswith("He") and text != begun


def test_what_was_generated_is_shown_with_the_perturbation_undone(trained: Path) -> None:
    where, prompt = f"--out_dir={trained}", "--prompt=He cleans 🅁 his very"
    command = ("sample.py", where, prompt, "--new_tokens=1", "--device=cpu", "--undo")
    shown, undone = succeed(*command).splitlines()[1:]
    last = shown.strip().strip("'").removeprefix("He cleans🅁 his very")
    assert undone.strip() == f"undone: {f'He cleans{last} very his'!r}"
    undone = succeed("sample.py", where, *QUIET, "--temperature=0", "--undo", "--prompt=🅁 🅁")
    assert "undone: not possible (2 markers, 1 expected)" in undone


def test_white_space_of_a_prompt_is_replaced_and_told(trained: Path) -> None:
    command = ("sample.py", f"--out_dir={trained}", *QUIET, "--temperature=0")
    first, *odd = succeed(*command, "--prompt= He\u00a0 cleans\t").splitlines()
    assert first == "the prompt is read with single spaces and none at its end: ' He cleans'"
    assert odd == succeed(*command, "--prompt= He cleans").splitlines()
