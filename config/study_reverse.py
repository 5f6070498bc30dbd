"""NoReverse, PartialReverse and FullReverse with the five published seeds, at full size."""

languages = ["no_reverse", "partial_reverse", "full_reverse"]
seeds = [0, 14, 41, 53, 96]
vary_data = True
study_dir = "out/study_reverse"
