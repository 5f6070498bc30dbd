"""Export every checkpoint of a run to a folder that transformers loads.

    python convert_to_hf.py                             # out/partial_reverse
    python convert_to_hf.py config/full_reverse.py

Writes out_dir/hf/checkpoint-N/ for each checkpoint-N.pt, and out_dir/hf/manifest.json, which
says what was made of what. An export counts only after transformers has loaded it and given
the logits of our own model; good exports are not made again.
"""

import dataclasses
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
from model import GPT, GPTConfig

MANIFEST = "manifest.json"
WEIGHTS = "model.safetensors"
TOLERANCE = 1e-4  # the largest difference of logits, fp32
_CHECKED_TOKENS = 16
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
    check_series(paths, settings.language)
    hf_dir = checkpoint.hf_dir(out_dir)
    hf_dir.mkdir(exist_ok=True)
    manifest = read_manifest(hf_dir)
    for path in tqdm(paths, disable=None):
        source = files.sha256(path)
        if is_good(hf_dir, manifest.get(path.stem), path.stem, source, settings.export_dtype):
            continue
        _forget(hf_dir, manifest, path.stem)
        loaded = checkpoint.load(path)
        difference = export(loaded, path, hf_dir / path.stem, settings.export_dtype)
        entry = {
            "source_sha256": source,
            "step": loaded.step,
            "val_loss": loaded.val_loss,
            "dtype": settings.export_dtype,
            "settings": loaded.settings,
            "max_logit_difference": difference,
            "files": _hashes(hf_dir / path.stem),
        }
        _require_new_weights(entry, hf_dir / path.stem, manifest)
        manifest[path.stem] = entry
        files.write_json(hf_dir / MANIFEST, manifest)
    worst = max(manifest[path.stem]["max_logit_difference"] for path in paths)
    print(
        f"{len(paths)} checkpoints are exported in {hf_dir}; transformers gives the same logits "
        f"(largest difference {worst:.1e})"
    )


def check_series(paths: list[Path], language: str) -> None:
    """Raise UserError unless these are all checkpoints of one run up to its latest.

    paths: by step. A revision with the weights of another run or step would look as good as any.
    """
    last = checkpoint.load(paths[-1])
    if last.data["language"] != language:
        raise UserError(
            f"{paths[-1]} is a model of {last.data['language']}, and the settings say {language}. "
            "Set --out_dir= or --language=."
        )
    for path in paths:
        loaded = checkpoint.load(path)
        if checkpoint.path_of(path.parent, loaded.step) != path:
            raise UserError(
                f"{path} holds step {loaded.step}: it was renamed or copied. Give it its name "
                "back, or delete it."
            )
        differences = checkpoint.run_differences(
            loaded.settings, loaded.data, last.settings, last.data
        )
        if differences:
            raise UserError(
                f"{path} is of another run than {paths[-1].name}: {'; '.join(differences)}. Keep "
                "the checkpoints of one run in one folder."
            )
    interval = last.settings["checkpoint_interval"]
    folder = paths[0].parent
    expected = [checkpoint.path_of(folder, step) for step in range(interval, last.step, interval)]
    if missing := [path.name for path in expected if path not in paths]:
        raise UserError(
            f"{folder} lacks {', '.join(missing)}: the series to step {last.step} has a "
            f"checkpoint every {interval} steps. Put it back, or train anew in another --out_dir="
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


def is_good(hf_dir: Path, entry: dict[str, Any] | None, name: str, source: str, dtype: str) -> bool:
    """Whether an export is of this source file and dtype, its files as they were written."""
    folder = hf_dir / name
    return (
        entry is not None
        and entry["source_sha256"] == source
        and entry["dtype"] == dtype
        and folder.is_dir()
        and _hashes(folder) == entry["files"]
    )


def _forget(hf_dir: Path, manifest: dict[str, Any], name: str) -> None:
    """Remove an export that is not of the present checkpoint: nobody is to load it."""
    if manifest.pop(name, None) is not None:
        files.write_json(hf_dir / MANIFEST, manifest)
    shutil.rmtree(hf_dir / name, ignore_errors=True)


def export(loaded: Checkpoint, path: Path, folder: Path, dtype: str = "float32") -> float:
    """Write one checkpoint as a transformers folder, and compare the two models' logits.

    dtype: of the weights. Returns the largest absolute difference. Raises UserError, and leaves
    no folder, if it is above TOLERANCE.
    """
    model = checkpoint.build_model(loaded, path)
    with files.atomic_folder(folder) as temporary:
        weights = transformers_weights(model, getattr(torch, dtype))
        # transformers 4.44 cannot load a file without this metadata.
        save_file(weights, temporary / WEIGHTS, metadata={"format": "pt"})
        (temporary / WEIGHTS).chmod(0o644)  # safetensors leaves it to its owner alone
        if dtype != "float32":
            model = from_transformers_weights(weights, model.config)
        del weights  # before transformers' copy is there: never more than two
        _write_json(temporary / "config.json", transformers_config(model, dtype))
        end = {"bos_token_id": tokenizer.END_OF_TEXT_ID, "eos_token_id": tokenizer.END_OF_TEXT_ID}
        _write_json(temporary / "generation_config.json", end)
        markers = list(loaded.data["markers"])
        tokenizer.write_transformers_files(temporary, markers, model.config.block_size)
        difference = logit_difference(model, temporary)
        if not difference <= TOLERANCE:  # also when it is NaN
            raise UserError(
                f"{path}: transformers gives other logits than this model (largest difference "
                f"{difference:.3g}, at most {TOLERANCE} expected). No export was written."
            )
    return difference


def transformers_weights(model: GPT, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
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
        weights[name] = tensor.to(dtype).contiguous()
    if not c.position_embeddings:
        weights["transformer.wpe.weight"] = torch.zeros(c.block_size, c.n_embd, dtype=dtype)
    return weights


def from_transformers_weights(weights: dict[str, torch.Tensor], config: GPTConfig) -> GPT:
    """Our model, in fp32, with exported weights: what transformers has to agree with in 16 bits."""
    config = dataclasses.replace(
        config, scale_attn_by_inverse_layer_idx=False, position_embeddings=True
    )
    model = GPT(config).eval()
    for name, tensor in model.state_dict().items():
        exported = weights[name].T if name.endswith(_TRANSPOSED) else weights[name]
        tensor[: len(exported)] = exported  # the padding of the vocabulary stays zero
    return model


def transformers_config(model: GPT, dtype: str = "float32") -> dict[str, Any]:
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
        "torch_dtype": dtype,
    }


@torch.no_grad()
def logit_difference(model: GPT, folder: Path) -> float:
    """The largest difference between our logits and transformers', in fp32 on the CPU.

    On random tokens, every word of the vocabulary among the choices. The sequence is short, for
    time; the embeddings of the positions beyond it are compared as they are. Raises UserError if
    transformers misses a weight or finds one too many.
    """
    import transformers

    transformers.utils.logging.disable_progress_bar()
    theirs, report = transformers.GPT2LMHeadModel.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True
    )
    if found := {kind: names for kind, names in report.items() if names}:
        raise UserError(f"{folder}: transformers does not take these weights as they are: {found}")
    c = model.config
    generator = torch.Generator().manual_seed(0)
    length = min(c.block_size, _CHECKED_TOKENS)
    batch = torch.randint(c.vocab_size, (1, length), generator=generator)
    difference = (model(batch) - theirs.eval()(batch).logits).abs().max().item()
    positions = theirs.transformer.wpe.weight
    expected = model.transformer.wpe.weight if c.position_embeddings else torch.zeros(())
    return max(difference, (positions - expected).abs().max().item())


def _require_new_weights(entry: dict[str, Any], folder: Path, manifest: dict[str, Any]) -> None:
    """Raise UserError, and remove the export, if another step has the very same weights."""
    for name, other in manifest.items():
        if other["files"][WEIGHTS] == entry["files"][WEIGHTS]:
            shutil.rmtree(folder)
            raise UserError(
                f"{folder.name}.pt has the same weights as {name}.pt: a copy, or steps that "
                "changed nothing. Delete the wrong one of the two."
            )


def _hashes(folder: Path) -> dict[str, str]:
    return {path.name: files.sha256(path) for path in sorted(folder.iterdir())}


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    configurator.run("convert_to_hf", main, __doc__)
