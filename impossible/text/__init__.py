"""Text: corpora, sentences, the tokenizer, token files."""
