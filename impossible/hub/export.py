"""Exporting a checkpoint to a folder that transformers can load, and checking the export.

The weights get the names and shapes of transformers; the attention scale is folded into the
queries, and missing position embeddings become zeros. A folder is kept only if transformers finds
every weight in it and computes the same logits as our own model.
"""

import contextlib
import json
import math
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import huggingface_hub
import numpy as np
import torch
from safetensors.torch import save

from impossible import checkpoint, files
from impossible.checkpoint import Checkpoint
from impossible.settings import UserError
from impossible.text import token_files
from impossible.text.tokenizer import (
    END_OF_TEXT,
    TOKENIZER_FILES,
    Tokenizer,
    open_tokenizer,
    write_transformers_files,
)
from model import GPT, GPTConfig

WEIGHTS = "model.safetensors"
# The largest allowed difference of float64 logits, as a share of the largest logit. Correct exports
# of GPT-2 Small gave at most 5e-8 (weights of std 0.02 to 0.3), wrong ones at least 7e-3.
TOLERANCE = 1e-6
_CHECKED_TOKENS = 16
_CHECKED_TEXTS = 1000
_CHECKED: set[tuple[str, ...]] = set()  # hashes of the tokenizer files that passed the check
_TRANSPOSED = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")


def write_folder(loaded: Checkpoint, path: Path, folder: Path) -> float:
    """Write one checkpoint into an empty folder for transformers, and compare both models' logits.

    path: the checkpoint, for messages. Returns the largest difference, as `logit_difference` does.
    Raises UserError if it is above TOLERANCE, or if the export's tokenizer or weights are wrong.
    """
    tokenizer = open_tokenizer(
        path.parent, loaded.data.get("tokenizer", {}), loaded.data["markers"]
    )
    end = dict.fromkeys(("bos_token_id", "eos_token_id"), tokenizer.end_of_text)
    model = checkpoint.build_model(loaded, path)
    data = save(transformers_weights(model), metadata={"format": "pt"})  # for transformers 4.44
    (folder / WEIGHTS).write_bytes(data)
    del data  # as large as the weights
    _write_json(folder / "config.json", transformers_config(model.config, end))
    _write_json(folder / "generation_config.json", end)
    write_transformers_files(folder, tokenizer, model.config.block_size)
    made = tuple(files.sha256(folder / name) for name in TOKENIZER_FILES)
    if made not in _CHECKED:  # they are the same for all checkpoints of a run
        require_same_ids(tokenizer, sample_texts(loaded, tokenizer), folder)
        _CHECKED.add(made)
    difference = logit_difference(our_logits(loaded, path), folder)
    if not difference <= TOLERANCE:  # also when it is NaN
        raise UserError(
            f"{path}: transformers computes other logits than this model (largest difference "
            f"{difference:.3g} of the largest logit, expected at most {TOLERANCE}). No export was "
            "written. Please report this as a bug, with the versions of torch and transformers."
        )
    return difference


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Yield a new folder that replaces `path` when the block ends, or is deleted after an error."""
    temporary = path.with_name(path.name + files.TEMPORARY)
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        yield temporary
        for file in temporary.iterdir():
            files.sync(file)
        if path.exists():
            shutil.rmtree(path)
        os.replace(temporary, path)
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise files.named(error, path)
    files.sync(path.parent)


def hashes(folder: Path) -> dict[str, str]:
    """The SHA-256 of each file of a folder, by name; "" for anything that is not a file."""
    return {p.name: files.sha256(p) if p.is_file() else "" for p in sorted(folder.glob("*"))}


def transformers_weights(model: GPT) -> dict[str, torch.Tensor]:
    """The weights under transformers' names and shapes, without the tied head.

    Linear layers become Conv1D (in, out); the padding of the vocabulary is cut off. The scale
    1 / (layer index + 1) of attention is folded into the queries: some versions of transformers
    ignore the flag for it. A model without position embeddings gets them as zeros.
    """
    c = model.config
    weights = {}
    for name, tensor in model.state_dict().items():
        if name == "transformer.wte.weight":
            tensor = tensor[: c.vocab_size]
        if ".attn.c_attn." in name and c.scale_attn_by_inverse_layer_idx:
            tensor = tensor.clone()
            tensor[: c.n_embd] /= int(name.split(".")[2]) + 1  # queries come first
        if name.endswith(_TRANSPOSED):
            tensor = tensor.T
        weights[name] = tensor.contiguous()
    if not c.position_embeddings:
        weights["transformer.wpe.weight"] = torch.zeros(c.block_size, c.n_embd)
    return weights


def transformers_config(c: GPTConfig, end: dict[str, int]) -> dict[str, Any]:
    """The content of config.json. end: the entries with the id of the end-of-text token."""
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "activation_function": "gelu_new",
        "vocab_size": c.vocab_size,
        "n_positions": c.block_size,
        "n_ctx": c.block_size,
        "n_embd": c.n_embd,
        "n_layer": c.n_layer,
        "n_head": c.n_head,
        "n_inner": None,
        "resid_pdrop": c.dropout,
        "embd_pdrop": c.dropout,
        "attn_pdrop": c.dropout,
        "layer_norm_epsilon": 1e-5,
        "initializer_range": 0.02,
        "scale_attn_weights": True,
        "scale_attn_by_inverse_layer_idx": False,  # folded into the queries
        "reorder_and_upcast_attn": False,
        "use_cache": True,
        **end,
        "tie_word_embeddings": True,
        "torch_dtype": "float32",
    }


class Logits(NamedTuple):
    """The values that an export must reproduce in transformers, in float64 on the CPU.

    In float32, rounding grows with the logits and hides small mistakes.
    """

    tokens: torch.Tensor  # random, (1, T) int64; T is small to save time
    logits: torch.Tensor  # of these tokens, (1, T, vocab_size)
    positions: torch.Tensor  # the embeddings of all positions, (block_size, C)


@torch.no_grad()
def our_logits(loaded: Checkpoint, path: Path) -> Logits:
    """The logits of a checkpoint, computed by our own model. path: its file, for messages."""
    model = checkpoint.build_model(loaded, path).double()
    c = model.config
    generator = torch.Generator().manual_seed(0)
    shape = (1, min(c.block_size, _CHECKED_TOKENS))
    tokens = torch.randint(c.vocab_size, shape, generator=generator)
    positions = torch.zeros(c.block_size, c.n_embd, dtype=torch.float64)
    if c.position_embeddings:
        positions = model.transformer.wpe.weight
    return Logits(tokens, model(tokens), positions)


@torch.no_grad()
def logit_difference(ours: Logits, folder: Path) -> float:
    """The largest difference between our logits and those of an export, as a share of the largest.

    Infinite if the embeddings of positions differ at all. Raises UserError if transformers reports
    a missing or an unexpected weight.
    """
    model = _load_in_transformers(folder)
    if not torch.equal(ours.positions, model.transformer.wpe.weight):
        return math.inf
    theirs = model(ours.tokens).logits
    return ((ours.logits - theirs).abs().max() / ours.logits.abs().max()).item()


def sample_texts(loaded: Checkpoint, tokenizer: Tokenizer) -> list[str]:
    """Texts on which the tokenizer of an export is checked, at most 1,000.

    They are sentences of the test split or, if data_dir no longer holds it, random tokens.
    """
    data_dir = Path(loaded.settings.data_dir)
    try:
        meta = token_files.read_meta(data_dir)
        if meta.splits != loaded.data.get("splits"):
            raise UserError("they are others")
        tokens = token_files.open_blocks(data_dir, meta, "test", 1)[:, 0]
        ends = np.flatnonzero(tokens == tokenizer.end_of_text)
        starts = np.append(0, ends[:-1] + 1)
        chosen = np.unique(np.linspace(0, len(ends) - 1, _CHECKED_TEXTS).astype(int))
        parts = [tokens[starts[i] : ends[i]] for i in chosen]
    except UserError:
        print(f"{data_dir} lacks the run's data: the tokenizer is checked on random tokens instead")
        drawn = np.random.default_rng(0).integers(tokenizer.vocab_size, size=(_CHECKED_TEXTS, 20))
        parts = list(drawn)
    return [text for text in map(tokenizer.decode, parts) if END_OF_TEXT not in text]


def require_same_ids(tokenizer: Tokenizer, texts: list[str], folder: Path) -> None:
    """Raise UserError unless each tokenizer class of transformers encodes texts as ours does."""
    import transformers

    for name in ("GPT2Tokenizer", "GPT2TokenizerFast", "AutoTokenizer"):
        # The texts may be longer than the model's context: without a limit, there is no warning.
        theirs = getattr(transformers, name).from_pretrained(folder, model_max_length=10**9)
        for text in texts:
            ids = theirs(text).input_ids
            if ids != tokenizer.encode_with_markers(text):
                raise UserError(
                    f"{folder}: {name} of transformers gives the ids {ids} to {text!r}, not "
                    f"{tokenizer.encode_with_markers(text)}. No export was written. Please report "
                    "this as a bug, with the version of transformers."
                )


def _load_in_transformers(folder: Path) -> torch.nn.Module:
    """An export, loaded by transformers in float64. Raises UserError for wrong weights."""
    import transformers

    uploads_show_progress = not huggingface_hub.utils.are_progress_bars_disabled()
    transformers.utils.logging.disable_progress_bar()  # and the Hub's with it
    model, report = transformers.GPT2LMHeadModel.from_pretrained(
        folder, dtype=torch.float64, output_loading_info=True
    )
    if uploads_show_progress:
        huggingface_hub.utils.enable_progress_bars()
    if problems := {kind: names for kind, names in report.items() if names}:
        raise UserError(
            f"{folder}: transformers finds other weights than expected: {problems}. No export was "
            "written. Please report this as a bug, with the version of transformers."
        )
    return model.eval()


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
