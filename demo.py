"""The end of the demo: load the last export with transformers, generate, and sum up the run.

    python demo.py config/demo_partial_reverse.py       # what `make demo` runs last

Needs what prepare.py, train.py and convert_to_hf.py have made for the same config; names the folder
to which evaluate.py wrote.
"""

from pathlib import Path

import numpy as np
import torch

import checkpoint
import configurator
import log
import perturb
import tokens
from configurator import Settings
from errors import UserError
from tokenizer import Tokenizer

_NEW_TOKENS = 20


def main(settings: Settings) -> None:
    """Generate from two prompts and say where everything lies."""
    out_dir = Path(settings.out_dir)
    hf_dir = checkpoint.hf_dir(out_dir)
    exports = [hf_dir / path.stem for path in checkpoint.list_checkpoints(out_dir)]
    if not exports or not exports[-1].is_dir():
        raise UserError(f"no export in {hf_dir}. Type: python convert_to_hf.py")
    print(f"\n{exports[-1]}, loaded with GPT2LMHeadModel and GPT2Tokenizer, continues:")
    for prompt in ("He clean", _corpus_prompt(settings)):
        print(f"  {prompt!r} -> {_generate(exports[-1], prompt)!r}")

    records = log.read(out_dir)
    losses = [(record["step"], record["val_loss"]) for record in records if "val_loss" in record]
    print("\nvalidation loss, nats per token: ", end="")
    print(", ".join(f"{loss:.2f} (step {step})" for step, loss in losses))
    print(
        f"token files:  {settings.data_dir}\n"
        f"checkpoints:  {out_dir} ({len(exports)}, and {log.NAME})\n"
        f"transformers: {hf_dir} ({len(exports)} folders)\n"
        f"perplexities: {settings.eval_dir} (a picture of both languages' curves, and the table)"
    )


def _corpus_prompt(settings: Settings) -> str:
    """The first tokens of the first long sentence of the test split, as text."""
    language = perturb.get(settings.language)
    meta = tokens.read_meta(Path(settings.data_dir))
    test = np.array(tokens.open_blocks(Path(settings.data_dir), meta, "test", 1)[:1000, 0])
    ends = np.flatnonzero(test == meta.eot_token)
    starts = np.append(0, ends[:-1] + 1)
    start = starts[np.argmax(ends - starts >= 10)]
    return Tokenizer(language.markers).decode(test[start : start + 5])


def _generate(folder: Path, prompt: str) -> str:
    import transformers

    transformers.utils.logging.disable_progress_bar()
    tokenizer = transformers.GPT2Tokenizer.from_pretrained(folder)
    model = transformers.GPT2LMHeadModel.from_pretrained(folder)
    inputs = tokenizer(prompt, return_tensors="pt")
    torch.manual_seed(0)
    output = model.generate(
        **inputs, do_sample=True, min_new_tokens=_NEW_TOKENS, max_new_tokens=_NEW_TOKENS
    )
    return tokenizer.decode(output[0])


if __name__ == "__main__":
    configurator.run("demo", main, __doc__, of_run=checkpoint.settings_of_run)
