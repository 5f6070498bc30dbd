"""Our model beside transformers', with the same weights."""

import torch
import transformers

from impossible.hub.export import transformers_config, transformers_weights
from model import GPT, GPTConfig

SHAPE = {"vocab_size": 130, "block_size": 24, "n_layer": 3, "n_head": 4, "n_embd": 32}


def pair(scaled: bool, dropout: float = 0.0) -> tuple[GPT, transformers.GPT2LMHeadModel]:
    """Our model, away from its initial values, and transformers' with the same weights.

    transformers computes the attention scale itself here, so that ours is compared with it.
    """
    torch.manual_seed(0)
    ours = GPT(GPTConfig(**SHAPE, dropout=dropout, scale_attn_by_inverse_layer_idx=False))
    for parameter in ours.parameters():
        parameter.data.add_(torch.randn_like(parameter), alpha=0.2)
    ours.transformer.wte.weight.data[SHAPE["vocab_size"] :] = 0.0
    config = transformers.GPT2Config(
        **transformers_config(ours.config) | {"scale_attn_by_inverse_layer_idx": scaled}
    )
    config._attn_implementation = "eager"  # the one that has always known the scale
    theirs = transformers.GPT2LMHeadModel(config)
    report = theirs.load_state_dict(transformers_weights(ours), strict=False)
    assert report.missing_keys == ["lm_head.weight"]  # tied
    assert report.unexpected_keys == []
    scaled_config = GPTConfig(**SHAPE, dropout=dropout, scale_attn_by_inverse_layer_idx=scaled)
    ours_scaled = GPT(scaled_config)
    ours_scaled.load_state_dict(ours.state_dict())
    return ours_scaled, theirs


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    """The largest difference, relative to the largest value."""
    return ((a - b).abs().max() / b.abs().max()).item()
