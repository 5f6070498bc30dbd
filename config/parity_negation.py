"""ParityNegation: a marker of negation at the beginning, or at the end if the length is odd."""

language = "parity_negation"
