"""DeterministicShuffle(s=84): all sentences of one length shuffled alike."""

language = "deterministic_shuffle_s84"
