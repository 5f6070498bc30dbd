"""The head of the model and its loss in one function, without storing all logits.

The logits of a micro-batch over 50,000 words are the largest tensors of a training step, and
most of the time outside matrix products is spent on passes over them. Here, logits and their
gradient are computed together for a chunk of rows at a time, so no tensor of that size is kept.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

IGNORED = -100  # a target that counts for nothing
# Rows whose logits exist at one time: at most this many, or twice the width of a wider model,
# so that going over the chunk's logits outweighs adding to the gradient of the weights.
MIN_CHUNK_ROWS = 256
_SCORED_ROWS = 512  # the same where nothing but the losses is wanted
# The loss of a chunk, and the gradient of its logits: see `chunk_loss`.
ChunkLoss = Callable[..., tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]]


def chunk_loss(
    rows: torch.Tensor,
    words: torch.Tensor,
    targets: torch.Tensor,
    vocab_size: int,
    needs_gradient: bool,
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
    """The summed loss of some rows, and the gradient of their logits.

    rows: (n, C) and words: (V, C), in one dtype. targets: (n,) int64, IGNORED where none. Returns
    the sum, the gradient (n, V) except at the targets, and that at the targets (n,), both in the
    dtype of rows. This is what torch.compile sees: the loop over chunks stays out of its graph, or
    else it would keep the gradients of all chunks in memory.
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
    # Not yet divided by the number of targets: fp16 would lose small ones.
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

    hidden: (N, C). weight: (V, C), of which only the first vocab_size rows are words.
    targets: (N,) int64, IGNORED where none. of_chunk: chunk_loss, or the same compiled. Same value
    and gradients as F.cross_entropy on the logits in fp32. Raises nothing; without a single target
    the loss is NaN.
    """
    dtype = hidden.dtype
    if torch.is_autocast_enabled(hidden.device.type):
        dtype = torch.get_autocast_dtype(hidden.device.type)
    # Asked here: inside the function gradients always count as off.
    needs_gradient = torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad)
    return _HeadLoss.apply(hidden, weight, targets, vocab_size, dtype, needs_gradient, of_chunk)


def chunk_rows(rows: int, width: int) -> int:
    """The rows of a chunk: the largest divisor of all rows within the limit.

    If this is less than half the limit, the chunks are as equal as possible instead, and the last
    one is smaller.
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
    """Add a product of matrices to a matrix in fp32, in place."""
    if left.dtype == total.dtype:
        total.addmm_(left, right)
    elif total.is_cuda:  # in fp32: in fp16, the product might overflow
        torch.addmm(total, left, right, out_dtype=total.dtype, out=total)
    else:
        total += left @ right


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
