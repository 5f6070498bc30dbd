"""Reverse: the tokens in reversed order, without a marker."""

language = "reverse"
