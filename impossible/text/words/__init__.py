"""Annotated words: which of a sentence's words are verbs, for the *Hop languages."""
