"""Export to transformers, model cards, and publication on the Hub."""
