"""LocalShuffle(w=5): every 5 tokens shuffled, always in the same order."""

language = "local_shuffle_w5"
