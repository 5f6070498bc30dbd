"""NoReverse, the control of the *Reverse family: a marker at a random place, nothing else."""

language = "no_reverse"
