"""The demo: PartialReverse on State of the Union addresses, small enough for a laptop."""

language = "partial_reverse"
corpus = "sotu"
tokenizer = "train"
vocab_size = 4096
data_dir = "data/demo_partial_reverse"
out_dir = "out/demo_partial_reverse"
eval_dir = "out/demo_evaluation"

block_size = 128
n_layer = 2
n_head = 4
n_embd = 128
tokens_per_step = 1024
batch_size = 4
max_steps = 250
warmup_steps = 25
learning_rate = 2e-3
checkpoint_interval = 50
eval_interval = 50
eval_blocks = 64
log_interval = 10
dtype = "float32"
compile = False
