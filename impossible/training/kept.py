"""The steps of a run that have a checkpoint, as a function of its settings and its data."""

from collections.abc import Mapping
from typing import Any

from impossible.errors import UserError

# Words after which the BabyLM challenge (2026) looks at a model: 1M to 10M, 20M to 100M, and
# 200M to 1,000M.
WORDS = tuple(
    millions * 10**6 for millions in (*range(1, 11), *range(20, 101, 10), *range(200, 1001, 100))
)


def kept_steps(settings: Mapping[str, Any], data: Mapping[str, Any]) -> dict[int, list[str]]:
    """The steps with a checkpoint, in order, and the names that BabyLM's tools have for each.

    settings: those of train.py. data: meta.json. Raises UserError if the data do not say how many
    words they have, and the settings ask for checkpoints by words.
    """
    interval, last = settings["checkpoint_interval"], settings["max_steps"]
    extra = settings.get("extra_checkpoints", "")
    steps: dict[int, list[str]] = {step: [] for step in (*range(interval, last, interval), last)}
    if extra == "babylm":
        for words, step in _steps_of_words(settings, data).items():
            if step <= last:
                steps.setdefault(step, []).append(f"chck_{words // 10**6}M")
    elif extra == "log2":
        powers = (1 << n for n in range(interval.bit_length()))
        steps |= {step: [] for step in (0, *powers) if step <= last}
    elif extra:
        steps |= {int(step): [] for step in extra.split(",")}
    return dict(sorted(steps.items()))


def words_beyond(settings: Mapping[str, Any], data: Mapping[str, Any]) -> list[int]:
    """The numbers of words that `babylm` asks for and the run is too short to see."""
    if settings["extra_checkpoints"] != "babylm":
        return []
    found = _steps_of_words(settings, data)
    return [words for words, step in found.items() if step > settings["max_steps"]]


def _steps_of_words(settings: Mapping[str, Any], data: Mapping[str, Any]) -> dict[int, int]:
    """The first step after which so many words have been seen; a word seen again counts again."""
    train = data["splits"]["train"]
    if not train.get("words"):
        raise UserError(
            "extra_checkpoints = 'babylm' needs the number of words in the training data, and the "
            "meta.json of these data does not contain it. Delete the data, and prepare them again."
        )
    seen = settings["tokens_per_step"] * train["words"]  # in a step, times the tokens of train
    return {words: -(-words * train["tokens"] // seen) for words in WORDS}
