"""Does the number of a subject decide the marker of a *Hop language, and where in the model?

Experiment 3 of Kallini et al. 2024, interchange interventions: a model reads a sentence with a
singular subject (the base), and the output of one block at one position is replaced with that of
the same sentence with a plural subject (the source). The accuracy of an interchange (IIA) is the
share of pairs for which the plural marker is then more likely than the singular one.
"""

import contextlib
import dataclasses
import re
import sys
from collections.abc import Callable, Iterator

import numpy as np
import pandas as pd
import torch
from pluralizer import Pluralizer
from torch import nn
from tqdm import tqdm

from impossible.distributed import World
from impossible.evaluation import perplexity, plots, scoring
from impossible.evaluation.intervals import bootstrap_interval, t_interval
from impossible.evaluation.models import Series
from impossible.evaluation.scores import Scores, language_of
from impossible.evaluation.scoring import Scorer, Sequences, sentences_of
from impossible.settings import Settings, UserError
from impossible.text.tokenizer import Tokenizer

_ROLES = ("determiner", "subject", "verb", *(f"verb + {i}" for i in range(1, 5)))
_READ = {"no_hop": 3, "token_hop": 7, "word_hop": 7}  # tokens before the marker
_SUBJECT = 1  # its place among the tokens
_ENOUGH = 50  # pairs, to be without a warning
_CELL = ["step", "layer", "position", "role"]

# The pairs


def sequences(settings: Settings, series: Series) -> Sequences:
    """The bases with the singular marker, then their sources with the plural one: 2N sentences.

    Raises UserError for a language without these patterns, and if there is no pair.
    """
    language, pattern = language_of(settings), "published" * settings.published_pattern
    if language not in _READ:
        raise UserError(f"--interventions works only for {', '.join(_READ)}, not for {language}.")
    no_hop, word_hop = (_all_sentences(name, settings, series) for name in ("no_hop", "word_hop"))
    _require_same(no_hop, word_hop)
    tokenizer, pluralizer = no_hop.tokenizer, Pluralizer()
    matches = list(_matches(no_hop, word_hop, settings.published_pattern))
    both = [(i, ids, plural_of(ids, tokenizer, pluralizer)) for i, ids in matches]
    both = [pair for pair in both if pair[2]]
    note = f"{len(matches):,} places match the patterns, {len(both):,} of them with a plural"
    if not both:
        raise UserError(
            f"there is no pair for --interventions ({note}). Prepare a corpus with a larger test "
            'split: pairs are sentences with "The" or " the", a noun and a verb of one token each, '
            "and four words of one token after the verb."
        )
    few = f"warning: fewer than {_ENOUGH} pairs, too few for an accuracy by layer and position"
    numbers, *sides = zip(*both, strict=True)
    read = [[ids[: _READ[language]] for ids in side] for side in sides]
    own, other = ([marker] * len(both) for marker in tokenizer.markers.values())
    lasts = np.array([*own, *other], np.uint16)
    ids = perplexity.sentence_ids(no_hop)[list(numbers)]
    texts = [[tokenizer.decode(ids) for ids in side] for side in sides]
    about = {name: no_hop.about[name] for name in ("test_corpus", "test_segmenter")}
    return Sequences(
        language,
        tokenizer,
        sentences_of([np.append(i, m) for i, m in zip([*read[0], *read[1]], lasts, strict=True)]),
        pd.DataFrame({"sentence_id": ids, "singular": texts[0], "plural": texts[1]}),
        about | {"pattern": pattern or "corrected"},
        last_instead=np.roll(lasts, len(both)),
        notes=(note, *[few] * (len(both) < _ENOUGH)),
    )


def _all_sentences(language: str, settings: Settings, series: Series) -> Sequences:
    """All test sentences of a language, in the folder beside the settings' test data.

    Its name is theirs, with the name of that language in it. Raises UserError if it is not there.
    """
    folder, own = perplexity.data_dir_of(settings).resolve(), language_of(settings)
    if own not in folder.name:
        raise UserError(
            "--interventions reads the test sentences of no_hop and word_hop, in two folders "
            f"beside each other. Their names are that of {folder} with the other language in place "
            f"of {own}, but it is not in this name. Rename the folder, such as data/{own}, and set "
            "--test_data_dir="
        )
    place = str(folder.with_name(folder.name.replace(own, language)))
    options = {"test_language": language, "test_data_dir": place}
    options |= {"sentences_per_genre": sys.maxsize}
    return perplexity.sequences(dataclasses.replace(settings, **options), series)


def _require_same(no_hop: Sequences, word_hop: Sequences) -> None:
    """Raise UserError unless two languages have the same test sentences."""
    ids = [perplexity.sentence_ids(s).tolist() for s in (no_hop, word_hop)]
    about = [(s.about["test_corpus"], s.about["test_segmenter"]) for s in (no_hop, word_hop)]
    if ids[0] != ids[1] or about[0] != about[1]:
        raise UserError(
            f"the test sentences of no_hop ({len(ids[0]):,} of {about[0]}) and of word_hop "
            f"({len(ids[1]):,} of {about[1]}) are not the same, so they cannot be paired. Prepare "
            "both languages from one corpus, with the same segmenter and annotations."
        )


def _matches(
    no_hop: Sequences, word_hop: Sequences, is_published: bool
) -> Iterator[tuple[int, list[int]]]:
    """Yield the number of a sentence and its seven ids at each place that both patterns match.

    The patterns are regular expressions over the ids as text, as published. is_published: whether
    an id with a 0 never matches, as in the published code.
    """
    tokenizer = no_hop.tokenizer
    singular, plural = tokenizer.markers.values()
    the = f"(?:^| )(?:{_id_of('The', tokenizer)}|{_id_of(' the', tokenizer)})"
    x = " [1-9]+" if is_published else rf" (?!(?:{singular}|{plural})\b)[0-9]+"
    near, far = f"{the}{x * 2} {singular}{x * 4}", f"{the}{x * 6} {singular}"
    for number, parts in enumerate(zip(no_hop.parts, word_hop.parts, strict=True)):
        texts = [" ".join(map(str, part)) for part in parts]
        found = zip(re.findall(near, texts[0]), re.findall(far, texts[1]), strict=False)
        for places in found:
            first, second = (place.replace(f" {singular}", "") for place in places)
            if first == second:
                yield number, [int(token) for token in first.split()]


def _id_of(text: str, tokenizer: Tokenizer) -> int:
    """The id of a text that is one token. Raises UserError if it has several."""
    ids = tokenizer.encode_ordinary(text)
    if len(ids) > 1:
        raise UserError(
            f"--interventions needs a tokenizer in which {text!r} is one token; in that of these "
            f"sentences it has {len(ids)}. Train one on more text, or with a larger --vocab_size="
        )
    return ids[0]


def plural_of(ids: list[int], tokenizer: Tokenizer, pluralizer: Pluralizer) -> list[int] | None:
    """The ids with their second word in the plural; None if their number differs, or nothing."""
    words = tokenizer.decode(ids).split()
    words[1] = pluralizer.pluralize(words[1], 2, False)
    plural = [ids[0], *tokenizer.encode_ordinary(" ".join(words))[1:]]
    return plural if len(plural) == len(ids) and plural != ids else None


# Interventions


def losses(scorer: Scorer, sequences: Sequences, world: World) -> np.ndarray:
    """The losses of `scoring.losses` and, after them, those after interventions, in nats.

    The latter are (L, T, 2, N), flattened: of the singular and the plural marker after each base,
    for each layer and position. All processes must call this function.
    """
    plain, markers = scoring.losses(scorer, sequences, world), sequences.tokenizer.markers
    grid = torch.from_numpy(np.stack(sequences.parts).astype(np.int64))[:, :-1].to(scorer.device)
    pairs = torch.stack(grid.chunk(2), 1)  # (N, 2, T)
    chunks = pairs.split(max(1, scorer.batch_tokens // grid.shape[1]))
    own = tqdm(chunks[world.rank :: world.size], disable=None if world.is_first else True)
    parts = world.gather([_interchanged(scorer, chunk, [*markers.values()]) for chunk in own])
    ordered = [parts[i % world.size][i // world.size] for i in range(len(chunks))]
    return np.concatenate([plain, np.concatenate(ordered, axis=-1).ravel()])


@torch.inference_mode()
def _interchanged(scorer: Scorer, pairs: torch.Tensor, markers: list[int]) -> np.ndarray:
    """The losses of both markers after each base and intervention, (L, T, 2, B).

    pairs: bases and sources, (B, 2, T) int64.
    """
    (base, source), length = pairs.unbind(1), pairs.shape[-1]
    positions = torch.arange(length, device=scorer.device).expand_as(base)
    mask = torch.full((length, length), -torch.inf, device=scorer.device).triu(1)
    mask = mask.expand(len(base), 1, -1, -1)
    targets = torch.tensor(markers, device=scorer.device).repeat_interleave(len(base))
    kept: list[torch.Tensor] = []  # the output of each block, (B, T, C)
    with contextlib.ExitStack() as hooks:
        for block in scorer.blocks:
            hook = block.register_forward_hook(lambda *call: kept.append(call[-1]))
            hooks.enter_context(hook)
        scorer.body(source, positions, mask)
    found = []
    for block, output in zip(scorer.blocks, kept, strict=True):
        for position in range(length):
            with block.register_forward_hook(_replacing(output, position)):
                last = scorer.body(base, positions, mask)[:, -1]  # (B, C)
            found.append(scoring.token_losses(last.repeat(2, 1), scorer.head, targets))
    return torch.stack(found).view(len(kept), length, 2, -1).cpu().numpy()


def _replacing(values: torch.Tensor, position: int) -> Callable[..., torch.Tensor]:
    """A hook that replaces the output of a block at one position. values: (B, T, C)."""

    def hook(block: nn.Module, inputs: tuple, output: torch.Tensor) -> torch.Tensor:
        output = output.clone()
        output[:, position] = values[:, position]
        return output

    return hook


# Tables


def _marker_losses(sequences: Sequences, losses: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The losses of both markers after each base: (2, N), and after interventions (L, T, 2, N)."""
    count, tokens = len(sequences.sentences.lengths), len(sequences.sentences.tokens)
    plain, instead, after = np.split(losses, [tokens - count, tokens])
    plain = plain.reshape(count, -1)  # (2N, T)
    without = np.stack([plain[:, -1], instead])[:, : count // 2]
    return without, after.reshape(-1, plain.shape[1], 2, count // 2)


def table(sequences: Sequences, losses: np.ndarray) -> pd.DataFrame:
    """A row for each layer and position, from 1: mean probabilities, and the share of pairs."""
    without, after = _marker_losses(sequences, losses)
    layers, length, _, count = after.shape
    layer, position = (i.ravel() + 1 for i in np.indices((layers, length)))
    probabilities = np.exp(-after.astype(np.float64)).mean(axis=-1).reshape(-1, 2)
    columns = {
        "layer": layer,
        "position": position,
        "role": [_ROLES[i - 1] for i in position],
        "pairs": count,
        "p_singular": probabilities[:, 0],
        "p_plural": probabilities[:, 1],
        "iia": (after[:, :, 1] < after[:, :, 0]).mean(axis=-1).ravel(),
        "baseline": (without[1] < without[0]).mean(),
    }
    return pd.DataFrame(columns)


def point(sequences: Sequences, losses: np.ndarray) -> pd.DataFrame:
    """The mean IIA of all layers at the subject, with its bootstrap interval, as it is drawn."""
    _, after = _marker_losses(sequences, losses)
    shares = (after[:, _SUBJECT, 1] < after[:, _SUBJECT, 0]).mean(axis=0)  # of layers, (N,)
    low, high = bootstrap_interval(shares[np.newaxis])
    return pd.DataFrame({"value": [shares.mean()], "low": low, "high": high})


def result(sequences: Sequences, losses: np.ndarray) -> str:
    """The accuracy at the subject, with and without interventions, for people."""
    without, _ = _marker_losses(sequences, losses)
    (value,), baseline = point(sequences, losses)["value"], (without[1] < without[0]).mean()
    return f"IIA {value:.3f} at the subject ({baseline:.3f} without intervention)"


def means(scores: list[Scores]) -> pd.DataFrame:
    """A row for each curve, step, layer and position: the mean IIA over seeds, and its interval.

    The interval is Student's, and NaN for one run. Steps that some seeds lack are left out.
    """
    parts = []
    for label, group in plots.groups_of(scores):
        runs = [pd.concat(s.tables(table)).dropna(subset="step").set_index(_CELL) for s in group]
        iia = pd.concat([run["iia"] for run in runs], axis=1, join="inner")
        values = iia.to_numpy(float).T  # (runs, cells)
        low, high = t_interval(values) if len(runs) > 1 else np.full((2, len(iia)), np.nan)
        baseline = np.mean([run["baseline"].loc[iia.index] for run in runs], axis=0)
        cells = iia.index.to_frame(index=False).assign(mean=values.mean(axis=0), low=low, high=high)
        cells.insert(0, "label", label)
        parts.append(cells.assign(baseline=baseline, n=len(runs), **plots.seeds_of(group)))
    return pd.concat(parts, ignore_index=True)
