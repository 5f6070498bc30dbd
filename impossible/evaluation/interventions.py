"""Whether the subject's number decides the marker of a *Hop language, and where in the model.

Experiment 3 of Kallini et al. 2024, interchange interventions: a model reads a sentence with a
singular subject (the base), and the output of one block at one position is replaced with that of
the same sentence with a plural subject (the source). The accuracy of an interchange (IIA) is the
share of pairs for which the plural marker is then more likely than the singular one.
"""

import dataclasses
import re
import sys
from collections.abc import Iterator

import numpy as np
import pandas as pd
import torch
from pluralizer import Pluralizer

from impossible.distributed import World
from impossible.evaluation import perplexity, scoring
from impossible.evaluation.models import Series
from impossible.evaluation.scores import language_of
from impossible.evaluation.scoring import Scorer, Sequences, sentences_of
from impossible.settings import Settings, UserError
from impossible.text.tokenizer import Tokenizer

CELL = ["step", "layer", "position", "role"]
_ROLES = np.array(["determiner", "subject", "verb", *(f"verb + {i}" for i in range(1, 5))])
_READ = {"no_hop": 3, "token_hop": 7, "word_hop": 7}  # tokens before the marker
_ENOUGH = 50  # pairs


def sequences(settings: Settings, series: Series) -> Sequences:
    """N bases, each with the singular marker, then their N sources, each with the plural marker.

    Raises UserError for a language that experiment 3 does not cover, and if no pair is found.
    """
    language = language_of(settings)
    if language not in _READ:
        raise UserError(f"--interventions works only for {', '.join(_READ)}, not for {language}.")
    no_hop, word_hop = (_all_sentences(name, settings, series) for name in ("no_hop", "word_hop"))
    ids, tokenizer, pluralizer = _sentence_ids(no_hop, word_hop), no_hop.tokenizer, Pluralizer()
    matches = list(_matches(no_hop, word_hop, settings.published_pattern))
    pairs = [(ids[i], base, plural_of(base, tokenizer, pluralizer)) for i, base in matches]
    pairs = [pair for pair in pairs if pair[2]]
    note = f"{len(matches):,} places match; in {len(pairs):,}, singular and plural are equally long"
    if not pairs:
        raise UserError(f"no pair for --interventions: {note}. Prepare a corpus with more text.")
    few = f"warning: fewer than {_ENOUGH} pairs, too few for the accuracies of layers and positions"
    parts = [
        np.array([*pair[side][: _READ[language]], marker])
        for side, marker in enumerate(tokenizer.markers.values(), 1)
        for pair in pairs
    ]
    texts = [(i, tokenizer.decode(base), tokenizer.decode(source)) for i, base, source in pairs]
    about = {name: no_hop.about[name] for name in ("test_corpus", "test_segmenter")}
    return Sequences(
        language,
        tokenizer,
        sentences_of(parts),
        pd.DataFrame(texts, columns=["sentence_id", "singular", "plural"]),
        about | {"pattern": "published" if settings.published_pattern else "corrected"},
        notes=(note, *[few] * (len(pairs) < _ENOUGH)),
        further_losses=_interchanged,
    )


def _all_sentences(language: str, settings: Settings, series: Series) -> Sequences:
    """All test sentences of a language, from a folder beside that of the settings' test data.

    The two names differ only in the language. Raises UserError if the folder is missing.
    """
    folder, own = perplexity.data_dir_of(settings).resolve(), language_of(settings)
    if own not in folder.name:
        raise UserError(
            f"--interventions looks for the data of {language} beside {folder}, in a folder whose "
            f"name has {language} in place of {own}; but {folder.name!r} does not contain {own}. "
            f"Rename the folders (data/{own}, data/{language}), and set --test_data_dir=data/{own}"
        )
    place = str(folder.with_name(folder.name.replace(own, language)))
    of_language = {"test_language": language, "test_data_dir": place}
    wanted = dataclasses.replace(settings, **of_language, sentences_per_genre=sys.maxsize)
    return perplexity.sequences(wanted, series)


def _sentence_ids(no_hop: Sequences, word_hop: Sequences) -> np.ndarray:
    """The names of the sentences, (S,). Raises UserError if the languages' sentences differ."""
    ids, others = perplexity.sentence_ids(no_hop), perplexity.sentence_ids(word_hop)
    corpora = [(s.about["test_corpus"], s.about["test_segmenter"]) for s in (no_hop, word_hop)]
    if not np.array_equal(ids, others) or corpora[0] != corpora[1]:
        raise UserError(
            f"the {len(ids):,} test sentences of no_hop (of {corpora[0]}) are not those of word_hop"
            f" ({len(others):,} of {corpora[1]}). Prepare both from the same annotated corpus."
        )
    return ids


def _matches(
    no_hop: Sequences, word_hop: Sequences, is_published: bool
) -> Iterator[tuple[int, list[int]]]:
    """Yield the number of a sentence and its seven ids at each place that both patterns match.

    The patterns are regular expressions over decimal ids, as published. is_published: match an id
    by [1-9]+, as the published code does, so that no id with a digit 0 matches.
    """
    singular, plural = no_hop.tokenizer.markers.values()
    the = "|".join(str(_id_of(text, no_hop.tokenizer)) for text in ("The", " the"))
    x = " [1-9]+" if is_published else rf" (?!(?:{singular}|{plural})\b)[0-9]+"
    near, far = (f"(?:^| )(?:{the}){x * n} {singular}{x * (6 - n)}" for n in (2, 6))
    for number, parts in enumerate(zip(no_hop.parts, word_hop.parts, strict=True)):
        texts = [" ".join(map(str, part)) for part in parts]
        for places in zip(re.findall(near, texts[0]), re.findall(far, texts[1]), strict=False):
            first, second = (place.replace(f" {singular}", "") for place in places)
            if first == second:
                yield number, [int(token) for token in first.split()]


def _id_of(text: str, tokenizer: Tokenizer) -> int:
    """The id of a text that is one token. Raises UserError if it has several."""
    ids = tokenizer.encode_ordinary(text)
    if len(ids) > 1:
        raise UserError(
            f"--interventions needs a tokenizer in which {text!r} is one token. This "
            f"one splits it into {len(ids)}: train one on more text, or with a larger --vocab_size="
        )
    return ids[0]


def plural_of(ids: list[int], tokenizer: Tokenizer, pluralizer: Pluralizer) -> list[int]:
    """The ids with the second word in the plural; [] if this changes no id or their count."""
    words = tokenizer.decode(ids).split()
    words[1] = pluralizer.pluralize(words[1], 2, False)
    plural = [ids[0], *tokenizer.encode_ordinary(" ".join(words))[1:]]
    return plural if len(plural) == len(ids) and plural != ids else []


@torch.inference_mode()
def _interchanged(scorer: Scorer, sequences: Sequences, world: World) -> np.ndarray:
    """The losses of both markers after each base, (1 + L * T, 2, N), flattened.

    Row 0 has no intervention; the others are sorted by layer and position. Each process computes
    all rows, because there are too few tokens to divide.
    """
    grid = torch.from_numpy(np.stack(sequences.parts).astype(np.int64)).to(scorer.device)
    (base, source), markers = grid[:, :-1].chunk(2), grid[:, -1]  # (N, T) each, and (2 * N,)

    def of_markers(tokens: torch.Tensor) -> torch.Tensor:
        last = scorer.body(tokens)[:, -1]  # (N, C)
        return scoring.token_losses(last.repeat(2, 1), scorer.head, markers).view(2, -1)

    def exchanged(
        block: torch.nn.Module, of_source: torch.Tensor, is_here: torch.Tensor
    ) -> torch.Tensor:
        with block.register_forward_hook(lambda *of: torch.where(is_here, of_source, of[-1])):
            return of_markers(base)

    kept: list[torch.Tensor] = []  # the output of each block for the sources, (N, T, C)
    hooks = [b.register_forward_hook(lambda *of: kept.append(of[-1])) for b in scorer.blocks]
    of_markers(source)
    for hook in hooks:
        hook.remove()
    blocks = zip(scorer.blocks, kept, strict=True)
    places = torch.eye(base.shape[1], dtype=torch.bool, device=scorer.device).unsqueeze(2)
    losses = [exchanged(*block, is_here) for block in blocks for is_here in places]
    return torch.stack([of_markers(base), *losses]).cpu().numpy().ravel()


def table(sequences: Sequences, losses: np.ndarray) -> pd.DataFrame:
    """A row for each layer and position (from 1): mean probabilities of the markers, and IIA."""
    tokens, count = len(sequences.sentences.tokens), len(sequences.sentences.lengths)
    of_markers = losses[tokens - count :].reshape(-1, 2, count // 2)
    shares = (of_markers[:, 1] < of_markers[:, 0]).mean(axis=-1)
    layer, position = np.divmod(np.arange(len(shares) - 1), tokens // count - 1)
    probabilities = np.exp(-of_markers[1:].astype(np.float64)).mean(axis=-1)
    columns = {
        "layer": layer + 1,
        "position": position + 1,
        "role": _ROLES[position],
        "pairs": count // 2,
        "p_singular": probabilities[:, 0],
        "p_plural": probabilities[:, 1],
        "iia": shares[1:],
        "baseline": shares[0],
    }
    return pd.DataFrame(columns)


def cells(sequences: Sequences, losses: np.ndarray) -> pd.DataFrame:
    """The rows to draw: the IIA at each layer and position, without intervals."""
    return table(sequences, losses).rename(columns={"iia": "value"})


def point(sequences: Sequences, losses: np.ndarray) -> pd.DataFrame:
    """The row to draw: the mean over layers of the IIA at the best position, without interval."""
    value = table(sequences, losses).groupby("layer")["iia"].max().mean()
    return pd.DataFrame({"value": [value]})


def result(sequences: Sequences, losses: np.ndarray) -> str:
    """A line to print: the IIA at the best positions, and the share without interventions."""
    (value,), baseline = point(sequences, losses)["value"], table(sequences, losses)["baseline"][0]
    return f"IIA {value:.3f} at the best position ({baseline:.3f} without intervention)"
