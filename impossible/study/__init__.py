"""Studies: a grid of languages and seeds, from one command."""
