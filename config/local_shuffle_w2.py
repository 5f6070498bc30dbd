"""LocalShuffle(w=2): neighbouring tokens trade places."""

language = "local_shuffle_w2"
