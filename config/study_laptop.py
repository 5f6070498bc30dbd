"""Three languages with five seeds each, small enough for two CPU cores and two hours."""

languages = ["no_reverse", "partial_reverse", "full_reverse"]
seeds = [0, 14, 41, 53, 96]
study_dir = "out/study_laptop"

corpus = "sotu"
sotu_years = "1790-2020"
block_size = 128
n_layer = 4
n_head = 4
n_embd = 64
dropout = 0.0
tokenizer = "train"
vocab_size = 8192
tokens_per_step = 1024
batch_size = 8
max_steps = 2000
warmup_steps = 200
learning_rate = 3e-3
checkpoint_interval = 200
extra_checkpoints = "log2"
eval_interval = 200
eval_blocks = 256
log_interval = 10
device = "cpu"
dtype = "bfloat16"
