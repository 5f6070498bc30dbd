"""LocalShuffle(w=10): every 10 tokens shuffled, always in the same order."""

language = "local_shuffle_w10"
