"""Continue a prompt with checkpoints of a run, exported models, or revisions on the Hub.

    python sample.py                                            # the last of out/partial_reverse
    python sample.py config/demo_partial_reverse.py --checkpoint=all --prompt="The people"
    python sample.py --checkpoint=500,3000 --samples=3 --temperature=0.8 --top_k=50 --seed=1
    python sample.py --undo                                     # also undo the perturbation
    python sample.py --model=USER/NAME --checkpoint=checkpoint-500

Prints the continuations of the checkpoints one below the other. Write the prompt in the language of
the model: a marker (🅁) in it is read as a marker token.
"""

import numpy as np
import torch
import torch.nn.functional as F

import perturb
from impossible import checkpoint, distributed
from impossible.evaluation import models
from impossible.evaluation.rows import sentence
from impossible.evaluation.scoring import Scorer
from impossible.settings import Settings, UserError, run_command
from impossible.text.tokenizer import Tokenizer
from perturb import Language, NoWayBack


def main(settings: Settings) -> None:
    """Print continuations of the prompt by each of the chosen models."""
    language = perturb.get(settings.language)
    text = sentence(settings.prompt, "prompt", "sample.py", may_begin_with_space=True)
    if text != settings.prompt:
        print(f"the prompt is read with single spaces and none at its end: {text!r}")
    text = language.space + text.removeprefix(language.space) if text else ""
    device = distributed.pick_device(settings.device, distributed.World())
    names = models.checkpoints(settings.checkpoint)
    for series in models.find(settings, [] if names == ["all"] else names):
        tokenizer = series.tokenizer(language.markers)
        prompt = tokenizer.encode_with_markers(text) if text else [tokenizer.end_of_text]
        for model in series.models if names else series.models[-1:]:
            scorer = model.load(device)
            require_fitting(scorer, len(prompt), tokenizer.vocab_size, settings, model.name)
            print(f"{series.title}, {model.name}:")
            torch.manual_seed(settings.seed)
            for _ in range(settings.samples):
                tokens = generate(scorer, prompt, tokenizer.end_of_text, settings)
                tokens = tokens if text else tokens[1:]
                print(f"  {tokenizer.decode(tokens)!r}", flush=True)
                if settings.undo:
                    print(f"  undone: {undone(tokens, language, tokenizer)}", flush=True)


def require_fitting(
    scorer: Scorer, length: int, vocab_size: int, settings: Settings, name: str
) -> None:
    """Raise UserError if the vocabulary differs, or if prompt and new tokens are too long."""
    if len(scorer.head) != vocab_size:
        raise UserError(
            f"{name} has a vocabulary of {len(scorer.head):,} tokens, but {settings.language} "
            f"has {vocab_size:,}. Set --language= to the language of the model."
        )
    if length + settings.new_tokens > scorer.context:
        raise UserError(
            f"{name} reads at most {scorer.context} tokens; the prompt has {length}, and "
            f"new_tokens = {settings.new_tokens}. Set a smaller --new_tokens= or shorter --prompt="
        )


@torch.inference_mode()
def generate(scorer: Scorer, prompt: list[int], end_of_text: int, settings: Settings) -> list[int]:
    """The token ids of the prompt and its continuation, which stops before an end-of-text token."""
    tokens = list(prompt)
    for _ in range(settings.new_tokens):
        hidden = scorer.body(torch.tensor([tokens], device=scorer.device))  # (1, T, C)
        token = pick(F.linear(hidden[0, -1], scorer.head), settings)
        if token == end_of_text:
            break
        tokens.append(token)
    return tokens


def undone(tokens: list[int], language: Language, tokenizer: Tokenizer) -> str:
    """The original sentence of generated tokens, or the reason why there is none."""
    try:
        original = language.undo(np.array(tokens), tokenizer.ids)
    except NoWayBack as reason:
        return f"not possible ({reason})"
    return repr(tokenizer.decode(original.tolist()))


def pick(logits: torch.Tensor, settings: Settings) -> int:
    """The next token, sampled from logits (V,) with temperature and top_k."""
    if settings.temperature == 0:
        return int(logits.argmax())
    if 0 < settings.top_k < len(logits):
        least = logits.topk(settings.top_k).values[-1]
        logits = logits.masked_fill(logits < least, -torch.inf)
    probabilities = F.softmax(logits.float() / settings.temperature, dim=0).cpu()
    return int(torch.multinomial(probabilities, 1))


if __name__ == "__main__":
    run_command("sample.py", main, __doc__, checkpoint.settings_of_run)
