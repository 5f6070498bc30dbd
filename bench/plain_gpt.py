"""GPT-2 the plain way: one logits tensor, F.cross_entropy, everything in one compiled graph.

What nanoGPT and most teaching code do. A contender for the bench, with none of this project's own
loss, padding or scaling of attention.
"""

import torch
import torch.nn as nn
import torch.nn.functional as F

_VOCABULARY, _CONTEXT, _LAYERS, _HEADS, _WIDTH = 50304, 1024, 12, 12, 768  # GPT-2 Small, padded


class _Block(nn.Module):
    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.before_attention, self.before_mlp = nn.LayerNorm(_WIDTH), nn.LayerNorm(_WIDTH)
        self.qkv, self.out = nn.Linear(_WIDTH, 3 * _WIDTH), nn.Linear(_WIDTH, _WIDTH)
        self.mlp = nn.Sequential(
            nn.Linear(_WIDTH, 4 * _WIDTH),
            nn.GELU(),
            nn.Linear(4 * _WIDTH, _WIDTH),
            nn.Dropout(dropout),
        )
        self.dropout = dropout

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        heads = self.qkv(self.before_attention(x)).unflatten(
            2, (3, _HEADS, -1)
        )  # (B, T, 3, nh, hs)
        query, key, value = heads.permute(2, 0, 3, 1, 4)  # each (B, nh, T, hs)
        seen = F.scaled_dot_product_attention(
            query, key, value, dropout_p=self.dropout if self.training else 0.0, is_causal=True
        )
        merged = self.out(seen.transpose(1, 2).flatten(2))
        x = x + F.dropout(merged, self.dropout, self.training)
        return x + self.mlp(self.before_mlp(x))


class PlainGPT(nn.Module):
    """GPT-2 Small whose forward pass is the mean loss."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(_VOCABULARY, _WIDTH), nn.Embedding(_CONTEXT, _WIDTH)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.Sequential(*(_Block(dropout) for _ in range(_LAYERS)))
        self.norm = nn.LayerNorm(_WIDTH)
        self.head = nn.Linear(_WIDTH, _VOCABULARY, bias=False)
        self.head.weight = self.tokens.weight
        for parameter in self.parameters():
            if parameter.dim() == 2:
                nn.init.normal_(parameter, std=0.02)

    def forward(self, batch: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """The mean cross-entropy of targets (B, T) after tokens (B, T), in nats."""
        places = torch.arange(batch.shape[1], device=batch.device)
        x = self.dropout(self.tokens(batch) + self.places(places))
        logits = self.head(self.norm(self.blocks(x)))  # (B, T, V)
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten())
