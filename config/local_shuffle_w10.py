"""LocalShuffle(w=10): every 10 tokens shuffled among themselves, always alike."""

language = "local_shuffle_w10"
