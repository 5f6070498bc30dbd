"""Export every checkpoint of a run to a folder that transformers loads.

    python convert_to_hf.py                             # out/partial_reverse
    python convert_to_hf.py config/full_reverse.py

Writes out_dir/hf/checkpoint-N/ for each checkpoint-N.pt, and out_dir/hf/manifest.json, which
says what was made of what. An export counts only after transformers has loaded it and given
the logits of our own model; good exports are not made again.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tqdm import tqdm

import checkpoint
import configurator
import files
import tokenizer
from checkpoint import Checkpoint
from configurator import Settings
from errors import UserError
from model import GPT

MANIFEST = "manifest.json"
WEIGHTS = "model.safetensors"
TOLERANCE = 1e-4  # the largest difference of logits, fp32
_TRANSPOSED = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")


def main(settings: Settings) -> None:
    """Export all checkpoints of out_dir that have no good export yet."""
    out_dir = Path(settings.out_dir)
    paths = checkpoint.list_checkpoints(out_dir)
    if not paths:
        raise UserError(
            f"no checkpoint-N.pt in {out_dir}. Train first (train.py, with the same config file "
            "and --out_dir as here)."
        )
    hf_dir = checkpoint.hf_dir(out_dir)
    hf_dir.mkdir(exist_ok=True)
    manifest = read_manifest(hf_dir)
    for path in tqdm(paths, disable=None):
        source = files.sha256(path)
        if is_good(hf_dir, manifest, path.stem, source):
            _require_language(manifest[path.stem]["language"], settings, path)
            continue
        loaded = checkpoint.load(path)
        _require_language(loaded.data["language"], settings, path)
        _forget(hf_dir, manifest, path.stem)
        difference = export(loaded, path, hf_dir / path.stem)
        manifest[path.stem] = {
            "source_sha256": source,
            "language": loaded.data["language"],
            "step": loaded.step,
            "val_loss": loaded.val_loss,
            "max_logit_difference": difference,
            "files": _hashes(hf_dir / path.stem),
        }
        files.write_json(hf_dir / MANIFEST, manifest)
    worst = max(manifest[path.stem]["max_logit_difference"] for path in paths)
    print(
        f"{len(paths)} checkpoints are exported in {hf_dir}; transformers gives the same logits "
        f"(largest difference {worst:.1e})"
    )


def read_manifest(hf_dir: Path) -> dict[str, Any]:
    """What was exported so far: name of the checkpoint -> source, step and files."""
    path = hf_dir / MANIFEST
    if not path.exists():
        return {}
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}). Delete it: the exports are made again.")


def is_good(hf_dir: Path, manifest: dict[str, Any], name: str, source: str) -> bool:
    """Whether an export is of this source file and its files are as they were written."""
    entry = manifest.get(name)
    folder = hf_dir / name
    return (
        entry is not None
        and entry["source_sha256"] == source
        and folder.is_dir()
        and _hashes(folder) == entry["files"]
    )


def _forget(hf_dir: Path, manifest: dict[str, Any], name: str) -> None:
    """Remove an export that is not of the present checkpoint: nobody is to load it."""
    if manifest.pop(name, None) is not None:
        files.write_json(hf_dir / MANIFEST, manifest)
    shutil.rmtree(hf_dir / name, ignore_errors=True)


def export(loaded: Checkpoint, path: Path, folder: Path) -> float:
    """Write one checkpoint as a transformers folder, and compare the two models' logits.

    Returns the largest absolute difference. Raises UserError, and leaves no folder, if it is
    above TOLERANCE.
    """
    model = checkpoint.build_model(loaded, path)
    with files.atomic_folder(folder) as temporary:
        weights = transformers_weights(model)
        # transformers 4.44 cannot load a file without this metadata.
        save_file(weights, temporary / WEIGHTS, metadata={"format": "pt"})
        (temporary / WEIGHTS).chmod(0o644)  # safetensors leaves it to its owner alone
        _write_json(temporary / "config.json", transformers_config(model))
        _write_json(
            temporary / "generation_config.json",
            {
                "bos_token_id": tokenizer.END_OF_TEXT_ID,
                "eos_token_id": tokenizer.END_OF_TEXT_ID,
            },
        )
        markers = list(loaded.data["markers"])
        tokenizer.write_transformers_files(temporary, markers, model.config.block_size)
        difference = logit_difference(model, temporary)
        if not difference <= TOLERANCE:  # also when it is NaN
            raise UserError(
                f"{path}: transformers gives other logits than this model (largest difference "
                f"{difference:.3g}, at most {TOLERANCE} expected). No export was written."
            )
    return difference


def transformers_weights(model: GPT) -> dict[str, torch.Tensor]:
    """The weights under transformers' names and shapes, fp32, without the tied head.

    Linear layers become Conv1D (in, out); the padding of the vocabulary is cut off. The scale
    1 / (layer index + 1) of attention is folded into the queries: some versions of transformers
    ignore the flag for it.
    """
    c = model.config
    weights = {}
    for name, tensor in model.state_dict().items():
        if name == "transformer.wte.weight":
            tensor = tensor[: c.vocab_size].clone()
        if ".attn.c_attn." in name and c.scale_attn_by_inverse_layer_idx:
            tensor = tensor.clone()
            tensor[: c.n_embd] /= int(name.split(".")[2]) + 1  # queries come first
        if name.endswith(_TRANSPOSED):
            tensor = tensor.T
        weights[name] = tensor.contiguous()
    return weights


def transformers_config(model: GPT) -> dict[str, Any]:
    """config.json of the export."""
    c = model.config
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
        "bos_token_id": tokenizer.END_OF_TEXT_ID,
        "eos_token_id": tokenizer.END_OF_TEXT_ID,
        "tie_word_embeddings": True,
        "torch_dtype": "float32",
    }


@torch.no_grad()
def logit_difference(model: GPT, folder: Path) -> float:
    """The largest difference between our logits and transformers', in fp32 on the CPU.

    On random tokens, every word of the vocabulary among the choices, over the whole context.
    Raises UserError if transformers misses a weight or finds one too many.
    """
    import transformers

    transformers.utils.logging.disable_progress_bar()
    theirs, report = transformers.GPT2LMHeadModel.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True
    )
    if found := {kind: names for kind, names in report.items() if names}:
        raise UserError(f"{folder}: transformers does not take these weights as they are: {found}")
    theirs.eval()
    generator = torch.Generator().manual_seed(0)
    c = model.config
    batch = torch.randint(c.vocab_size, (1, c.block_size), generator=generator)
    return (model(batch) - theirs(batch).logits).abs().max().item()


def _require_language(language: str, settings: Settings, path: Path) -> None:
    if language != settings.language:
        raise UserError(
            f"{path} is a model of {language}, and the settings say "
            f"{settings.language}. Set --out_dir= or --language=."
        )


def _hashes(folder: Path) -> dict[str, str]:
    return {path.name: files.sha256(path) for path in sorted(folder.iterdir())}


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    configurator.run("convert_to_hf", main, __doc__)
