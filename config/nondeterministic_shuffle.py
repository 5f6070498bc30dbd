"""NondeterministicShuffle: the tokens of every sentence shuffled anew."""

language = "nondeterministic_shuffle"
