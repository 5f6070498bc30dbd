"""LocalShuffle(w=10): each window of 10 tokens shuffled, always in the same order."""

language = "local_shuffle_w10"
