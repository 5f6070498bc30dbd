"""TokenHop: a singular or plural marker 4 tokens after each verb."""

language = "token_hop"
