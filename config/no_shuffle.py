"""NoShuffle, the control of the *Shuffle family: sentences as they are."""

language = "no_shuffle"
