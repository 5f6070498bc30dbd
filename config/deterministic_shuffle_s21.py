"""DeterministicShuffle(s=21): one random order for all sentences of the same length."""

language = "deterministic_shuffle_s21"
