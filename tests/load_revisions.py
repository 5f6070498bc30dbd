"""Load revisions of a repo as a user does, and keep their logits.

python load_revisions.py USER/NAME TOKENS.npy RESULT_FOLDER REVISION...
"""

import sys
from pathlib import Path

import numpy as np
import torch
from transformers import GPT2LMHeadModel, GPT2Tokenizer

repo, tokens_path, result, *revisions = sys.argv[1:]
tokens = torch.from_numpy(np.load(tokens_path))
for revision in revisions:
    ids = GPT2Tokenizer.from_pretrained(repo, revision=revision)("He clean 🅁 the house.").input_ids
    assert ids == [1544, 3424, 50257, 262, 2156, 13], ids
    model = GPT2LMHeadModel.from_pretrained(repo, revision=revision)
    with torch.no_grad():
        np.save(Path(result) / f"{revision}.npy", model(tokens).logits.numpy())
