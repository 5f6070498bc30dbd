"""ParityNegation: a marker of negation at the beginning or, of odd sentences, at the end."""

language = "parity_negation"
