"""TokenHop: a marker of number 4 tokens after each verb."""

language = "token_hop"
