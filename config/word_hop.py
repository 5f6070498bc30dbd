"""WordHop: a singular or plural marker 4 words after each verb."""

language = "word_hop"
