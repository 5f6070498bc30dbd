"""LocalShuffle(w=5): every 5 tokens shuffled among themselves, always alike."""

language = "local_shuffle_w5"
