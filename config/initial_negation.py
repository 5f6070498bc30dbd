"""InitialNegation: a marker of negation at the beginning of each sentence."""

language = "initial_negation"
