"""FullReverse: a marker at a random place, then the whole sentence reversed, marker included."""

language = "full_reverse"
