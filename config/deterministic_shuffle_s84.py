"""DeterministicShuffle(s=84): one random order for all sentences of the same length."""

language = "deterministic_shuffle_s84"
