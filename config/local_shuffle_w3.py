"""LocalShuffle(w=3): each window of 3 tokens shuffled, always in the same order."""

language = "local_shuffle_w3"
