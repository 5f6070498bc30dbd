"""PhraseHop: a singular or plural marker after the phrase that follows each verb."""

language = "phrase_hop"
