"""Perplexities of test sentences, by genre, by sentence and by token.

Sentences are sampled from a test split as in Kallini et al. 2024 (experiment 1): a fixed number
from each genre, without replacement. The perplexity of a sentence is exp(mean loss of its tokens 2
to n, given the tokens before them).
"""

import functools
import shlex
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd

import perturb
from impossible.evaluation.scores import Source, language_of
from impossible.evaluation.scoring import Sequences, sentence_losses, sentences_of
from impossible.settings import Settings, UserError
from impossible.text import token_files
from impossible.text.corpus import require_names
from impossible.text.token_files import ALL_GENRES, Meta
from impossible.text.tokenizer import FIRST_MARKER_ID, Tokenizer, open_tokenizer


def draw(
    data_dir: Path,
    meta: Meta,
    per_genre: int,
    seed: int,
    drop_duplicates: bool = False,
    marked_only: bool = False,
) -> Sequences:
    """Sample sentences from the test split of prepared data (all if a genre has too few).

    drop_duplicates: leave out those whose original was drawn before. marked_only: sample from those
    with a marker. The columns are the genre of each sentence and its id, the number within the
    genre; counts are the duplicates of each genre. Raises UserError for a file that is not what
    meta.json says.
    """
    test, starts, ends = _sentences_of(data_dir, meta)
    marked_before = np.concatenate([[0], np.cumsum(test >= FIRST_MARKER_ID)])
    may_be = (marked_before[ends] > marked_before[starts]) | (not marked_only)
    genres = meta.splits["test"]["genres"]
    sizes = [genre["sentences"] for genre in genres.values()]
    chosen = _sampled(may_be, sizes, per_genre, seed)
    genre = np.repeat(np.arange(len(sizes)), list(map(len, chosen)))
    chosen = np.concatenate(chosen)
    parts = [test[start:end] for start, end in zip(starts[chosen], ends[chosen], strict=True)]
    is_repeated = pd.Series(list(_originals(data_dir, meta, parts))).duplicated().to_numpy()
    duplicates = np.bincount(genre[is_repeated], minlength=len(sizes)).tolist()
    kept = np.flatnonzero(~(is_repeated & drop_duplicates))
    parts = [parts[i] for i in kept]
    columns = {
        "genre": pd.Categorical.from_codes(genre[kept], list(genres)),
        "id": token_files.read_test_ids(data_dir, meta)[chosen[kept]],
    }
    return Sequences(
        language=meta.language,
        sentences=sentences_of(parts),
        columns=pd.DataFrame(columns),
        about=_about(meta) | {"sample_seed": seed, "drop_duplicates": drop_duplicates},
        counts=dict(zip(genres, duplicates, strict=True)),
    )


def _about(meta: Meta) -> dict[str, str]:
    return {
        "test_language": meta.language,
        "test_corpus": meta.corpus_version,
        "test_segmenter": meta.segmenter,
        "test_hash": meta.splits["test"]["sha256"][:8],
    }


def source(settings: Settings) -> Source:
    """The test split that the settings name. Raises UserError if it is not there."""
    meta = read_meta(settings)
    sha256 = meta.splits["test"]["sha256"]
    place = f"{data_dir_of(settings).resolve().name}-{sha256[:8]}"
    return Source(meta.language, place, split_sha256=sha256)


def sequences(settings: Settings, marked_only: bool = False) -> Sequences:
    """The test sentences that the settings ask for."""
    return draw(
        data_dir_of(settings),
        read_meta(settings),
        settings.sentences_per_genre,
        settings.sample_seed,
        settings.drop_duplicates,
        marked_only,
    )


def sentence_ids(sequences: Sequences) -> np.ndarray:
    """A name for each sentence, (S,) str: the same in all languages of one corpus."""
    columns = sequences.columns
    named = [f"{genre}:{i}" for genre, i in zip(columns["genre"], columns["id"], strict=True)]
    return np.array(named, object)


def _sentences_of(data_dir: Path, meta: Meta) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The tokens of the test split, and where each sentence begins and ends. Raises UserError."""
    require_names(meta.splits["test"]["genres"])
    test = token_files.open_blocks(data_dir, meta, "test", 1)[:, 0]
    ends = np.flatnonzero(test == meta.eot_token)
    count = sum(genre["sentences"] for genre in meta.splits["test"]["genres"].values())
    if count != len(ends):
        raise UserError(
            f"{token_files.path_of(data_dir, 'test')} has {len(ends):,} sentences; "
            f"{token_files.META} says {count:,}. Delete {data_dir} and prepare the data again."
        )
    return test, np.append(0, ends[:-1] + 1), ends


def _sampled(may_be: np.ndarray, sizes: list[int], per_genre: int, seed: int) -> list[np.ndarray]:
    """The sampled sentences of each genre, in order. may_be: (S,) bool, those to sample from."""
    rng, sampled = np.random.default_rng(seed), []
    for of_genre in np.split(np.arange(len(may_be)), np.cumsum(sizes)[:-1]):
        candidates = of_genre[may_be[of_genre]]
        sampled.append(candidates[np.sort(rng.permutation(len(candidates))[:per_genre])])
    return sampled


def _originals(data_dir: Path, meta: Meta, sentences: Iterable[np.ndarray]) -> Iterator[bytes]:
    """What identifies the original of each perturbed sentence: its tokens in their order.

    For a language that cannot be undone, the tokens are in the order of their ids.
    """
    language = perturb.get(meta.language)
    ids = open_tokenizer(data_dir, meta.tokenizer, language.markers).ids
    for tokens in sentences:
        if language.invert:
            yield language.undo(tokens, ids).tobytes()
        else:
            yield np.sort(tokens[~np.isin(tokens, ids.markers)]).tobytes()


# The prepared data


def data_dir_of(settings: Settings) -> Path:
    """The prepared data whose test split is evaluated on."""
    if settings.test_data_dir:
        return Path(settings.test_data_dir)
    if language_of(settings) == settings.language:
        return Path(settings.data_dir)
    return Path(Settings(language=settings.test_language).data_dir)


def read_meta(settings: Settings) -> Meta:
    """Read meta.json of the test data. Raises UserError if it describes another language."""
    wanted, data_dir = language_of(settings), data_dir_of(settings)
    perturb.get(wanted)
    is_elsewhere = settings.test_data_dir or wanted != settings.language
    if is_elsewhere and not (data_dir / token_files.META).exists():
        raise UserError(
            f"there are no prepared sentences of {wanted} in {data_dir}. Prepare them from the "
            f"corpus of the model's own data: {_prepare_command(settings, data_dir)} (with the "
            "same sotu_years or text_column, if they were set). If the data are in another "
            "folder, set --test_data_dir="
        )
    meta = token_files.read_meta(data_dir)
    if meta.language != wanted:
        raise UserError(
            f"{data_dir} contains {meta.language}, but sentences of {wanted} are needed. To "
            f"evaluate on {meta.language}, set --test_language={meta.language}. To evaluate on "
            f"{wanted}, set --test_data_dir= to the prepared data of that language."
        )
    return meta


def _prepare_command(settings: Settings, data_dir: Path) -> str:
    """The command that prepares the test language from the corpus of the model, if available."""
    options = [f"--language={language_of(settings)}"]
    if (Path(settings.data_dir) / token_files.META).exists():
        own = token_files.read_meta(Path(settings.data_dir))
        options.append(f"--corpus={own.corpus}")
        if own.segmenter != Settings.segmenter:
            options.append(f"--segmenter={own.segmenter}")
    return shlex.join(["python", "prepare.py", *options, f"--data_dir={data_dir}"])


# Tables


def result(sequences: Sequences, losses: np.ndarray) -> str:
    """The perplexity of a model, for people."""
    return f"perplexity {_mean(sentence_losses(losses, sequences.sentences)):,.2f}"


def table(sequences: Sequences, losses: np.ndarray) -> pd.DataFrame:
    """A row for each genre, and one for all sentences."""
    genre, counts = sequences.columns["genre"], sequences.counts
    values = log_perplexities(sequences, losses)
    unmarked = log_perplexities_without_markers(sequences, losses)
    rows = []
    for name, duplicates in [*counts.items(), (ALL_GENRES, sum(counts.values()))]:
        chosen = np.array((genre == name) | (name == ALL_GENRES))
        counted = chosen & ~np.isnan(values)
        rows.append(
            {
                "genre": name,
                "perplexity": _mean(values[counted]),
                "perplexity_without_markers": _mean(unmarked[counted]),
                "sentences": int(counted.sum()),
                "scored_tokens": int((sequences.sentences.lengths[counted] - 1).sum()),
                "too_long": int((chosen & np.isnan(values)).sum()),
                "duplicates": duplicates,
            }
        )
    rows[-1] |= sequences.totals
    return pd.DataFrame(rows)


def point(sequences: Sequences, losses: np.ndarray) -> pd.DataFrame:
    """The perplexity as it is drawn, without an interval."""
    value = _mean(log_perplexities(sequences, losses))
    return pd.DataFrame({"value": [value], "low": [np.nan], "high": [np.nan]})


def log_perplexities(sequences: Sequences, losses: np.ndarray) -> np.ndarray:
    """The log-perplexity of each sentence, (S,); NaN where one is too long for the model."""
    return sentence_losses(losses, sequences.sentences)


def log_perplexities_without_markers(sequences: Sequences, losses: np.ndarray) -> np.ndarray:
    """As `log_perplexities`, without the losses of the markers themselves, (S,)."""
    return sentence_losses(losses, sequences.sentences, with_markers=False)


def _mean(values: np.ndarray) -> float:
    """The geometric mean of perplexities, from their logarithms; NaN does not count."""
    scored = values[~np.isnan(values)]
    return float(np.exp(scored.mean())) if len(scored) else np.nan


def sentences(sequences: Sequences, losses: np.ndarray) -> pd.DataFrame:
    """A row for each sentence with its perplexity."""
    return _sentences(sequences).assign(perplexity=np.exp(log_perplexities(sequences, losses)))


@functools.lru_cache(1)
def _sentences(sequences: Sequences) -> pd.DataFrame:
    decode = Tokenizer(perturb.get(sequences.language).markers).decode
    columns = {
        "sentence_id": sentence_ids(sequences),
        "genre": sequences.columns["genre"],
        "tokens": sequences.sentences.lengths,
        "token_ids": [" ".join(map(str, part)) for part in sequences.parts],
        "sentence": [decode(part) for part in sequences.parts],
    }
    return pd.DataFrame(columns)


def surprisals(sequences: Sequences, losses: np.ndarray) -> pd.DataFrame:
    """A row for each token but the first of a sentence, with its surprisal in bits."""
    return _tokens(sequences).assign(surprisal=losses / np.log(2).astype(np.float32))


@functools.lru_cache(1)
def _tokens(sequences: Sequences) -> pd.DataFrame:
    tokens, offsets = sequences.sentences.tokens, sequences.sentences.offsets
    sentence = np.repeat(np.arange(len(offsets) - 1), sequences.sentences.lengths)
    position = np.arange(len(sentence)) - offsets[sentence]
    scored = position > 0
    ids, which = np.unique(tokens[scored], return_inverse=True)
    pieces = Tokenizer(perturb.get(sequences.language).markers).pieces(ids)
    columns = {
        "sentence_id": sentence_ids(sequences)[sentence[scored]],
        "genre": sequences.columns["genre"].array[sentence[scored]],
        "position": position[scored] + 1,
        "token_id": ids[which],
        "token": np.array(pieces, object)[which],
    }
    return pd.DataFrame(columns)
