"""DeterministicShuffle(s=21): all sentences of one length shuffled alike."""

language = "deterministic_shuffle_s21"
