import dataclasses
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from conftest import ROOT, fail, succeed
from parity import SHAPE

import convert_to_hf
import perturb
from impossible import checkpoint, files, log
from impossible.checkpoint import Checkpoint
from impossible.hub import card, export
from impossible.settings import Settings, UserError
from model import GPT

NAMES = {"config.json", "generation_config.json", "model.safetensors", "README.md"}
NAMES |= {"vocab.json", "merges.txt", "tokenizer_config.json"}
THREE, SIX = "checkpoint-3.pt", "checkpoint-6.pt"


@pytest.fixture(scope="module")
def out_dir(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with its exports. Not to be changed."""
    folder = tmp_path_factory.mktemp("exported") / "out"
    shutil.copytree(trained, folder)
    succeed("convert_to_hf.py", f"--out_dir={folder}")
    return folder


@pytest.fixture
def copy(out_dir: Path, tmp_path: Path) -> Path:
    """A copy of that run."""
    return shutil.copytree(out_dir, tmp_path / "out")


def change(path: Path, **fields: object) -> Path:
    """Write a checkpoint again with other fields, or with one weight changed."""
    content = torch.load(path, weights_only=True)
    if fields:
        content |= fields
    else:
        content["model"]["transformer.ln_f.bias"][0] += 1.0
    torch.save(content, path)
    return path


def manifest_of(out_dir: Path) -> dict[str, dict]:
    return json.loads((out_dir / "hf" / "manifest.json").read_text())


def made_up(scaled: bool, n_layer: int = 4) -> Checkpoint:
    """A checkpoint whose weights are far from zero."""
    shape = SHAPE | {"n_layer": n_layer, "scale_attn_by_inverse_layer_idx": scaled}
    del shape["vocab_size"]
    settings = Settings(**shape)
    torch.manual_seed(0)
    model = GPT(checkpoint.model_config(settings, 50258))
    for name, parameter in model.named_parameters():
        if "wte" not in name:
            parameter.data.add_(torch.randn_like(parameter), alpha=0.2)
    return checkpoint_of(model, settings)


def grown() -> Checkpoint:
    """A checkpoint whose weights have grown: its logits reach beyond 100."""
    settings = Settings(block_size=64, n_layer=6, n_head=6, n_embd=384)
    torch.manual_seed(0)
    model = GPT(checkpoint.model_config(settings, 50258))
    for parameter in model.parameters():
        parameter.data.normal_(0.0, 0.14)
    model.transformer.ln_f.weight.data.mul_(100)
    model.transformer.wte.weight.data[50258:] = 0
    return checkpoint_of(model, settings)


def checkpoint_of(model: GPT, settings: Settings) -> Checkpoint:
    data = {"vocab_size": 50258, "markers": {"🅁": 50257}, "language": "partial_reverse"}
    return Checkpoint(
        step=1, model=model.state_dict(), settings=settings, data=data, val_loss=1.0, sessions=[]
    )


def write_folder(made: Checkpoint, folder: Path) -> float:
    """Export a checkpoint, as the command does; the largest difference of logits."""
    with export.new_folder(folder) as temporary:
        return export.write_folder(made, Path("checkpoint-1.pt"), temporary)


def logits(made: Checkpoint, tokens: torch.Tensor) -> torch.Tensor:
    return checkpoint.build_model(made, Path("checkpoint-1.pt"))(tokens)


def test_every_checkpoint_becomes_a_folder_that_transformers_loads(out_dir: Path) -> None:
    for step in (3, 6):
        folder = out_dir / "hf" / f"checkpoint-{step}"
        assert {path.name for path in folder.iterdir()} == NAMES
        model, report = transformers.GPT2LMHeadModel.from_pretrained(
            folder, output_loading_info=True
        )
        assert not any(report.values()), report
        tokens = torch.randint(50258, (2, 32))
        ours = logits(checkpoint.load(checkpoint.path_of(out_dir, step)), tokens)
        assert (ours - model.eval()(tokens).logits).abs().max() <= 1e-4
        auto = transformers.AutoModelForCausalLM.from_pretrained(folder)
        assert type(auto) is transformers.GPT2LMHeadModel
        entry = manifest_of(out_dir)[folder.name]
        source = files.sha256(checkpoint.path_of(out_dir, step))
        assert (entry["step"], entry["source_sha256"]) == (step, source)
        assert entry["max_logit_difference"] <= export.TOLERANCE
        assert entry["files"] == {path.name: files.sha256(path) for path in folder.iterdir()}
    assert list(manifest_of(out_dir)) == ["checkpoint-3", "checkpoint-6"]
    inputs = transformers.GPT2Tokenizer.from_pretrained(folder)("He clean", return_tensors="pt")
    output = model.generate(inputs.input_ids, max_length=20)
    assert output.shape[1] <= 20
    assert output[0, :2].tolist() == [1544, 3424]
    assert output.max() < 50258


@pytest.mark.parametrize("scaled", [True, False])
def test_the_attention_scale_is_in_the_weights(scaled: bool, tmp_path: Path) -> None:
    made = made_up(scaled)
    write_folder(made, tmp_path / "export")
    tokens = torch.randint(50258, (2, SHAPE["block_size"]))
    ours = logits(made, tokens)
    for attention in ("sdpa", "eager"):
        theirs = transformers.GPT2LMHeadModel.from_pretrained(
            tmp_path / "export", attn_implementation=attention
        ).eval()
        assert theirs.config.scale_attn_by_inverse_layer_idx is False
        assert (ours - theirs(tokens).logits).abs().max() <= 1e-4
    assert (ours - logits(made_up(not scaled), tokens)).abs().max() > 1e-2, "the scale matters here"


def test_large_logits_are_no_reason_to_refuse_an_export(tmp_path: Path) -> None:
    made = grown()
    assert logits(made, torch.arange(16)[None]).abs().max() > 100
    difference = write_folder(made, tmp_path / "export")
    assert difference <= export.TOLERANCE / 10, "with room to spare"


Weights = dict[str, torch.Tensor]


def no_scale_in_one_layer(weights: Weights) -> None:
    width = weights["transformer.wte.weight"].shape[1]
    weights["transformer.h.1.attn.c_attn.weight"][:, :width] *= 2
    weights["transformer.h.1.attn.c_attn.bias"][:width] *= 2


def one_weight_transposed(weights: Weights) -> None:
    name = "transformer.h.0.attn.c_proj.weight"
    weights[name] = weights[name].T.contiguous()


def shifted(name: str, row: int) -> Callable[[Weights], None]:
    """Moves the weights of one row by one place."""
    return lambda weights: weights[name][row].copy_(weights[name][row].roll(1))


def without_a_bias(weights: Weights) -> None:
    del weights["transformer.ln_f.bias"]  # zeros: the logits would not tell


OTHER = "transformers computes other logits"


@pytest.mark.parametrize("checkpoint_made", [grown, lambda: made_up(True)])
@pytest.mark.parametrize(
    ("spoil", "error"),
    [
        (no_scale_in_one_layer, OTHER),
        (one_weight_transposed, OTHER),
        (shifted("transformer.h.1.mlp.c_fc.weight", 5), OTHER),
        (shifted("transformer.wte.weight", 777), OTHER),
        (shifted("transformer.wpe.weight", -1), OTHER),
        (without_a_bias, r"transformer\.ln_f\.bias"),
    ],
)
def test_no_wrong_weight_passes_the_check(
    spoil: Callable[[Weights], None],
    error: str,
    checkpoint_made: Callable[[], Checkpoint],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    right = export.transformers_weights

    def wrong(*of: object) -> Weights:
        weights = {name: weight.clone() for name, weight in right(*of).items()}
        spoil(weights)
        return weights

    monkeypatch.setattr(export, "transformers_weights", wrong)
    with pytest.raises(UserError, match=error):
        write_folder(checkpoint_made(), tmp_path / "export")
    assert not list(tmp_path.iterdir()), "no folder is left"


def test_the_umask_decides_who_may_read_an_export(tmp_path: Path) -> None:
    before = os.umask(0o002)
    try:
        write_folder(made_up(True), tmp_path / "export")
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "export").iterdir()}
    assert set(modes.values()) == {0o664}, modes


def test_an_export_that_fails_takes_the_old_one_away(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    change(copy / THREE)
    monkeypatch.setattr(export, "TOLERANCE", -1.0)
    with pytest.raises(UserError, match="other logits"):
        convert_to_hf.main(Settings(out_dir=str(copy)))
    assert not (copy / "hf" / "checkpoint-3").exists()
    assert list(manifest_of(copy)) == ["checkpoint-6"]


@pytest.mark.parametrize("kilobytes", [pytest.param(1, marks=pytest.mark.slow), 1200])
def test_a_full_disk_is_told_of_the_export_and_not_of_its_sources(
    kilobytes: int, trained: Path, tmp_path: Path
) -> None:
    out_dir = shutil.copytree(trained, tmp_path / "out")
    error = fail("convert_to_hf.py", f"--out_dir={out_dir}", largest_file=kilobytes << 10)
    assert error.startswith(f"error: {out_dir}"), error
    assert "Free some disk space, correct the permissions, or choose" in error
    assert not (out_dir / "hf" / "checkpoint-3").exists()
    succeed("convert_to_hf.py", f"--out_dir={out_dir}")


def test_valid_exports_are_kept_and_others_made_again(copy: Path) -> None:
    paths = sorted((copy / "hf").rglob("*.*"))
    before = {path: path.stat().st_ino for path in paths}
    succeed("convert_to_hf.py", f"--out_dir={copy}")
    assert {path: path.stat().st_ino for path in paths} == before

    damaged, incomplete = copy / "hf" / "checkpoint-3", copy / "hf" / "checkpoint-6"
    whole = (damaged / "model.safetensors").read_bytes()
    (damaged / "model.safetensors").write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    (incomplete / "merges.txt").unlink()
    (incomplete / "a folder").mkdir()
    succeed("convert_to_hf.py", f"--out_dir={copy}")
    assert (damaged / "model.safetensors").read_bytes() == whole
    assert {path.name for path in incomplete.iterdir()} == NAMES

    retrained = change(copy / THREE)
    succeed("convert_to_hf.py", f"--out_dir={copy}")
    assert (damaged / "model.safetensors").read_bytes() != whole, "another source, another export"
    assert manifest_of(copy)["checkpoint-3"]["source_sha256"] == files.sha256(retrained)


def test_what_cannot_be_exported_is_named(copy: Path, tmp_path: Path) -> None:
    assert "no checkpoint-N.pt" in fail("convert_to_hf.py", f"--out_dir={tmp_path / 'none'}")
    error = fail("convert_to_hf.py", "--language=no_reverse", f"--out_dir={copy}")
    assert "is a model of partial_reverse, but the settings say no_reverse" in error
    first = checkpoint.load(copy / THREE, mmap=False).settings.read_by("train.py")
    (copy / THREE).write_bytes((copy / THREE).read_bytes()[:9999])
    assert "checkpoint-3.pt is damaged" in fail("convert_to_hf.py", f"--out_dir={copy}")
    shutil.copy(copy / SIX, copy / THREE)
    for path in (copy / THREE, copy / SIX):
        change(path, step=int(path.stem[-1]), settings=first | {"n_embd": 64})
    error = fail("convert_to_hf.py", f"--out_dir={copy}")
    assert "size mismatch for transformer.wte.weight" in error
    assert not (copy / "hf" / "checkpoint-3").exists()


def change_seed(path: Path) -> None:
    settings = checkpoint.load(path, mmap=False).settings.read_by("train.py")
    change(path, settings=settings | {"seed": 7})


SPOILT = {
    "checkpoint-3.pt holds step 6: it was renamed or copied": (
        lambda three, six: shutil.copy(six, three)
    ),
    "lacks checkpoint-3.pt, which a run of 6 steps with these settings must have": (
        lambda three, six: three.unlink()
    ),
    "checkpoint-3.pt belongs to another run than checkpoint-6.pt: seed = 7, not 41": (
        lambda three, six: change_seed(three)
    ),
    "checkpoint-6.pt has the same weights as checkpoint-3.pt": (
        lambda three, six: change(three, model=checkpoint.load(six).model)
    ),
}


@pytest.mark.parametrize(("error", "spoil"), SPOILT.items())
def test_checkpoints_that_are_not_one_series_are_refused(
    error: str, spoil: Callable[[Path, Path], None], trained: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(trained, tmp_path / "out")
    spoil(folder / THREE, folder / SIX)
    assert error in fail("convert_to_hf.py", f"--out_dir={folder}")
    assert not (folder / "hf" / "checkpoint-6").exists()


def test_a_card_says_what_the_run_did(out_dir: Path) -> None:
    """Compared with a card that was checked by hand, word for word."""
    six = checkpoint.load(out_dir / SIX)
    settings = dataclasses.replace(six.settings, seed=0, dropout=0.0, grad_clip=0.0, order_seed=5)
    sessions = [
        {"minutes": 12.5, "devices": {"NVIDIA H100": 4}, "torch": "2.11.0"},
        {"minutes": 83.2, "devices": {"NVIDIA H100": 4}, "torch": "2.13.0", "attention": "flash"},
    ]
    data = six.data | {"corpus": "babylm_10M", "corpus_version": "of its commit"}
    splits = {"train": (1234567, 89, 123456789), "val": (1000, 2, 12345), "test": (7, 0, 99)}
    names = ("sentences", "dropped", "tokens")
    data["splits"] = {split: dict(zip(names, n, strict=True)) for split, n in splits.items()}
    made = dataclasses.replace(
        six, settings=settings, sessions=sessions, data=data, val_loss=3.14159
    )
    records = [{"step": 3, "loss": 5.0}, {"step": 4, "loss": 4.0}, {"step": 6, "val_loss": 3.14159}]
    measured = ["training/log.jsonl", "evaluation/a/losses.png", "evaluation/perplexity.csv"]
    text = card.text(made, records, "cc-by-4.0", "ada/impossible", measured)
    assert text == (ROOT / "tests" / "card.md").read_text(encoding="utf-8")


def test_a_card_says_whether_the_language_is_of_the_paper(
    out_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_tokens = {name for name, row in perturb.LANGUAGES.items() if row.unit == "tokens"}
    later = {"local_shuffle_w2", "switch_indices", "reverse", "initial_negation", "parity_negation"}
    assert set(card.OF_PAPER) == on_tokens - later - {"phrase_hop"}
    published = checkpoint.load(out_dir / SIX)
    text = card.text(published, log.read(out_dir), "mit")
    assert text == (out_dir / "hf" / "checkpoint-6" / "README.md").read_text(encoding="utf-8")
    assert "on PartialReverse, a language of\n[Kallini et al. 2024]" in text
    assert "not one of the published languages" not in text
    mine = dataclasses.replace(perturb.get("partial_reverse"), title="Mine")
    monkeypatch.setitem(perturb.LANGUAGES, "mine", mine)
    own = dataclasses.replace(published, data=published.data | {"language": "mine"})
    text = card.text(own, [], "mit")
    assert "on Mine, a language that is not in\n[Kallini et al. 2024]" in text
    assert "The recipe is that of:" in text
    assert "- **Mine is not one of the published languages.**" in text


def test_a_model_without_position_embeddings_is_a_plain_gpt2_with_zeros(
    config: Callable[..., Path], tmp_path: Path
) -> None:
    path = config(position_embeddings="false")
    succeed("train.py", path)
    made = checkpoint.load(tmp_path / "out" / SIX)
    assert "transformer.wpe.weight" not in made.model
    succeed("convert_to_hf.py", path)
    folder = tmp_path / "out" / "hf" / "checkpoint-6"
    theirs, report = transformers.GPT2LMHeadModel.from_pretrained(folder, output_loading_info=True)
    assert not any(report.values())
    assert not theirs.transformer.wpe.weight.any()
    tokens = torch.randint(50258, (2, 32))
    assert (logits(made, tokens) - theirs.eval()(tokens).logits).abs().max() <= 1e-4
    last = tokens[:1, -1:]
    assert torch.allclose(logits(made, last), logits(made, last.expand(1, 8))[:, :1], atol=1e-5)
