"""WordHop: a marker of number 4 words after each verb."""

language = "word_hop"
