"""SwitchIndices: the first and the fourth token trade places."""

language = "switch_indices"
