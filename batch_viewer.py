"""Show the text that a step of training reads, or find the steps that read a text.

    python batch_viewer.py config/partial_reverse.py --step=1200
    python batch_viewer.py config/partial_reverse.py --contains="the red ball"    # as in the data
    python batch_viewer.py --out_dir=out/mine --step=7          # a step of this run

The tokens of a step depend only on the token files, block_size, tokens_per_step and the seed of the
order, not on the batch size, the number of processes or the model. Step N is the update that the
log calls `step N`. If two people get the same SHA-256, their steps N read the same tokens.
"""

import hashlib
import itertools
import re
import sys
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # also where PYTHONSAFEPATH is set

import numpy as np

import perturb
from impossible import checkpoint
from impossible.settings import Settings, UserError, run_command
from impossible.text import token_files
from impossible.text.tokenizer import Tokenizer, open_tokenizer

_CHUNK = 1 << 22  # tokens searched in one go
_MOST = 20  # blocks to print for a text


def main(settings: Settings) -> None:
    """Print the sentences of a step by block, or the steps that read a text."""
    data_dir = Path(settings.data_dir)
    meta = token_files.read_meta(data_dir, settings.language)
    tokenizer = open_tokenizer(data_dir, meta.tokenizer, perturb.get(settings.language).markers)
    require_data_of_run(settings, meta)
    blocks = token_files.open_blocks(data_dir, meta, "train", settings.block_size)
    if settings.contains:
        find(settings.contains, blocks, settings, tokenizer)
    else:
        show(settings.step, blocks, settings, tokenizer)


def require_data_of_run(settings: Settings, meta: token_files.Meta) -> None:
    """Raise UserError if the run in out_dir was trained on other data than data_dir holds."""
    if kept := checkpoint.list_checkpoints(Path(settings.out_dir)):
        read = checkpoint.load(kept[-1]).data["splits"]["train"]["sha256"]
        if read != meta.splits["train"]["sha256"]:
            raise UserError(
                f"the run in {settings.out_dir} read other tokens than those in "
                f"{settings.data_dir} (train.bin of the run: SHA-256 {read[:12]}…). Name the "
                "data of the run with --data_dir=, or another --out_dir="
            )


def blocks_of(step: int, count: int, settings: Settings) -> np.ndarray:
    """Indices of the blocks, out of `count`, that step `step` (from 1) reads: (n,) int64."""
    return token_files.step_blocks(
        count, settings.blocks_per_step, settings.seed_of_order, step - 1
    )


def show(step: int, blocks: np.ndarray, settings: Settings, tokenizer: Tokenizer) -> None:
    """Print the sentences of a step, one a line, and the hash of all its tokens."""
    indices = blocks_of(step, len(blocks), settings)
    tokens = blocks[indices]  # (B, T)
    digest = hashlib.sha256(tokens.astype(token_files.DTYPE).tobytes()).hexdigest()
    print(f"step {step:,}: {tokens.size:,} tokens in {len(tokens)} blocks, SHA-256 {digest}")
    for number, (index, block) in enumerate(zip(indices, tokens, strict=True), 1):
        print(f"\nblock {number} of {len(tokens)} (block {index:,} of train.bin)")
        for sentence in sentences_of(block, tokenizer):
            print(f"  {sentence}")


def sentences_of(block: np.ndarray, tokenizer: Tokenizer) -> Iterator[str]:
    """Yield the sentences of a block (T,) as text; the first and the last may be incomplete."""
    ends = np.flatnonzero(block == tokenizer.end_of_text)
    for part in np.split(block, ends + 1):
        whole = part[:-1] if len(part) and part[-1] == tokenizer.end_of_text else part
        if len(part):
            yield tokenizer.decode(whole) + ("" if len(whole) < len(part) else " …")


def find(text: str, blocks: np.ndarray, settings: Settings, tokenizer: Tokenizer) -> None:
    """Print the blocks of train.bin that contain a text, and the steps that read them."""
    holders = sorted(set(places(text, blocks, tokenizer)))
    steps: dict[int, list[int]] = {block: [] for block in holders}
    for step in range(1, settings.max_steps + 1) if steps else ():
        for block in steps.keys() & blocks_of(step, len(blocks), settings).tolist():
            steps[block].append(step)
    print(f"{text!r} is in {len(steps):,} of {len(blocks):,} blocks of train.bin")
    for block, readers in itertools.islice(steps.items(), _MOST):
        read = f"read in step {', '.join(map(str, readers))}" if readers else "not read in this run"
        print(f"block {block:,}: {read}")
    if len(steps) > _MOST:
        print(f"and {len(steps) - _MOST:,} more blocks: search for a longer text to see them")


def places(text: str, blocks: np.ndarray, tokenizer: Tokenizer) -> Iterator[int]:
    """Yield the index of each block with the text, and of both blocks if it spans two."""
    pattern = "|".join(map(re.escape, tokenizer.markers))
    wanted = (re.sub(rf"\s+({pattern})", r"\1", text) if pattern else text).encode()
    pieces = np.array([tokenizer.bytes_of(i) for i in range(tokenizer.vocab_size)], object)
    lengths = np.array([len(piece) for piece in pieces])
    tokens = blocks.reshape(-1)
    for start in range(0, len(tokens), _CHUNK):
        chunk = tokens[start : start + _CHUNK + len(wanted)]  # a token has a byte at least
        whole, ends = b"".join(pieces[chunk]), np.cumsum(lengths[chunk])
        place = whole.find(wanted)
        while place >= 0:
            last = place + len(wanted) - 1
            for byte in (place, last):
                token = start + int(np.searchsorted(ends, byte, side="right"))
                yield token // blocks.shape[1]
            place = whole.find(wanted, place + 1)


if __name__ == "__main__":
    run_command("batch_viewer.py", main, __doc__, checkpoint.settings_of_run)
