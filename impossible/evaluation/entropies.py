"""Tables of how predictable languages are by themselves (ngrams.py), beside their perplexities."""

import contextlib
import functools
import json
from pathlib import Path

import pandas as pd

from impossible import files
from impossible.evaluation import ngrams
from impossible.evaluation.ngrams import Entropy
from impossible.evaluation.results import Evaluation
from impossible.settings import UserError
from impossible.text import token_files
from impossible.text.tokenizer import END_OF_TEXT_ID

_VERSION = 1  # raised when the same tokens give other numbers


def table(evaluations: list[Evaluation]) -> pd.DataFrame:
    """A row for each test language and n, for the languages of all evaluations."""
    rows = []
    for place, e in {e.test.data_dir: e for e in evaluations}.items():
        splits = token_files.read_meta(Path(place)).splits
        hashes = {f"{split}_hash": splits[split]["sha256"][:8] for split in ("train", "test")}
        about = {"language": e.test.language, "corpus": e.test.corpus, **hashes}
        rows += [{**about, "n": n, **entropy._asdict()} for n, entropy in _of(e).items()]
    return pd.DataFrame(rows).rename(columns={"all": "all_bits", "local": "local_bits"})


def columns(e: Evaluation) -> dict[str, float]:
    """The columns that stand beside the perplexities on a language."""
    found = _of(e)
    local = {f"local_{n}_bits": found[n].local for n in ngrams.ORDERS if n > 1}
    return {"unigram_bits": found[1].all, "bigram_bits": found[2].all} | local


def _of(e: Evaluation) -> dict[int, Entropy]:
    """The entropies of a test language, kept in the folder of joint results."""
    return _computed(e.test.data_dir, Path(e.settings.eval_dir) / "scores")


@functools.lru_cache
def _computed(data_dir: str, folder: Path) -> dict[int, Entropy]:
    meta = token_files.read_meta(Path(data_dir))
    key = "-".join(meta.splits[split]["sha256"][:8] for split in ("train", "test"))
    path = folder / f"entropies-{key}-{_VERSION}.json"
    with contextlib.suppress(FileNotFoundError, ValueError):  # a damaged one is computed again
        stored = json.loads(path.read_text(encoding="utf-8"))
        return {int(n): Entropy(*values) for n, values in stored.items()}
    train, test = (
        token_files.open_blocks(Path(data_dir), meta, split, 1)[:, 0] for split in ("train", "test")
    )
    if not len(test):
        raise UserError(f"the test split in {data_dir} is empty, so it has no entropies.")
    print(f"{meta.language}: n-gram models of {len(train):,} tokens (minutes for 100M)", flush=True)
    folder.mkdir(parents=True, exist_ok=True)
    found = ngrams.entropies(train, test, meta.vocab_size, END_OF_TEXT_ID)
    files.write_json(path, {str(n): list(entropy) for n, entropy in found.items()})
    return found
