"""The published rules, sentence by sentence, with transformers' own tokenizer.

Nothing here is vectorised or shared with the code under test: this is what it must equal.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import transformers

END_OF_TEXT = 50256
MARKER = 50257


def gpt2_tokenizer(folder: Path) -> transformers.GPT2Tokenizer:
    """GPT-2's tokenizer, without any marker, from GPT-2's two files."""
    return transformers.GPT2Tokenizer.from_pretrained(folder)


def no_reverse(tokens: list[int], rng: np.random.Generator) -> list[int]:
    place = rng.choice(len(tokens) + 1)
    return tokens[:place] + [MARKER] + tokens[place:]


def partial_reverse(tokens: list[int], rng: np.random.Generator) -> list[int]:
    place = rng.choice(len(tokens) + 1)
    return tokens[:place] + [MARKER] + tokens[place:][::-1]


def full_reverse(tokens: list[int], rng: np.random.Generator) -> list[int]:
    place = rng.choice(len(tokens) + 1)
    return (tokens[:place] + [MARKER] + tokens[place:])[::-1]


def no_shuffle(tokens: list[int], rng: np.random.Generator) -> list[int]:
    return tokens


def nondeterministic_shuffle(tokens: list[int], rng: np.random.Generator) -> list[int]:
    shuffled = list(tokens)
    rng.shuffle(shuffled)
    return shuffled


def deterministic_shuffle(seed: int) -> Callable[..., list[int]]:
    return lambda tokens, rng: nondeterministic_shuffle(tokens, np.random.default_rng(seed))


def local_shuffle(window: int) -> Callable[..., list[int]]:
    def shuffled(tokens: list[int], rng: np.random.Generator) -> list[int]:
        result = []
        for start in range(0, len(tokens), window):
            run = tokens[start : start + window]
            result += nondeterministic_shuffle(run, np.random.default_rng(0))
        return result

    return shuffled


def even_odd_shuffle(tokens: list[int], rng: np.random.Generator) -> list[int]:
    return tokens[::2] + tokens[1::2]


def neighbours(tokens: list[int], rng: np.random.Generator) -> list[int]:
    pairs = [tokens[i : i + 2] for i in range(0, len(tokens), 2)]
    return [token for pair in pairs for token in reversed(pair)]


def switch_indices(tokens: list[int], rng: np.random.Generator) -> list[int]:
    if len(tokens) < 4:
        return tokens
    first, second, third, fourth, *others = tokens
    return [fourth, second, third, first, *others]


def reverse(tokens: list[int], rng: np.random.Generator) -> list[int]:
    return tokens[::-1]


def initial_negation(tokens: list[int], rng: np.random.Generator) -> list[int]:
    return [MARKER, *tokens]


def parity_negation(tokens: list[int], rng: np.random.Generator) -> list[int]:
    return [MARKER, *tokens] if len(tokens) % 2 == 0 else [*tokens, MARKER]


LANGUAGES = {
    "no_reverse": (no_reverse, 21),
    "partial_reverse": (partial_reverse, 21),
    "full_reverse": (full_reverse, 21),
    "no_shuffle": (no_shuffle, 0),
    "nondeterministic_shuffle": (nondeterministic_shuffle, 0),
    "deterministic_shuffle_s21": (deterministic_shuffle(21), 0),
    "deterministic_shuffle_s57": (deterministic_shuffle(57), 0),
    "deterministic_shuffle_s84": (deterministic_shuffle(84), 0),
    "local_shuffle_w3": (local_shuffle(3), 0),
    "local_shuffle_w5": (local_shuffle(5), 0),
    "local_shuffle_w10": (local_shuffle(10), 0),
    "even_odd_shuffle": (even_odd_shuffle, 0),
    "local_shuffle_w2": (neighbours, 0),
    "switch_indices": (switch_indices, 0),
    "reverse": (reverse, 0),
    "initial_negation": (initial_negation, 0),
    "parity_negation": (parity_negation, 0),
}


def perturb(name: str, sentences: list[list[int]]) -> list[list[int]]:
    """Sentences in a language; those that the published rules drop are dropped."""
    function, seed = LANGUAGES[name]
    rng = np.random.default_rng(seed)
    perturbed = [function(tokens, rng) for tokens in sentences]
    kept = [tokens for tokens in perturbed if len([t for t in tokens if t != MARKER]) > 1]
    if name.endswith(("_reverse", "_negation")):
        return kept
    return [tokens for tokens in kept if 2 <= len(tokens) <= 350]


def words(tokens: list[int], bytes_of: Callable[[int], bytes]) -> list[list[int]]:
    """The words of a sentence that is encoded after a space, as lists of tokens."""
    found: list[list[int]] = []
    for token in tokens:
        if bytes_of(token).startswith(b" "):
            found.append([])
        found[-1].append(token)
    return found


def perturb_words(name: str, sentences: list[list[list[int]]]) -> list[list[int]]:
    """The tokens of sentences whose words move, by the rule for tokens; none is dropped."""
    function, seed = LANGUAGES[name.removesuffix("_words")]
    rng, perturbed = np.random.default_rng(seed), []
    for of_sentence in sentences:
        order = function(list(range(len(of_sentence))), rng)
        tokens: list[int] = []
        for word in order:
            tokens += [MARKER] if word == MARKER else of_sentence[word]
        perturbed.append(tokens)
    return perturbed


def split(name: str, sentences: list[list[int]], data_seed: int | None) -> np.ndarray:
    """All tokens of a split, as they must stand in its token file."""
    kept = perturb(name, sentences)
    if data_seed is not None:
        np.random.default_rng(data_seed).shuffle(kept)
    return np.array([t for tokens in kept for t in [*tokens, END_OF_TEXT]], np.uint16)


def read_lines(paths: list[Path]) -> list[str]:
    """The lines of files, stripped, without blank ones."""
    texts = [path.read_text(encoding="utf-8") for path in sorted(paths)]
    return [line.strip() for text in texts for line in text.split("\n") if line.strip()]
