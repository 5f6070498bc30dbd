"""The head of the model and its loss in one function, without storing all logits.

The logits of a micro-batch over 50,000 words are the largest tensors of a training step, and
most of the time outside matrix products is spent on passes over them. Here, logits and their
gradient are computed together for a chunk of rows at a time, so no tensor of that size is kept.
"""

from typing import Any

import torch
import torch.nn.functional as F

IGNORED = -100  # a target that counts for nothing
# Rows whose logits exist at one time: this many, or twice the width of a wider model, so that
# going over the chunk's logits outweighs adding to the gradient of the weights.
MIN_CHUNK_ROWS = 256
_SCORED_ROWS = 512  # the same where nothing but the losses is wanted


def head_loss(
    hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, vocab_size: int
) -> torch.Tensor:
    """The mean cross-entropy of a linear head over all targets that are not IGNORED, in nats.

    hidden: (N, C). weight: (V, C), of which only the first vocab_size rows are words.
    targets: (N,) int64, IGNORED where none. Same value and gradients as F.cross_entropy on
    the logits in fp32. Raises nothing; without a single target the loss is NaN.
    """
    dtype = hidden.dtype
    if torch.is_autocast_enabled(hidden.device.type):
        dtype = torch.get_autocast_dtype(hidden.device.type)
    # Asked here: inside the function gradients always count as off.
    needs_gradient = torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad)
    return _HeadLoss.apply(hidden, weight, targets, vocab_size, dtype, needs_gradient)


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
    ) -> torch.Tensor:
        chunk_rows = max(MIN_CHUNK_ROWS, 2 * weight.shape[1])
        words = weight.to(dtype)
        total = hidden.new_zeros(())
        hidden_grads = []
        weight_grad = torch.zeros_like(weight) if needs_gradient else None
        for rows, labels in zip(hidden.split(chunk_rows), targets.split(chunk_rows), strict=True):
            rows = rows.to(dtype)
            logits = (rows @ words.T).float()  # (n, V)
            logits[:, vocab_size:] = -torch.inf
            counts = labels != IGNORED
            picked = labels.clamp(min=0).unsqueeze(1)  # (n, 1)
            normalizer = logits.logsumexp(1, keepdim=True)
            total += ((normalizer - logits.gather(1, picked)).squeeze(1) * counts).sum()
            if needs_gradient:
                # Not yet divided by the number of targets: fp16 would lose small ones.
                gradient = _minus_one_hot(logits.sub_(normalizer).exp_(), picked)
                gradient = gradient.mul_(counts.unsqueeze(1)).to(dtype)
                hidden_grads.append(gradient @ words)
                if dtype == weight_grad.dtype:
                    weight_grad.addmm_(gradient.T, rows)
                else:
                    weight_grad += gradient.T @ rows
        count = (targets != IGNORED).sum()
        if needs_gradient:
            ctx.save_for_backward(torch.cat(hidden_grads), weight_grad, count)
        return total / count

    @staticmethod
    def backward(ctx: Any, grad_output: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        hidden_grad, weight_grad, count = ctx.saved_tensors
        scale = grad_output / count
        return hidden_grad.to(scale.dtype) * scale, weight_grad * scale, None, None, None, None


def token_losses(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """The cross-entropy of each row in nats, (N,) float32, computed in chunks of rows.

    hidden: (N, C). weight: (V, C). targets: (N,) int64.
    """
    parts = zip(hidden.split(_SCORED_ROWS), targets.split(_SCORED_ROWS), strict=True)
    return torch.cat([F.cross_entropy(_logits(x, weight), y, reduction="none") for x, y in parts])


def _logits(rows: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """rows (n, C) times weight (V, C): (n, V).

    On a CPU, this is computed as an equivalent 1-point convolution. With two or more threads, torch
    runs the convolution in oneDNN but an fp32 matrix product in MKL, which takes 1.6 times as long
    on an AMD EPYC.
    """
    if not (weight.is_cpu and torch.backends.mkldnn.is_available()):
        return rows @ weight.T
    image = rows[None, :, None].permute(0, 3, 1, 2)  # (1, C, n, 1), channels last
    return F.conv2d(image, weight[:, :, None, None])[0, :, :, 0].T


def _minus_one_hot(values: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """values (n, V) less 1 at one place of each row; places (n, 1). May change `values`."""
    if torch.compiler.is_compiling():  # fused with its neighbours; a scatter is not
        return values - (torch.arange(values.shape[1], device=values.device) == places).float()
    return values.scatter_add_(1, places, -torch.ones_like(places, dtype=values.dtype))
