"""LocalShuffle(w=3): every 3 tokens shuffled among themselves, always alike."""

language = "local_shuffle_w3"
