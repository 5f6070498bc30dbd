"""DeterministicShuffle(s=57): one random order for all sentences of the same length."""

language = "deterministic_shuffle_s57"
