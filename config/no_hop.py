"""NoHop, the control of the *Hop family: a singular or plural marker directly after each verb."""

language = "no_hop"
