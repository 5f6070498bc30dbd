"""LocalShuffle(w=3): every 3 tokens shuffled, always in the same order."""

language = "local_shuffle_w3"
