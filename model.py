"""A GPT-2 implementation with the original parameter names (Radford et al. 2019).

It has two options of the published models: to divide attention scores by (layer index + 1), as in
mistral's GPT-2, and to leave position embeddings out. Internally, the vocabulary is padded to a
multiple of 64 for speed; padding tokens never get any probability.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn as nn
import torch.nn.functional as F

IGNORED = -100  # a target that is left out of the loss
# The logits of at most this many rows are in memory at a time (in a model wider than 128: of
# 2 * width rows, because each chunk also adds to the gradient of all weights of the head).
MIN_CHUNK_ROWS = 256
# The type of `chunk_loss`.
ChunkLoss = Callable[..., tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]]


@dataclass(frozen=True)
class GPTConfig:
    """The shape of a GPT-2. The defaults are GPT-2 Small with one marker."""

    vocab_size: int = 50258
    block_size: int = 1024
    n_layer: int = 12
    n_head: int = 12
    n_embd: int = 768
    dropout: float = 0.1
    scale_attn_by_inverse_layer_idx: bool = True
    position_embeddings: bool = True

    @property
    def padded_vocab_size(self) -> int:
        """The number of rows in the token embedding: vocab_size, rounded up to a multiple of 64."""
        return -(-self.vocab_size // 64) * 64


class Attention(nn.Module):
    """Multi-head causal self-attention, with softmax in fp32 whatever the dtype."""

    def __init__(self, config: GPTConfig, layer: int) -> None:
        super().__init__()
        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd)
        self.c_proj = nn.Linear(config.n_embd, config.n_embd)
        self.n_head = config.n_head
        self.dropout = config.dropout
        # mistral's scale_attn_by_inverse_layer_idx (Karamcheti et al. 2021)
        divisor = layer + 1 if config.scale_attn_by_inverse_layer_idx else 1
        self.scale = 1.0 / math.sqrt(config.n_embd // config.n_head) / divisor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        B, T, C = x.shape
        q, k, v = self.c_attn(x).split(C, dim=2)
        q, k, v = (t.view(B, T, self.n_head, -1).transpose(1, 2) for t in (q, k, v))
        dropout = self.dropout if self.training else 0.0
        y = F.scaled_dot_product_attention(
            q, k, v, dropout_p=dropout, is_causal=True, scale=self.scale
        )  # (B, nh, T, hs)
        y = y.transpose(1, 2).reshape(B, T, C)
        return F.dropout(self.c_proj(y), self.dropout, self.training)


class MLP(nn.Module):
    """Two linear layers around GPT-2's tanh-approximated GELU."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.c_fc = nn.Linear(config.n_embd, 4 * config.n_embd)
        self.c_proj = nn.Linear(4 * config.n_embd, config.n_embd)
        self.dropout = config.dropout

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.c_proj(F.gelu(self.c_fc(x), approximate="tanh"))
        return F.dropout(x, self.dropout, self.training)


class Block(nn.Module):
    """A transformer block with layer norms before attention and MLP."""

    def __init__(self, config: GPTConfig, layer: int) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.n_embd)
        self.attn = Attention(config, layer)
        self.ln_2 = nn.LayerNorm(config.n_embd)
        self.mlp = MLP(config)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class Transformer(nn.Module):
    """Embeddings, blocks and the last layer norm: all of GPT-2's parameters."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.wte = nn.Embedding(config.padded_vocab_size, config.n_embd)
        if config.position_embeddings:
            self.wpe = nn.Embedding(config.block_size, config.n_embd)
        self.h = nn.ModuleList(Block(config, layer) for layer in range(config.n_layer))
        self.ln_f = nn.LayerNorm(config.n_embd)
        self.dropout = config.dropout
        self.position_embeddings = config.position_embeddings

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Hidden states (B, T, C) of tokens (B, T) int64, before the head."""
        x = self.wte(tokens)
        if self.position_embeddings:
            x = x + self.wpe(torch.arange(tokens.shape[1], device=tokens.device))
        x = F.dropout(x, self.dropout, self.training)
        for block in self.h:
            x = block(x)
        return self.ln_f(x)  # (B, T, C)


class GPT(nn.Module):
    """GPT-2 with a language-model head that shares the weights of the token embedding."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.config = config
        self.transformer = Transformer(config)
        self.chunk_loss = chunk_loss
        self._init_weights()

    def compile_parts(self) -> None:
        """Compile the transformer and `chunk_loss`, for inputs of one fixed shape."""
        self.transformer.compile(dynamic=False)
        self.chunk_loss = torch.compile(chunk_loss, dynamic=False)

    @torch.no_grad()
    def _init_weights(self) -> None:
        # GPT-2 / mistral: normal 0.02, residual projections 0.02 / sqrt(2 * layers)
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                parameter.zero_()
            elif parameter.dim() == 2:
                residual = name.endswith("c_proj.weight")
                shrink = math.sqrt(2 * self.config.n_layer) if residual else 1.0
                parameter.normal_(0.0, 0.02 / shrink)
        self.transformer.wte.weight[self.config.vocab_size :] = 0.0

    def forward(self, tokens: torch.Tensor, targets: torch.Tensor | None = None) -> torch.Tensor:
        """Logits, or the mean loss if there are targets.

        tokens: (B, T) int64 with T <= block_size. targets: (B, T) int64, IGNORED where none.
        Returns logits (B, T, vocab_size), or the mean cross-entropy in nats over the targets.
        """
        hidden = self.transformer(tokens)
        head = self.transformer.wte.weight  # (padded, C)
        if targets is None:
            return F.linear(hidden, head[: self.config.vocab_size])
        vocab_size = self.config.vocab_size
        return head_loss(hidden.flatten(0, 1), head, targets.flatten(), vocab_size, self.chunk_loss)

    def flops_per_token(self) -> int:
        """Floating-point operations per token in training (Chowdhery et al. 2022, appendix B).

        6 for each weight in a matrix product (including the head, not the position embeddings),
        and 12 * layers * width * context for attention, not halved for causality.
        """
        c = self.config
        positions = c.block_size * c.n_embd if c.position_embeddings else 0
        weights = sum(p.numel() for p in self.parameters()) - positions
        return 6 * weights + 12 * c.n_layer * c.n_embd * c.block_size


def next_tokens(tokens: torch.Tensor) -> torch.Tensor:
    """The targets of blocks (B, T): each token's successor, IGNORED for the last of a block.

    As in the published training (transformers' labels), no block predicts beyond its end.
    """
    targets = torch.full_like(tokens, IGNORED)
    targets[:, :-1] = tokens[:, 1:]
    return targets


# The head and its loss in one function. The logits of a micro-batch over 50,000 tokens are the
# largest tensors of a training step, and most of the time outside matrix products is spent on
# passes over them. Here, logits and their gradient are computed together for a chunk of rows at a
# time, so no tensor of that size is kept.


def chunk_loss(
    rows: torch.Tensor,
    words: torch.Tensor,
    targets: torch.Tensor,
    vocab_size: int,
    needs_gradient: bool,
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
    """The summed loss of some rows, and the gradient of their logits.

    rows: hidden states (n, C). words: embeddings (V, C). targets: (n,) int64, IGNORED where none.
    Returns the sum in nats, the gradient of the logits (n, V) for all tokens but the targets, and
    that for the targets (n,), both in the dtype of rows. Only this function is compiled: a graph
    with the loop over chunks would keep the gradients of all chunks in memory.
    """
    logits = (rows @ words.T).float()  # (n, V)
    logits[:, vocab_size:] = -torch.inf
    counts = (targets != IGNORED).unsqueeze(1)  # (n, 1)
    picked = targets.clamp(min=0).unsqueeze(1)
    normalizer = logits.logsumexp(1, keepdim=True)
    at_targets = logits.gather(1, picked) - normalizer  # the logarithm of their probability
    total = -(at_targets * counts).sum()
    if not needs_gradient:
        return total, None, None
    # Not yet divided by the number of targets: in fp16, small gradients would become 0.
    gradient = logits.sub_(normalizer).exp_().mul_(counts).to(rows.dtype)
    return total, gradient, ((at_targets.exp() - 1) * counts).squeeze(1).to(rows.dtype)


def head_loss(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    targets: torch.Tensor,
    vocab_size: int,
    of_chunk: ChunkLoss = chunk_loss,
) -> torch.Tensor:
    """The mean cross-entropy of a linear head over all targets that are not IGNORED, in nats.

    hidden: (N, C). weight: (V, C), of which only the first vocab_size rows are tokens.
    targets: (N,) int64, IGNORED where none. of_chunk: chunk_loss, compiled or not. The loss
    and its gradients equal those of F.cross_entropy on the logits in fp32; without any target, the
    loss is NaN.
    """
    dtype = hidden.dtype
    if torch.is_autocast_enabled(hidden.device.type):
        dtype = torch.get_autocast_dtype(hidden.device.type)
    # Asked here, because gradients are always off inside _HeadLoss.forward.
    needs_gradient = torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad)
    return _HeadLoss.apply(hidden, weight, targets, vocab_size, dtype, needs_gradient, of_chunk)


def chunk_rows(rows: int, width: int) -> int:
    """The number of rows in a chunk: the largest divisor of `rows` up to a limit.

    If that is less than half the limit, the rows are divided as equally as possible instead, and
    the last chunk is smaller.
    """
    limit = max(MIN_CHUNK_ROWS, 2 * width)
    divisor = max(n for n in range(1, min(rows, limit) + 1) if rows % n == 0)
    return divisor if 2 * divisor >= min(rows, limit) else -(-rows // -(-rows // limit))


class _HeadLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        targets: torch.Tensor,
        vocab_size: int,
        dtype: torch.dtype,
        needs_gradient: bool,
        of_chunk: ChunkLoss,
    ) -> torch.Tensor:
        size = chunk_rows(len(hidden), weight.shape[1])
        words = weight.to(dtype)
        total = hidden.new_zeros(())
        hidden_grad = torch.empty_like(hidden, dtype=dtype) if needs_gradient else None
        weight_grad = torch.zeros_like(weight) if needs_gradient else None
        numbers = torch.arange(size, device=hidden.device)
        for start in range(0, len(hidden), size):
            here = slice(start, start + size)
            rows, labels = hidden[here].to(dtype), targets[here]
            loss, gradient, at_targets = of_chunk(rows, words, labels, vocab_size, needs_gradient)
            total += loss
            if needs_gradient:
                gradient[numbers[: len(rows)], labels.clamp(min=0)] = at_targets
                torch.mm(gradient, words, out=hidden_grad[here])
                _add_product(weight_grad, gradient.T, rows)
        count = (targets != IGNORED).sum()
        if needs_gradient:
            ctx.save_for_backward(hidden_grad, weight_grad, count)
        return total / count

    @staticmethod
    def backward(ctx: Any, grad_output: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        hidden_grad, weight_grad, count = ctx.saved_tensors
        scale = grad_output / count
        return hidden_grad.to(scale.dtype) * scale, weight_grad * scale, *[None] * 5


def _add_product(total: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> None:
    """Add the matrix product of left and right to `total`, which is in fp32, in place."""
    if left.dtype == total.dtype:
        total.addmm_(left, right)
    elif total.is_cuda:  # in fp32: in fp16, the product might overflow
        torch.addmm(total, left, right, out_dtype=total.dtype, out=total)
    else:
        total += left @ right
