import dataclasses
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from conftest import fail, settled_folder, succeed
from parity import SHAPE

import convert_to_hf
import perturb
from impossible import checkpoint, files
from impossible.checkpoint import Checkpoint
from impossible.hub import card, export
from impossible.settings import Settings, UserError
from model import GPT

NAMES = {
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "vocab.json",
    "merges.txt",
    "tokenizer_config.json",
    "README.md",
}


@pytest.fixture(scope="module")
def out_dir(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with its exports."""
    folder = tmp_path_factory.mktemp("exported") / "out"
    shutil.copytree(trained, folder)
    succeed("convert_to_hf.py", f"--out_dir={folder}")
    return folder


def change(path: Path, **fields: object) -> Path:
    """Write a checkpoint again with other fields, or with one weight changed."""
    content = torch.load(path, weights_only=True)
    if fields:
        content |= fields
    else:
        content["model"]["transformer.ln_f.bias"][0] += 1.0
    torch.save(content, path)
    return path


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
    data = {"vocab_size": 50258, "markers": {"🅁": 50257}, "language": "partial_reverse"}
    return Checkpoint(
        step=1, model=model.state_dict(), settings=settings, data=data, val_loss=1.0, sessions=[]
    )


def write_folder(made: Checkpoint, path: Path, folder: Path) -> float:
    """Export a checkpoint, as the command does; the largest difference of logits."""
    with settled_folder(folder) as temporary:
        return export.write_folder(made, path, temporary)


def test_every_checkpoint_becomes_a_folder_that_transformers_loads(out_dir: Path) -> None:
    for step in (3, 6):
        folder = out_dir / "hf" / f"checkpoint-{step}"
        assert {path.name for path in folder.iterdir()} == NAMES
        model, report = transformers.GPT2LMHeadModel.from_pretrained(
            folder, output_loading_info=True
        )
        assert not any(report.values()), report
        path = checkpoint.path_of(out_dir, step)
        ours = checkpoint.build_model(checkpoint.load(path), path)
        tokens = torch.randint(50258, (2, 32))
        assert (ours(tokens) - model.eval()(tokens).logits).abs().max() <= 1e-4
        auto = transformers.AutoModelForCausalLM.from_pretrained(folder)
        assert type(auto) is transformers.GPT2LMHeadModel


def test_an_export_generates(out_dir: Path) -> None:
    folder = out_dir / "hf" / "checkpoint-6"
    model = transformers.GPT2LMHeadModel.from_pretrained(folder)
    tokenizer = transformers.GPT2Tokenizer.from_pretrained(folder)
    inputs = tokenizer("He clean", return_tensors="pt")
    assert inputs.input_ids.tolist() == [[1544, 3424]]
    output = model.generate(inputs.input_ids, max_length=20)
    assert output.shape[1] <= 20
    assert output[0, :2].tolist() == [1544, 3424]
    assert output.max() < 50258


@pytest.mark.parametrize("scaled", [True, False])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_the_attention_scale_is_in_the_weights(
    scaled: bool, attention: str, tmp_path: Path
) -> None:
    made = made_up(scaled)
    write_folder(made, tmp_path / "checkpoint-1.pt", tmp_path / "export")
    theirs = transformers.GPT2LMHeadModel.from_pretrained(
        tmp_path / "export", attn_implementation=attention
    ).eval()
    assert theirs.config.scale_attn_by_inverse_layer_idx is False
    tokens = torch.randint(50258, (2, SHAPE["block_size"]))
    ours = checkpoint.build_model(made, tmp_path)(tokens)
    assert (ours - theirs(tokens).logits).abs().max() <= 1e-4
    unscaled = checkpoint.build_model(made_up(not scaled), tmp_path)(tokens)
    assert (ours - unscaled).abs().max() > 1e-2, "the scale matters here"


def test_a_wrong_export_is_an_error_and_leaves_no_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = export.transformers_config
    wrong = {"activation_function": "relu"}
    monkeypatch.setattr(export, "transformers_config", lambda *of: right(*of) | wrong)
    with pytest.raises(UserError, match="transformers computes other logits"):
        write_folder(made_up(True), tmp_path / "checkpoint-1.pt", tmp_path / "export")
    assert not list(tmp_path.iterdir())


def large(seed: int) -> Checkpoint:
    """A checkpoint whose weights have grown: its logits reach beyond 100."""
    settings = Settings(block_size=64, n_layer=6, n_head=6, n_embd=384)
    torch.manual_seed(seed)
    model = GPT(checkpoint.model_config(settings, 50258))
    for parameter in model.parameters():
        parameter.data.normal_(0.0, 0.14)
    model.transformer.ln_f.weight.data.mul_(100)
    model.transformer.wte.weight.data[50258:] = 0
    return Checkpoint(
        step=1,
        model=model.state_dict(),
        settings=settings,
        data={"vocab_size": 50258, "markers": {"🅁": 50257}, "language": "partial_reverse"},
        val_loss=1.0,
        sessions=[],
    )


@pytest.mark.parametrize("seed", range(4))
def test_large_logits_are_no_reason_to_refuse_an_export(seed: int, tmp_path: Path) -> None:
    made, path = large(seed), tmp_path / "checkpoint-1.pt"
    answer = export.answer_of(checkpoint.build_model(made, path))
    assert answer.logits.abs().max() > 100
    difference = write_folder(made, path, tmp_path / "export")
    assert difference <= export.TOLERANCE / 10, "with room to spare"


def no_scale_in_one_layer(weights: dict[str, torch.Tensor]) -> None:
    width = weights["transformer.wte.weight"].shape[1]
    weights["transformer.h.1.attn.c_attn.weight"][:, :width] *= 2
    weights["transformer.h.1.attn.c_attn.bias"][:width] *= 2


def one_weight_transposed(weights: dict[str, torch.Tensor]) -> None:
    name = "transformer.h.0.attn.c_proj.weight"
    weights[name] = weights[name].T.contiguous()


def one_row_shifted(weights: dict[str, torch.Tensor]) -> None:
    row = weights["transformer.h.1.mlp.c_fc.weight"][5]
    row.copy_(row.roll(1))


def one_word_shifted(weights: dict[str, torch.Tensor]) -> None:
    row = weights["transformer.wte.weight"][777]
    row.copy_(row.roll(1))


def positions_shifted(weights: dict[str, torch.Tensor]) -> None:
    row = weights["transformer.wpe.weight"][-1]
    row.copy_(row.roll(1))


@pytest.mark.parametrize("grown", [True, False])
@pytest.mark.parametrize(
    "spoil",
    [
        no_scale_in_one_layer,
        one_weight_transposed,
        one_row_shifted,
        one_word_shifted,
        positions_shifted,
    ],
)
def test_no_wrong_weight_passes_the_check(
    spoil: Callable[[dict[str, torch.Tensor]], None],
    grown: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    right = export.transformers_weights

    def wrong(*of: object) -> dict[str, torch.Tensor]:
        weights = {name: weight.clone() for name, weight in right(*of).items()}
        spoil(weights)
        return weights

    monkeypatch.setattr(export, "transformers_weights", wrong)
    made = large(0) if grown else made_up(True)
    with pytest.raises(UserError, match="transformers computes other logits"):
        write_folder(made, tmp_path / "checkpoint-1.pt", tmp_path / "export")


def test_the_umask_decides_who_may_read_an_export(tmp_path: Path) -> None:
    before = os.umask(0o002)
    try:
        write_folder(made_up(True), tmp_path / "checkpoint-1.pt", tmp_path / "export")
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "export").iterdir()}
    assert set(modes.values()) == {0o664}, modes


def test_an_export_that_fails_takes_the_old_one_away(
    out_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "out"
    shutil.copytree(out_dir, copy)
    change(copy / "checkpoint-3.pt")
    monkeypatch.setattr(export, "TOLERANCE", -1.0)
    with pytest.raises(UserError, match="other logits"):
        convert_to_hf.main(Settings(out_dir=str(copy)))
    assert not (copy / "hf" / "checkpoint-3").exists()
    assert list(json.loads((copy / "hf" / "manifest.json").read_text())) == ["checkpoint-6"]


@pytest.mark.parametrize("kilobytes", [1, 100, 600, 1200])
def test_a_full_disk_is_told_of_the_export_and_not_of_its_sources(
    kilobytes: int, trained: Path, tmp_path: Path
) -> None:
    out_dir = tmp_path / "out"
    shutil.copytree(trained, out_dir)
    limit = {"largest_file": kilobytes << 10}
    error = fail("convert_to_hf.py", f"--out_dir={out_dir}", **limit)
    assert error.startswith(f"error: {out_dir}"), error
    assert "Free some room, or choose another folder" in error
    assert not (out_dir / "hf" / "checkpoint-3").exists()
    succeed("convert_to_hf.py", f"--out_dir={out_dir}")


def test_a_missing_weight_is_an_error_and_leaves_no_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = export.transformers_weights

    def without_one(*of: object) -> dict:
        weights = right(*of)
        del weights["transformer.ln_f.bias"]  # zeros: the logits would not tell
        return weights

    monkeypatch.setattr(export, "transformers_weights", without_one)
    with pytest.raises(UserError, match=r"transformer\.ln_f\.bias"):
        write_folder(made_up(True), tmp_path / "checkpoint-1.pt", tmp_path / "export")
    assert not list(tmp_path.iterdir())


def test_good_exports_are_kept_and_others_made_again(out_dir: Path, tmp_path: Path) -> None:
    copy = tmp_path / "out"
    shutil.copytree(out_dir, copy)
    paths = sorted((copy / "hf").rglob("*.*"))
    before = {path: path.stat().st_ino for path in paths}
    succeed("convert_to_hf.py", f"--out_dir={copy}")
    assert {path: path.stat().st_ino for path in paths} == before

    damaged = copy / "hf" / "checkpoint-3" / "model.safetensors"
    whole = damaged.read_bytes()
    damaged.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    (copy / "hf" / "checkpoint-6" / "merges.txt").unlink()
    (copy / "hf" / "checkpoint-6" / "a folder").mkdir()
    succeed("convert_to_hf.py", f"--out_dir={copy}")
    assert damaged.read_bytes() == whole
    assert not (copy / "hf" / "checkpoint-6" / "a folder").exists()
    assert (copy / "hf" / "checkpoint-6" / "merges.txt").exists()

    retrained = change(copy / "checkpoint-3.pt")
    succeed("convert_to_hf.py", f"--out_dir={copy}")
    assert damaged.read_bytes() != whole, "another source, another export"
    manifest = json.loads((copy / "hf" / "manifest.json").read_text())
    assert manifest["checkpoint-3"]["source_sha256"] == files.sha256(retrained)

    (copy / "checkpoint-3.pt").write_bytes(b"damaged")
    assert "checkpoint-3.pt is damaged" in fail("convert_to_hf.py", f"--out_dir={copy}")


def test_the_manifest_says_what_was_made_of_what(out_dir: Path) -> None:
    manifest = json.loads((out_dir / "hf" / "manifest.json").read_text())
    assert list(manifest) == ["checkpoint-3", "checkpoint-6"]
    entry = manifest["checkpoint-6"]
    assert entry["step"] == 6
    assert entry["source_sha256"] == files.sha256(out_dir / "checkpoint-6.pt")
    assert entry["max_logit_difference"] <= export.TOLERANCE
    folder = out_dir / "hf" / "checkpoint-6"
    assert entry["files"] == {p.name: files.sha256(p) for p in folder.iterdir()}


def test_what_cannot_be_exported_is_named(
    out_dir: Path, tmp_path: Path, config: Callable[..., Path]
) -> None:
    assert "no checkpoint-N.pt" in fail("convert_to_hf.py", f"--out_dir={tmp_path / 'none'}")
    error = fail("convert_to_hf.py", "--language=no_reverse", f"--out_dir={out_dir}")
    assert "is a model of partial_reverse, but the settings say no_reverse" in error
    copy = tmp_path / "out"
    copy.mkdir()
    data = (out_dir / "checkpoint-3.pt").read_bytes()
    (copy / "checkpoint-3.pt").write_bytes(data[: len(data) // 2])
    assert "checkpoint-3.pt is damaged" in fail("convert_to_hf.py", f"--out_dir={copy}")
    shutil.copy(out_dir / "checkpoint-3.pt", copy)
    settings = checkpoint.load(copy / "checkpoint-3.pt").settings
    change(copy / "checkpoint-3.pt", settings=settings.read_by("train.py") | {"n_embd": 64})
    error = fail("convert_to_hf.py", f"--out_dir={copy}")
    assert "size mismatch for transformer.wte.weight" in error
    assert not list((copy / "hf").glob("checkpoint-*"))


def test_checkpoints_that_are_not_one_series_are_refused(out_dir: Path, tmp_path: Path) -> None:
    def refused(*changes: object) -> str:
        copy = tmp_path / "out"
        shutil.rmtree(copy, ignore_errors=True)
        copy.mkdir()
        for name in ("checkpoint-3.pt", "checkpoint-6.pt"):
            shutil.copy(out_dir / name, copy)
        for function in changes:
            function(copy)
        return fail("convert_to_hf.py", f"--out_dir={copy}")

    three, six = "checkpoint-3.pt", "checkpoint-6.pt"
    assert "checkpoint-3.pt holds step 6: it was renamed or copied" in refused(
        lambda copy: shutil.copy(copy / six, copy / three)
    )
    assert "lacks checkpoint-3.pt, which a run of 6 steps with these settings must have" in refused(
        lambda copy: (copy / three).unlink()
    )
    first, second = (checkpoint.load(out_dir / name) for name in (three, six))
    settings = first.settings.read_by("train.py") | {"seed": 7}
    error = refused(lambda copy: change(copy / three, settings=settings))
    assert (
        "checkpoint-3.pt belongs to another run than checkpoint-6.pt: seed = 7 there, 41" in error
    )
    assert "checkpoint-6.pt has the same weights as checkpoint-3.pt" in refused(
        lambda copy: change(copy / three, model=second.model)
    )
    assert not (tmp_path / "out" / "hf" / "checkpoint-6").exists()


def test_a_card_says_whether_the_language_is_of_the_paper(
    out_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert set(card._OF_PAPER) == set(perturb.LANGUAGES)
    published = checkpoint.load(out_dir / "checkpoint-6.pt")
    text = card.text(published, [], "mit")
    assert "on PartialReverse, a language of\n[Kallini et al. 2024]" in text
    assert "The languages and the recipe are those of:" in text
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
    made = checkpoint.load(tmp_path / "out" / "checkpoint-6.pt")
    assert "transformer.wpe.weight" not in made.model
    succeed("convert_to_hf.py", path)
    folder = tmp_path / "out" / "hf" / "checkpoint-6"
    theirs, report = transformers.GPT2LMHeadModel.from_pretrained(folder, output_loading_info=True)
    assert not any(report.values())
    assert not theirs.transformer.wpe.weight.any()
    ours = checkpoint.build_model(made, path)
    tokens = torch.randint(50258, (2, 32))
    assert (ours(tokens) - theirs.eval()(tokens).logits).abs().max() <= 1e-4
    last = tokens[:1, -1:]
    assert torch.allclose(ours(last), ours(last.expand(1, 8))[:, :1], atol=1e-5)
