"""DeterministicShuffle(s=57): all sentences of one length shuffled alike."""

language = "deterministic_shuffle_s57"
