"""Our model and that of transformers, with the same weights."""

import dataclasses

import torch
import transformers

from impossible.hub.export import transformers_config, transformers_weights
from model import GPT, GPTConfig

SHAPE = {"vocab_size": 130, "block_size": 24, "n_layer": 3, "n_head": 4, "n_embd": 32}


def pair(scaled: bool, dropout: float = 0.0) -> tuple[GPT, transformers.GPT2LMHeadModel]:
    """Our model, away from its initial values, and transformers' with the same weights."""
    torch.manual_seed(0)
    ours = GPT(GPTConfig(**SHAPE, dropout=dropout, scale_attn_by_inverse_layer_idx=scaled))
    for parameter in ours.parameters():
        parameter.data.add_(torch.randn_like(parameter), alpha=0.2)
    ours.transformer.wte.weight.data[SHAPE["vocab_size"] :] = 0.0
    return ours, theirs_of(ours)


def theirs_of(ours: GPT) -> transformers.GPT2LMHeadModel:
    """transformers' model with the same weights, which computes the attention scale itself."""
    scaled = ours.config.scale_attn_by_inverse_layer_idx
    config = dataclasses.replace(ours.config, scale_attn_by_inverse_layer_idx=False)
    unscaled = GPT(config)  # else the scale would be in the weights
    unscaled.load_state_dict(ours.state_dict())
    theirs = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            **transformers_config(config, {}) | {"scale_attn_by_inverse_layer_idx": scaled},
            attn_implementation="eager",  # the one that has always known the scale
        )
    )
    report = theirs.load_state_dict(transformers_weights(unscaled), strict=False)
    assert report.missing_keys == ["lm_head.weight"]  # tied
    assert report.unexpected_keys == []
    return theirs


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    """The largest difference, relative to the largest value."""
    return ((a - b).abs().max() / b.abs().max()).item()
