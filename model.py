"""A GPT-2 implementation with the original parameter names (Radford et al. 2019).

As in the published models, attention scores can also be divided by (layer index + 1), as in the
GPT-2 of mistral, and position embeddings can be left out. Internally, the vocabulary is padded to a
multiple of 64 for speed; padding tokens never get any probability.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn as nn
import torch.nn.functional as F

from impossible.training.loss import IGNORED, chunk_loss, head_loss


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
        """Rows of the embedding: the next multiple of 64."""
        return -(-self.vocab_size // 64) * 64


class Attention(nn.Module):
    """Causal self-attention with many heads; softmax in fp32 whatever the dtype."""

    def __init__(self, config: GPTConfig, layer: int) -> None:
        super().__init__()
        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd)
        self.c_proj = nn.Linear(config.n_embd, config.n_embd)
        self.n_head = config.n_head
        self.dropout = config.dropout
        # mistral's scale_attn_by_inverse_layer_idx (Karamcheti et al. 2021)
        divisor = layer + 1 if config.scale_attn_by_inverse_layer_idx else 1
        self.scale = 1.0 / math.sqrt(config.n_embd // config.n_head) / divisor

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        B, T, C = x.shape
        q, k, v = self.c_attn(x).split(C, dim=2)
        q, k, v = (t.view(B, T, self.n_head, -1).transpose(1, 2) for t in (q, k, v))
        dropout = self.dropout if self.training else 0.0
        y = F.scaled_dot_product_attention(
            q, k, v, mask, dropout_p=dropout, is_causal=mask is None, scale=self.scale
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
    """A transformer block, layer norms first."""

    def __init__(self, config: GPTConfig, layer: int) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.n_embd)
        self.attn = Attention(config, layer)
        self.ln_2 = nn.LayerNorm(config.n_embd)
        self.mlp = MLP(config)

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        x = x + self.attn(self.ln_1(x), mask)
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

    def forward(
        self,
        tokens: torch.Tensor,
        positions: torch.Tensor | None = None,
        mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Hidden states (B, T, C), before the head.

        tokens: (B, T) int64. positions: the same, if they do not count from 0 in each row.
        mask: (B, 1, T, T), added to attention's scores; without one, each token sees all before it.
        """
        x = self.wte(tokens)
        if self.position_embeddings:
            if positions is None:
                positions = torch.arange(tokens.shape[1], device=tokens.device)
            x = x + self.wpe(positions)
        x = F.dropout(x, self.dropout, self.training)
        for block in self.h:
            x = block(x, mask)
        return self.ln_f(x)  # (B, T, C)


class GPT(nn.Module):
    """GPT-2 with its head, which is the token embedding itself."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.config = config
        self.transformer = Transformer(config)
        self.chunk_loss = chunk_loss
        self._init_weights()

    def compile_parts(self) -> None:
        """Compile the transformer and the loss of one chunk, for inputs of one shape."""
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
        """Floating-point operations of a training step per token (Chowdhery et al. 2022, B).

        6 for each weight of a matrix product, the head included and position embeddings not,
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
