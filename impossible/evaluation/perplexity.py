"""Perplexities of test sentences, by genre, by sentence and by token.

Sentences are sampled from a test split as in Kallini et al. 2024 (experiment 1): a fixed number
from each genre, without replacement. The perplexity of a sentence is exp(mean loss of its tokens 2
to n, given the tokens before them).
"""

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd

import perturb
from impossible.evaluation.models import Series
from impossible.evaluation.scores import Source, language_of
from impossible.evaluation.scoring import Sequences, sentence_losses, sentences_of
from impossible.settings import Settings, UserError
from impossible.text import token_files
from impossible.text.arrays import Ids
from impossible.text.corpus import require_names
from impossible.text.token_files import ALL_GENRES, Meta
from impossible.text.tokenizer import open_tokenizer
from perturb import Language


def draw(
    data_dir: Path,
    meta: Meta,
    per_genre: int,
    seed: int,
    drop_duplicates: bool = False,
    marked_only: bool = False,
) -> Sequences:
    """Sample `per_genre` sentences of each genre of a test split (all if a genre has fewer).

    drop_duplicates: leave out sentences whose original was drawn before. marked_only: sample only
    sentences with a marker. The columns are the genre of each sentence and its id, the number
    within the genre; counts are the duplicates of each genre. Raises UserError for a file that
    does not match meta.json.
    """
    language = perturb.get(meta.language)
    tokenizer = open_tokenizer(data_dir, meta.tokenizer, language.markers)
    test, starts, ends = _sentences_of(data_dir, meta)
    marked_before = np.concatenate([[0], np.cumsum(test > tokenizer.end_of_text)])
    may_be = (marked_before[ends] > marked_before[starts]) | (not marked_only)
    genres = meta.splits["test"]["genres"]
    sizes = [genre["sentences"] for genre in genres.values()]
    chosen = _sampled(may_be, sizes, per_genre, seed)
    genre = np.repeat(np.arange(len(sizes)), list(map(len, chosen)))
    chosen = np.concatenate(chosen)
    parts = [test[start:end] for start, end in zip(starts[chosen], ends[chosen], strict=True)]
    originals = pd.Series(list(_originals(language, tokenizer.ids, parts)))
    is_repeated = originals.duplicated().to_numpy()
    duplicates = np.bincount(genre[is_repeated], minlength=len(sizes)).tolist()
    kept = np.flatnonzero(~(is_repeated & drop_duplicates))
    parts = [parts[i] for i in kept]
    columns = {
        "genre": pd.Categorical.from_codes(genre[kept], list(genres)),
        "id": token_files.read_test_ids(data_dir, meta)[chosen[kept]],
    }
    about = _about(meta) | {"sample_seed": seed, "drop_duplicates": drop_duplicates}
    counts = dict(zip(genres, duplicates, strict=True))
    table = pd.DataFrame(columns)
    return Sequences(meta.language, tokenizer, sentences_of(parts), table, about, counts)


def _about(meta: Meta) -> dict[str, str]:
    """The columns of every table that name the test split."""
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


def sequences(settings: Settings, series: Series, marked_only: bool = False) -> Sequences:
    """The test sentences that the settings ask for.

    Raises UserError if their tokens are not those of the models' tokenizer.
    """
    data_dir = data_dir_of(settings)
    sampled = draw(
        data_dir,
        read_meta(settings),
        settings.sentences_per_genre,
        settings.sample_seed,
        settings.drop_duplicates,
        marked_only,
    )
    if sampled.tokenizer.sha256 != series.tokenizer(()).sha256:
        raise UserError(
            f"{series.title} has another tokenizer than the sentences in {data_dir}. Prepare these "
            "sentences in a new folder, with --tokenizer= and the folder of the run or export "
            "(python prepare.py), and name the new folder: --test_data_dir="
        )
    return sampled


def sentence_ids(sequences: Sequences) -> np.ndarray:
    """A name for each sentence, (S,) str: the same in all languages of one corpus."""
    columns = sequences.columns
    named = [f"{genre}:{i}" for genre, i in zip(columns["genre"], columns["id"], strict=True)]
    return np.array(named, object)


def _sentences_of(data_dir: Path, meta: Meta) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The tokens of a test split, its sentences' starts and ends. Raises UserError for bad data."""
    require_names(meta.splits["test"]["genres"])
    test = token_files.open_blocks(data_dir, meta, "test", 1)[:, 0]
    ends = np.flatnonzero(test == meta.eot_token)
    return test, np.append(0, ends[:-1] + 1), ends


def _sampled(may_be: np.ndarray, sizes: list[int], per_genre: int, seed: int) -> list[np.ndarray]:
    """The sampled sentences of each genre, in order. may_be: (S,) bool, those to sample from."""
    rng, sampled = np.random.default_rng(seed), []
    for of_genre in np.split(np.arange(len(may_be)), np.cumsum(sizes)[:-1]):
        candidates = of_genre[may_be[of_genre]]
        sampled.append(candidates[np.sort(rng.permutation(len(candidates))[:per_genre])])
    return sampled


def _originals(language: Language, ids: Ids, sentences: Iterable[np.ndarray]) -> Iterator[bytes]:
    """Yield a key for the original of each perturbed sentence: its tokens in their old order.

    For a language that cannot be undone, the tokens are in the order of their ids.
    """
    for tokens in sentences:
        if language.invert:
            yield language.undo(tokens, ids).tobytes()
        else:
            yield np.sort(tokens[~np.isin(tokens, ids.markers)]).tobytes()


# The prepared data


def data_dir_of(settings: Settings) -> Path:
    """The folder of the prepared data whose test split is used."""
    if settings.test_data_dir:
        return Path(settings.test_data_dir)
    if language_of(settings) == settings.language:
        return Path(settings.data_dir)
    return Path(Settings(language=settings.test_language).data_dir)


def read_meta(settings: Settings) -> Meta:
    """Read meta.json of the test data. Raises UserError if it is missing or of another language."""
    wanted, data_dir = language_of(settings), data_dir_of(settings)
    perturb.get(wanted)
    is_elsewhere = settings.test_data_dir or wanted != settings.language
    if is_elsewhere and not (data_dir / token_files.META).exists():
        raise UserError(
            f"there are no prepared sentences of {wanted} in {data_dir}. Prepare them there from "
            "the corpus of the model's own data (prepare.py, with the config file of the model, "
            f"--language={wanted} and --data_dir={data_dir}; for a tokenizer of its own, also "
            f"--tokenizer={settings.data_dir}). If they are in another folder, set "
            "--test_data_dir="
        )
    meta = token_files.read_meta(data_dir)
    if meta.language != wanted:
        raise UserError(
            f"{data_dir} contains {meta.language}, but sentences of {wanted} are needed. To "
            f"evaluate on {meta.language}, set --test_language={meta.language}. To evaluate on "
            f"{wanted}, set --test_data_dir= to the prepared data of that language."
        )
    return meta


# Tables


def result(sequences: Sequences, losses: np.ndarray) -> str:
    """A line to print: the perplexity of a model."""
    return f"perplexity {_mean(sentence_losses(sequences, losses)):,.2f}"


def table(sequences: Sequences, losses: np.ndarray) -> pd.DataFrame:
    """A row for each genre, and one for all sentences."""
    genre, counts = sequences.columns["genre"], sequences.counts
    values = sentence_losses(sequences, losses)
    unmarked = sentence_losses(sequences, losses, with_markers=False)
    bits, sizes = _bits_and_bytes(sequences, losses)
    rows = []
    for name, duplicates in [*counts.items(), (ALL_GENRES, sum(counts.values()))]:
        chosen = np.array((genre == name) | (name == ALL_GENRES))
        counted = chosen & ~np.isnan(values)
        rows.append(
            {
                "genre": name,
                "perplexity": _mean(values[counted]),
                "perplexity_without_markers": _mean(unmarked[counted]),
                "bits_per_byte": bits[counted].sum() / sizes[counted].sum(),
                "sentences": int(counted.sum()),
                "scored_tokens": int((sequences.sentences.lengths[counted] - 1).sum()),
                "too_long": int((chosen & np.isnan(values)).sum()),
                "duplicates": duplicates,
            }
        )
    rows[-1] |= sequences.totals
    return pd.DataFrame(rows)


def point(sequences: Sequences, losses: np.ndarray) -> pd.DataFrame:
    """The row to draw: the perplexity, without an interval."""
    return pd.DataFrame({"value": [_mean(sentence_losses(sequences, losses))]})


def point_in_bits(sequences: Sequences, losses: np.ndarray) -> pd.DataFrame:
    """The row to draw if tokenizers differ: the bits per byte, without an interval."""
    bits, sizes = _bits_and_bytes(sequences, losses)
    return pd.DataFrame({"value": [np.nansum(bits) / sizes[~np.isnan(bits)].sum()]})


def bits_per_byte(sequences: Sequences, losses: np.ndarray) -> np.ndarray:
    """The surprisal of each sentence in bits per byte of text, (S,); NaN if it is too long.

    The first token has no surprisal, and its bytes do not count; the markers have no bytes.
    """
    bits, sizes = _bits_and_bytes(sequences, losses)
    return bits / np.where(sizes > 0, sizes, np.nan)


def _bits_and_bytes(sequences: Sequences, losses: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The surprisal of the scored tokens of each sentence, and the bytes of their text, (S,)."""
    tokens, offsets, *_ = sequences.sentences
    sizes = sequences.tokenizer.token_bytes[tokens]
    of_sentence = np.add.reduceat(sizes, offsets[:-1]) - sizes[offsets[:-1]]
    bits = sentence_losses(sequences, losses) * (sequences.sentences.lengths - 1) / np.log(2)
    return bits, of_sentence


def _mean(values: np.ndarray) -> float:
    """The geometric mean of perplexities, from their logarithms; NaN does not count."""
    scored = values[~np.isnan(values)]
    return float(np.exp(scored.mean())) if len(scored) else np.nan


def sentences(sequences: Sequences, losses: np.ndarray) -> pd.DataFrame:
    """A row for each sentence with its perplexity."""
    decode = sequences.tokenizer.decode
    columns = {
        "sentence_id": sentence_ids(sequences),
        "genre": sequences.columns["genre"],
        "tokens": sequences.sentences.lengths,
        "token_ids": [" ".join(map(str, part)) for part in sequences.parts],
        "sentence": [decode(part) for part in sequences.parts],
        "perplexity": np.exp(sentence_losses(sequences, losses)),
    }
    return pd.DataFrame(columns)


def surprisals(sequences: Sequences, losses: np.ndarray) -> pd.DataFrame:
    """A row for each token except the first of each sentence, with its surprisal in bits."""
    tokens, offsets = sequences.sentences.tokens, sequences.sentences.offsets
    sentence = np.repeat(np.arange(len(offsets) - 1), sequences.sentences.lengths)
    position = np.arange(len(sentence)) - offsets[sentence]
    scored = position > 0
    ids, which = np.unique(tokens[scored], return_inverse=True)
    pieces = sequences.tokenizer.pieces(ids)
    columns = {
        "sentence_id": sentence_ids(sequences)[sentence[scored]],
        "genre": sequences.columns["genre"].array[sentence[scored]],
        "position": position[scored] + 1,
        "token_id": ids[which],
        "token": np.array(pieces, object)[which],
        "surprisal": losses / np.log(2).astype(np.float32),
    }
    return pd.DataFrame(columns)
