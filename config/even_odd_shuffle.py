"""EvenOddShuffle: the tokens at even places, then those at odd ones."""

language = "even_odd_shuffle"
