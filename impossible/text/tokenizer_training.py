"""Training a tokenizer on the train split of a corpus, once for all languages.

The result depends on the text and the size alone: training twice gives the same files.
"""

import hashlib
import importlib.metadata
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from impossible import files
from impossible.settings import Settings, UserError
from impossible.text.corpus import Open, Split
from impossible.text.token_files import TOKENIZER
from impossible.text.tokenizer import END_OF_TEXT, Tokenizer

ABOUT = "tokenizer_training.json"  # describes the training text; beside TOKENIZER
_MOST = 1 << 27  # bytes of text to train on; of a larger corpus, evenly spaced parts are read


def folder_of(settings: Settings, corpus_version: str, open_corpus: Open) -> Path | None:
    """The folder with the tokenizer that the settings name, trained if need be; None: GPT-2's.

    Raises UserError for a folder without a tokenizer, and if the text is too short.
    """
    if settings.tokenizer == "gpt2":
        return None
    if settings.tokenizer != "train":
        return Path(settings.tokenizer)
    expected = "gpt2 or a tokenizer's folder, as annotations hold no plain text to train on"
    settings.require(not settings.annotations, "tokenizer", expected)
    about = {
        "text": f"{corpus_version}, train split",
        "vocab_size": settings.vocab_size,
        "made_with": {"tokenizers": importlib.metadata.version("tokenizers")},
    }
    # The lines depend on the segmenter: for sentencex, Gutenberg's are joined.
    digest = hashlib.sha256(json.dumps([about, settings.segmenter]).encode()).hexdigest()[:8]
    folder = Path(settings.data_dir).parent / "tokenizers" / f"{settings.vocab_size}-{digest}"
    folder.mkdir(parents=True, exist_ok=True)
    with files.locked(folder):
        if not (folder / ABOUT).exists():  # it is written last
            split = open_corpus(settings)["train"]
            print(f"training a tokenizer of {settings.vocab_size:,} tokens in {folder}", flush=True)
            size = _train(split, settings.vocab_size, folder)
            files.write_json(folder / ABOUT, about | {"bytes": size, "corpus_bytes": split.size})
    return folder


def record_of(tokenizer: Tokenizer, folder: Path | None) -> dict[str, Any]:
    """The field `tokenizer` of meta.json: a hash and, if known, the training text; {} for GPT-2."""
    if folder is None:
        return {}
    path = folder / ABOUT
    about = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return {"sha256": tokenizer.sha256, **about}


def copy(tokenizer: Tokenizer, folder: Path) -> None:
    """Copy the files of a tokenizer, and the description of its training, into a folder."""
    about = tokenizer.paths[0].with_name(ABOUT)
    for path in [*tokenizer.paths, *[about] * about.exists()]:
        if path.parent.resolve() != folder.resolve():
            files.copy(path, folder)


def _train(split: Split, size: int, folder: Path) -> int:
    """Train a tokenizer of `size` bytes and merges. Returns the bytes of text that were read.

    Raises UserError if the text has too few different words for so many tokens.
    """
    import tokenizers
    from tokenizers import models, pre_tokenizers, trainers

    sizes, step = [], max(1.0, split.size / _MOST)

    def texts() -> Iterator[list[str]]:
        for number, part in enumerate(split.parts()):
            if number % step < 1:
                sizes.append(sum(len(line.encode()) for line in part.lines))
                yield part.lines

    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False)
    bpe = tokenizers.Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.train_from_iterator(texts(), trainer)
    if (count := bpe.get_vocab_size()) < size:
        raise UserError(
            f"the train split ({sum(sizes):,} bytes) supports a tokenizer of {count:,} tokens, not "
            f"of vocab_size = {size:,}: with {count:,}, each of its words is one token. Use "
            f"more text, or set --vocab_size={count} or fewer."
        )
    bpe.model.save(str(folder))
    vocab = bpe.get_vocab() | {END_OF_TEXT: size}
    files.write_json(folder / TOKENIZER[0], dict(sorted(vocab.items(), key=lambda item: item[1])))
    return sum(sizes)
