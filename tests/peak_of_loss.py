"""The peak memory in GB of the compiled head and loss, forward and backward: ROWS WIDTH."""

import resource
import sys

import torch

from model import chunk_loss, head_loss

VOCABULARY = 50304


def main(rows: int, width: int) -> None:
    torch.manual_seed(0)
    hidden = torch.randn(rows, width, requires_grad=True)
    weight = torch.randn(VOCABULARY, width, requires_grad=True)
    targets = torch.randint(VOCABULARY, (rows,))
    of_chunk = torch.compile(chunk_loss, dynamic=False)
    for _ in range(3):
        with torch.autocast("cpu", torch.bfloat16):
            loss = head_loss(hidden, weight, targets, VOCABULARY, of_chunk)
        loss.backward()
        hidden.grad = weight.grad = None
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
