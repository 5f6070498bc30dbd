"""Reversals of tokens and of words, and shuffles, on speeches: an hour on two CPU cores.

For the same study of Turkish, add --corpus=speeches:tr --study_dir=out/study_speeches_tr
"""

languages = [
    "no_reverse",
    "partial_reverse",
    "full_reverse",
    "no_reverse_words",
    "partial_reverse_words",
    "full_reverse_words",
    "no_shuffle",
    "local_shuffle_w3",
    "nondeterministic_shuffle",
]
seeds = [0, 14, 41, 53, 96]
study_dir = "out/study_speeches"

corpus = "sotu"
sotu_years = "1972-2020"  # about as many bytes as the Turkish speeches
block_size = 128
n_layer = 4
n_head = 4
n_embd = 64
dropout = 0.0
tokenizer = "train"
vocab_size = 4096
tokens_per_step = 512
batch_size = 4
max_steps = 1000
warmup_steps = 100
learning_rate = 3e-3
checkpoint_interval = 200
eval_interval = 200
eval_blocks = 256
log_interval = 10
device = "cpu"
dtype = "float32"
compile = False
