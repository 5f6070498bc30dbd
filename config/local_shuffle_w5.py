"""LocalShuffle(w=5): each window of 5 tokens shuffled, always in the same order."""

language = "local_shuffle_w5"
