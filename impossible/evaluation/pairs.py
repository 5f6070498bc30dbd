"""Minimal pairs in an impossible language: does a model prefer the grammatical sentence?

Both sentences of a pair are perturbed with the same random draw, so that they differ in nothing but
what makes one ungrammatical. The first token is predicted from <|endoftext|>, and a pair counts as
right if the log-probabilities of the grammatical sentence have the higher sum.
"""

import functools
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

import perturb
from impossible import asking
from impossible.evaluation import rows
from impossible.evaluation.intervals import wilson_interval
from impossible.evaluation.models import Series
from impossible.evaluation.scores import Scores, Source, language_of
from impossible.evaluation.scoring import Sequences, sentence_losses, sentences_of
from impossible.settings import Settings, UserError
from impossible.text import annotate
from impossible.text.arrays import Ids, Sentences
from impossible.text.corpus import on_hub
from impossible.text.sampling import commit_of
from impossible.text.token_files import ALL_GENRES as TOTAL
from impossible.text.tokenizer import Tokenizer

_REPO, COMMIT = "nyu-mll/blimp", "877fba0801ffb7cbd8c39c1ff314a46f053f6036"
_BLIMP = f"hf:{_REPO}@{COMMIT}"  # Warstadt et al. 2020
_FILES, _PARADIGMS = "*/*.parquet", 67
_GOOD, _BAD = "sentence_good", "sentence_bad"
_MULTIBLIMP, _MULTIBLIMP_COLUMNS = "hf:jumelet/multiblimp:", "sen,wrong_sen"  # Jumelet et al. 2025


class Pair(NamedTuple):
    """One minimal pair."""

    paradigm: str
    field: str
    item: str  # its name within the paradigm
    good: str
    bad: str


# Files


@functools.lru_cache(1)
def read(source: str, place: str = "", columns: str = f"{_GOOD},{_BAD}") -> list[Pair]:
    """The pairs of a dataset on the Hub (hf:...), of a jsonl file, or of a folder of such files.

    place: a name that depends on the content, so that files that have changed are read again.
    columns: the names of both sentences' columns, as GOOD,BAD. Raises UserError if there are no
    pairs, for a line that is not a pair, and for two pairs of a paradigm with one name.
    """
    if source == _BLIMP:
        lines = list(_of_blimp())
    elif source.startswith("hf:"):
        lines = list(_of_dataset(source))
    else:
        lines = list(_of_files(Path(source)))
    if not lines:
        raise UserError(f"pairs = {source!r} holds no minimal pair. Expected one per jsonl line.")
    first: dict[tuple[str, str], str] = {}
    names = [name.strip() for name in columns.split(",")]
    pairs = [_pair(*line, *names) for line in lines]
    for pair, (where, *_) in zip(pairs, lines, strict=True):
        before = first.setdefault((pair.paradigm, pair.item), where)
        if before != where:
            raise UserError(
                f"{where}: the paradigm {pair.paradigm!r} already has a pair {pair.item!r} "
                f"({before}). Give each pair of a paradigm its own pairID. If these are two "
                "paradigms, give them different UIDs, or rename one file: without a UID, the name "
                "of the file is the paradigm."
            )
    texts = ((where, row[name]) for where, row, *_ in lines for name in names)
    rows.print_replaced_spaces(texts)
    return pairs


# The place of a row, the row, and the names of its paradigm and pair for a row that gives none.
_Line = tuple[str, dict[str, Any], str, str]


def _paths(source: Path) -> list[Path]:
    """The jsonl files of a folder, in order; or the one file. Raises UserError if it is neither."""
    if source.is_dir():
        # macOS adds files whose names begin with a dot.
        paths = ((path, path.relative_to(source).parts) for path in source.rglob("*.jsonl"))
        return sorted(p for p, parts in paths if not any(x.startswith(".") for x in parts))
    if not source.is_file():
        raise UserError(
            f"pairs = {str(source)!r} does not exist. Expected blimp, multiblimp:CODE, hf:NAME, a "
            "folder of jsonl files, or one such file."
        )
    return [source]


def _of_files(source: Path) -> Iterator[_Line]:
    for path in _paths(source):
        for number, row in rows.of_json(rows.text_of(path), path):
            yield f"{path}, line {number}", row, path.stem, str(number - 1)


def _of_blimp() -> Iterator[_Line]:
    import pyarrow.parquet as pq

    def is_complete(folder: Path) -> bool:
        return len(list(folder.glob(_FILES))) == _PARADIGMS

    fetch = functools.partial(asking.dataset_folder, _REPO, COMMIT, [_FILES], is_complete)
    for path in sorted(_asked(_BLIMP, fetch).glob(_FILES)):
        with open(path, "rb") as file:  # pyarrow takes every path for UTF-8
            table = pq.read_table(file).to_pylist()
        for number, row in enumerate(table):
            row["UID"] = path.parent.name
            yield f"{path}, row {number}", row, path.parent.name, str(number)


@functools.lru_cache
def _on_hub(name: str) -> tuple[str, str | None, str]:
    """The repo, config and commit of hf:NAME:CONFIG@REVISION. Raises UserError like `_asked`."""
    repo, options = on_hub(name)
    find = functools.partial(commit_of, repo, options["revision"])
    commit = _asked(name, find)
    if options["revision"] != commit:
        print(f"to read the same pairs later: --pairs={name.partition('@')[0]}@{commit}")
    return repo, options["name"], commit


def _of_dataset(name: str) -> Iterator[_Line]:
    """The rows of all splits of a dataset on the Hub."""
    import datasets

    repo, config, commit = _on_hub(name)
    load = functools.partial(datasets.load_dataset, repo, config, revision=commit)
    places = ((split, row) for split, table in _asked(name, load).items() for row in table)
    for item, (split, row) in enumerate(places):
        yield f"{repo}, {split}, row {item}", row, config or repo.partition("/")[2], str(item)


def _asked(name: str, call: Callable[[], Any]) -> Any:
    """The result of a call that reads a dataset on the Hub. Raises UserError if it fails."""
    from datasets.exceptions import DatasetsError

    advice = "Check the network and the name (hf:USER/NAME:CONFIG); no split may be empty. Without "
    advice += "a network, name a folder of jsonl files: --pairs=FOLDER"
    return asking.ask(f"the dataset {name}", call, advice, DatasetsError)


def _pair(
    where: str, row: dict[str, Any], paradigm: str, item: str, good_name: str, bad_name: str
) -> Pair:
    """A pair from its row. Raises UserError if the row is invalid."""
    if missing := [name for name in (good_name, bad_name) if name not in row]:
        raise UserError(
            f"{where} has no {' and no '.join(missing)}. Found: {', '.join(row)}. Name the columns "
            "of the two sentences: --pairs_columns=GOOD,BAD"
        )
    good, bad = (rows.sentence(row[name], name, where) for name in (good_name, bad_name))
    if not (good and bad):
        raise UserError(f"{where}: {good_name} or {bad_name} is empty. Fill it in.")
    names = ("UID", "phenomenon", "field", "pairID", "pair_id")
    uid, phenomenon, field, number, other = (
        rows.label(row.get(name), name, where) for name in names
    )
    if (paradigm := uid or phenomenon or paradigm) == TOTAL:
        raise UserError(
            f"{where}: the paradigm {TOTAL!r} has the name that tables give to the total. Rename "
            "it."
        )
    return Pair(paradigm, field, number or other or item, good, bad)


# Sequences


def source(settings: Settings) -> Source:
    """The source of the pairs that the settings name. Raises UserError if it does not exist."""
    name = _name_of(settings)
    if name.startswith("hf:"):
        repo, config, commit = _on_hub(name)
        place = "-".join(filter(None, [repo.partition("/")[2] or repo, config, commit[:8]]))
    else:
        path = Path(settings.pairs)
        place = rows.name_by_content(path, _paths(path))
    name = f"pairs_{place}{'_leading_space' * settings.leading_space}"
    return Source(language_of(settings), place, name=name)


def _name_of(settings: Settings) -> str:
    """The setting `pairs`, but blimp and multiblimp:CODE become the names of datasets."""
    return (
        _BLIMP if settings.pairs == "blimp" else re.sub("^multiblimp:", _MULTIBLIMP, settings.pairs)
    )


def sequences(settings: Settings, series: Series) -> Sequences:
    """The pairs of the settings, perturbed and encoded. Raises UserError like `perturbed`."""
    place, language = source(settings).place, language_of(settings)
    name, columns = _name_of(settings), settings.pairs_columns
    if name.startswith(_MULTIBLIMP) and columns == Settings.pairs_columns:
        columns = _MULTIBLIMP_COLUMNS
    pairs = tuple(read(name, place, columns))
    tokenizer = series.tokenizer(perturb.get(language).markers)
    return perturbed(pairs, language, tokenizer, settings.leading_space, place)


@functools.lru_cache
def perturbed(
    pairs: tuple[Pair, ...],
    language: str,
    tokenizer: Tokenizer,
    leading_space: bool = False,
    place: str = "",
) -> Sequences:
    """The good and the bad sentence of each pair in a language, each after <|endoftext|>.

    leading_space: encode each sentence after a space. (In training data, none begins with one.)
    place: the name of the pairs in tables. The columns are those of Pair. A pair is left out, and
    counted by paradigm and field, if the language drops one of its sentences; if they differ in
    length (in tokens, or in words if these move) and the rule depends on it; or if they become
    the same (as the *Hop languages replace verbs by lemmas). Raises UserError if no pair remains.
    """
    rule = perturb.get(language)
    if leading_space and rule.hops:
        raise UserError(f"{rule.title} joins the words itself. Leave --leading_space out.")
    space = rule.space or " " * leading_space
    good = annotate.encoded([space + pair.good for pair in pairs], tokenizer, rule.hops)
    bad = annotate.encoded([space + pair.bad for pair in pairs], tokenizer, rule.hops)
    ids, kept, parts = tokenizer.ids, [], []
    for i in np.flatnonzero(_can_be_compared(rule, good, bad, ids)).tolist():
        # The draw of a pair is the same whatever other pairs there are.
        seeds = [rule.seed, zlib.crc32(f"{pairs[i].paradigm} {pairs[i].item}".encode())]
        rngs = (np.random.default_rng(seeds) for _ in range(2))
        sentences = zip((good, bad), rngs, strict=True)
        both = [rule.apply(s.part(i, i + 1), ids, rng, drop=False).tokens for s, rng in sentences]
        if not np.array_equal(*both):
            kept.append(pairs[i])
            parts += [np.append(tokenizer.end_of_text, tokens) for tokens in both]
    if not kept:
        raise UserError(f"no pair of {place} is comparable in {rule.title}: see docs/evaluation.md")
    left_out = Counter((p.paradigm, p.field) for p in pairs)
    left_out.subtract((p.paradigm, p.field) for p in kept)
    about = {"test_language": language, "pairs_from": place}
    columns = pd.DataFrame(kept)
    return Sequences(language, tokenizer, sentences_of(parts), columns, about, left_out)


def _can_be_compared(
    rule: perturb.Language, good: Sentences, bad: Sentences, ids: Ids
) -> np.ndarray:
    """Whether a language keeps both sentences of each pair, and moves them alike, (P,) bool."""
    is_kept = rule.keeps(good) & rule.keeps(bad)
    if not rule.any_length:
        lengths = (np.diff(rule.starts(s, ids).searchsorted(s.offsets)) for s in (good, bad))
        is_kept &= np.equal(*lengths)
    return is_kept


def on_common(scores: list[Scores]) -> list[Scores]:
    """The scores; with several, the column `is_common` marks the pairs that all of them have."""
    if len(scores) == 1:
        return scores
    pairs = [s.sequences.columns for s in scores]
    # Paradigm and item name a pair in all languages.
    keys = [pd.MultiIndex.from_frame(table[["paradigm", "item"]]) for table in pairs]
    common = functools.reduce(pd.MultiIndex.intersection, keys)
    total = len(keys[0]) + sum(scores[0].sequences.counts.values())
    print(f"{len(common):,} of {total:,} pairs are evaluated in all languages (column left_out)")
    marked = [t.assign(is_common=own.isin(common)) for t, own in zip(pairs, keys, strict=True)]
    return [s.with_sequences(columns=t) for s, t in zip(scores, marked, strict=True)]


# Tables


def log_probabilities(sequences: Sequences, losses: np.ndarray) -> np.ndarray:
    """The log-probabilities of the good and the bad sentence of each pair, in nats, (K, 2)."""
    means = sentence_losses(sequences, losses)
    return -(means * (sequences.sentences.lengths - 1)).reshape(-1, 2)


def _right(sequences: Sequences, losses: np.ndarray) -> pd.Series:
    """For each pair, 1 if it is right, 0 if it is wrong, and NaN if it is not scored, (K,)."""
    good, bad = log_probabilities(sequences, losses).T
    return pd.Series(good > bad, dtype=float).where(~np.isnan(good + bad))


def _over_paradigms(sequences: Sequences, right: pd.Series) -> float:
    """The mean of the accuracies of all paradigms, as BLiMP reports it. right: as of `_right`."""
    return float(right.groupby(sequences.columns["paradigm"]).mean().mean())


def result(sequences: Sequences, losses: np.ndarray) -> str:
    """A line to print: the accuracy of a model."""
    right = _right(sequences, losses)
    return (
        f"{right.mean():.1%} of pairs right (mean over paradigms: "
        f"{_over_paradigms(sequences, right):.1%})"
    )


def table(sequences: Sequences, losses: np.ndarray) -> pd.DataFrame:
    """A row for each paradigm, and one for all pairs.

    In the latter, `accuracy` is a mean over pairs, `accuracy_over_paradigms` one over paradigms.
    """
    pairs, right = sequences.columns, _right(sequences, losses)
    rows = []
    for (paradigm, field), left_out in [*sorted(sequences.counts.items()), ((TOTAL, ""), 0)]:
        chosen = (pairs["paradigm"] == paradigm) & (pairs["field"] == field)
        if paradigm == TOTAL:
            chosen, left_out = pd.Series(True, pairs.index), sum(sequences.counts.values())
        row = {"paradigm": paradigm, "field": field, **_accuracy(right[chosen])}
        row["left_out"] = left_out + int(chosen.sum()) - row["pairs"]
        if "is_common" in pairs:
            common = right[chosen & pairs["is_common"]]
            row |= {"accuracy_common": common.mean(), "pairs_common": int(common.count())}
        rows.append(row)
    rows[-1]["accuracy_over_paradigms"] = _over_paradigms(sequences, right)
    if "is_common" in pairs:
        common = right.where(pairs["is_common"])
        rows[-1]["accuracy_common_over_paradigms"] = _over_paradigms(sequences, common)
    return pd.DataFrame(rows)


def _accuracy(right: pd.Series) -> dict[str, float | int]:
    """The share of right pairs, its 95% Wilson interval, and the number of scored pairs."""
    low, high = wilson_interval(int(right.sum()), int(right.count()))
    return {"accuracy": right.mean(), "low": low, "high": high, "pairs": int(right.count())}


def point(sequences: Sequences, losses: np.ndarray) -> pd.DataFrame:
    """The row to draw: the accuracy on the pairs that all series have, with its interval."""
    right = _right(sequences, losses)
    if "is_common" in sequences.columns:
        right = right[sequences.columns["is_common"]]
    return pd.DataFrame([_accuracy(right)]).rename(columns={"accuracy": "value"})


def items(scores: Scores) -> pd.DataFrame:
    """A row for each pair and checkpoint, with the log-probabilities of its two sentences."""
    sequences = scores.sequences
    texts = [sequences.tokenizer.decode(part[1:]) for part in sequences.parts]
    pairs = sequences.columns[[*Pair._fields]].assign(
        perturbed_good=texts[::2], perturbed_bad=texts[1::2]
    )

    def of_model(sequences: Sequences, losses: np.ndarray) -> pd.DataFrame:
        good, bad = log_probabilities(sequences, losses).T
        is_right = _right(sequences, losses).astype("Int64")  # empty in csv if it is not scored
        values = {"log_probability_good": good, "log_probability_bad": bad, "is_right": is_right}
        return pairs.assign(**values)

    table = pd.concat(scores.tables(of_model), ignore_index=True)
    models = [name for name in scores.columns(scores.series.models[0]) if name != "pairs_from"]
    values = [name for name in table if name not in (*models, *pairs, "pairs_from")]
    return table[[*pairs, *models, *values]]
