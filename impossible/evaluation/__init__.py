"""Evaluation: series of models, scores, tables, pictures."""
