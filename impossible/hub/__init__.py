"""Exports to transformers, their model cards, and publishing them."""
