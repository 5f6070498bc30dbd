"""PartialReverse as published: a marker at a random place, everything after it reversed."""

language = "partial_reverse"
