"""Load an export in the installed version of transformers, and write its token ids and logits.

python load_export.py EXPORT TEXTS.json TOKENS.npy RESULT_FOLDER
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
import transformers

export, texts_path, tokens_path, result = map(Path, sys.argv[1:])
texts = json.loads(texts_path.read_text(encoding="utf-8"))
ids = {}
for name in ("GPT2Tokenizer", "GPT2TokenizerFast", "AutoTokenizer"):
    loaded = getattr(transformers, name).from_pretrained(export)
    ids[name] = [loaded(text).input_ids for text in texts]
(result / "ids.json").write_text(json.dumps(ids))
tokens = torch.from_numpy(np.load(tokens_path))
for attention in ("sdpa", "eager"):
    model, report = transformers.GPT2LMHeadModel.from_pretrained(
        export, attn_implementation=attention, output_loading_info=True
    )
    assert not any(report.values()), report
    with torch.no_grad():
        np.save(result / f"{attention}.npy", model.float().eval()(tokens).logits.numpy())
print(transformers.__version__)
