"""NoHop, the control of the *Hop family: a marker of number directly after each verb."""

language = "no_hop"
