import math
import shutil

import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT, succeed
from hypothesis import given
from hypothesis import strategies as st
from parity import SHAPE, pair, relative

import model as models
from impossible.evaluation import scoring
from model import GPT, IGNORED, GPTConfig, head_loss, next_tokens


@pytest.mark.parametrize("scaled", [True, False])
def test_logits_and_every_gradient_are_those_of_transformers(scaled: bool) -> None:
    ours, theirs = pair(scaled)
    tokens = torch.randint(SHAPE["vocab_size"], (3, SHAPE["block_size"]))
    assert relative(ours(tokens), theirs(tokens).logits) <= 1e-5

    loss_ours = ours(tokens, next_tokens(tokens))
    loss_theirs = theirs(tokens, labels=tokens).loss
    assert abs(loss_ours - loss_theirs) <= 1e-5 * loss_theirs
    loss_ours.backward()
    loss_theirs.backward()
    expected = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        gradient = parameter.grad
        if name == "transformer.wte.weight":
            assert not gradient[SHAPE["vocab_size"] :].any(), "padding has no gradient"
            gradient = gradient[: SHAPE["vocab_size"]]
        if expected[name].shape != gradient.shape or name.endswith(
            ("c_attn.weight", "c_proj.weight", "c_fc.weight")
        ):
            gradient = gradient.T
        assert relative(gradient, expected[name].grad) <= 1e-5, name


def test_the_scale_changes_the_model() -> None:
    tokens = torch.randint(SHAPE["vocab_size"], (1, SHAPE["block_size"]))
    assert relative(pair(True)[0](tokens), pair(False)[0](tokens)) > 1e-2


def test_initial_weights_are_those_of_gpt2() -> None:
    torch.manual_seed(0)
    model = GPT(GPTConfig(vocab_size=5000, block_size=256, n_layer=4, n_head=4, n_embd=128))
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            assert not parameter.any(), name
        elif ".ln_" in name:
            assert (parameter == 1).all(), name
        else:
            values = parameter[:5000] if "wte" in name else parameter
            expected = 0.02 / math.sqrt(2 * 4) if name.endswith("c_proj.weight") else 0.02
            assert values.std().item() == pytest.approx(expected, rel=0.05), name
            assert abs(values.mean().item()) < expected / 20, name
    assert not model.transformer.wte.weight[5000:].any()


def test_gpt2_small_has_its_size_and_flops() -> None:
    with torch.device("meta"):
        model = GPT(GPTConfig())
    # GPT-2 Small's 124,439,808 weights, and 47 rows for the marker and the padding
    assert sum(p.numel() for p in model.parameters()) == 124_439_808 + 47 * 768
    assert model.flops_per_token() == pytest.approx(0.855e9, rel=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_padding_never_gets_probability(dtype: torch.dtype) -> None:
    model = GPT(GPTConfig(**SHAPE))
    assert model.config.padded_vocab_size == 192
    model.transformer.wte.weight.data[SHAPE["vocab_size"] :] = 100.0  # as bad as can be
    tokens = torch.randint(SHAPE["vocab_size"], (2, 8))
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        logits, mean = model.eval()(tokens), model(tokens, next_tokens(tokens))
    assert logits.shape == (2, 8, SHAPE["vocab_size"])
    expected = F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), tokens[:, 1:].flatten())

    tolerance = 1e-2 if dtype == torch.bfloat16 else 1e-5
    assert mean.item() == pytest.approx(expected.item(), rel=tolerance)


def test_a_block_predicts_no_token_beyond_its_end() -> None:
    targets = next_tokens(torch.tensor([[1, 2, 3], [4, 5, 6]]))
    assert targets.tolist() == [[2, 3, IGNORED], [5, 6, IGNORED]]


def test_no_token_sees_what_comes_after_it() -> None:
    model = GPT(GPTConfig(**SHAPE)).eval()
    tokens = torch.randint(SHAPE["vocab_size"], (1, SHAPE["block_size"]))
    changed = tokens.clone()
    changed[0, 10:] = (changed[0, 10:] + 1) % SHAPE["vocab_size"]
    assert torch.equal(model(tokens)[0, :10], model(changed)[0, :10])


def test_dropout_works_in_training_alone() -> None:
    model = GPT(GPTConfig(**SHAPE, dropout=0.5))
    tokens = torch.randint(SHAPE["vocab_size"], (1, SHAPE["block_size"]))
    assert not torch.equal(model(tokens), model(tokens))
    assert torch.equal(model.eval()(tokens), model(tokens))


@given(
    rows=st.integers(1, 20),
    words=st.integers(2, 40),
    padding=st.integers(0, 5),
    chunk=st.integers(1, 8),
    ignored=st.sets(st.integers(0, 19)),
)
def test_the_loss_and_its_gradients_are_those_of_cross_entropy(
    rows: int, words: int, padding: int, chunk: int, ignored: set[int]
) -> None:
    generator = torch.Generator().manual_seed(rows * 100 + words)
    hidden = torch.randn(rows, 2, generator=generator, requires_grad=True)
    weight = torch.randn(words + padding, 2, generator=generator, requires_grad=True)
    targets = torch.randint(words, (rows,), generator=generator)
    targets[[i for i in ignored if i < rows]] = IGNORED
    if (targets == IGNORED).all():
        targets[0] = 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(models, "MIN_CHUNK_ROWS", chunk)
        ours = head_loss(hidden, weight, targets, words)
        gradients = torch.autograd.grad(ours * 3, (hidden, weight))
    plain = F.cross_entropy(hidden @ weight[:words].T, targets, ignore_index=IGNORED)
    expected = torch.autograd.grad(plain * 3, (hidden, weight))
    assert ours.item() == pytest.approx(plain.item(), rel=1e-5, abs=1e-6)
    for found, wanted in zip(gradients, expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("width", [16, 768])
def test_chunks_of_rows_are_never_small(width: int) -> None:
    limit = max(models.MIN_CHUNK_ROWS, 2 * width)
    for rows in [*range(1, 3000), 8 * 1024, 8 * 1021, 16381]:
        size = models.chunk_rows(rows, width)
        assert min(rows, limit) / 2 <= size <= limit, rows
    assert models.chunk_rows(8 * 1024, 768) == 1024, "chunks of one size where that is possible"


def test_the_loss_makes_no_gradient_where_none_is_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    hidden, weight = torch.randn(4, 8), torch.randn(9, 8, requires_grad=True)

    def refuse(*_: object) -> None:
        raise AssertionError("a gradient was made")

    monkeypatch.setattr(torch.Tensor, "exp_", refuse)
    with torch.no_grad():
        assert head_loss(hidden, weight, torch.arange(4), 9) > 0
    with pytest.raises(AssertionError, match="a gradient was made"):
        head_loss(hidden, weight, torch.arange(4), 9)


@pytest.mark.slow
def test_the_memory_of_the_compiled_loss_does_not_grow_with_the_micro_batch() -> None:
    script = ROOT / "tests" / "peak_of_loss.py"
    small, large = (
        float(succeed(script, rows, 128, processes=1, env={"PYTHONPATH": str(ROOT)}))
        for rows in (4096, 16384)
    )
    assert large < 1.1 * small, "with all logits, it would be five times as large"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_small_gradients_survive_16_bits_with_a_loss_scale(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    hidden = torch.randn(64, 16, requires_grad=True)
    weight = (torch.randn(3000, 16) * 0.1).requires_grad_()
    targets = torch.randint(3000, (64,))
    plain = F.cross_entropy(hidden @ weight.T, targets)
    expected = torch.autograd.grad(plain, (hidden, weight))
    with torch.autocast("cpu", dtype):
        scaled = head_loss(hidden, weight, targets, 3000) * 65536
    for found, wanted in zip(torch.autograd.grad(scaled, (hidden, weight)), expected, strict=True):
        error = (found / 65536 - wanted).norm() / wanted.norm()
        assert error < 0.02


@pytest.mark.parametrize(("threads", "has_onednn"), [(1, True), (2, True), (2, False)])
@pytest.mark.parametrize("rows", [1, 511, 513])
def test_the_losses_of_tokens_are_cross_entropies_however_logits_are_made(
    threads: int, has_onednn: bool, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One thread, two threads and a GPU take three ways."""
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: has_onednn)
    torch.set_num_threads(threads)
    hidden, padded, targets = torch.randn(rows, 32), torch.randn(192, 32), torch.arange(rows) % 130
    found = scoring.token_losses(hidden, padded[:130], targets)
    logits = hidden.double() @ padded[:130].double().T
    expected = F.cross_entropy(logits, targets, reduction="none").float()
    assert found.shape == (rows,)
    assert torch.allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.skipif(not shutil.which("c++"), reason="needs a C++ compiler")
def test_the_compiled_model_is_the_same_function() -> None:
    torch.manual_seed(0)
    model = GPT(GPTConfig(**SHAPE | {"n_layer": 2}, dropout=0.0))
    tokens = torch.randint(SHAPE["vocab_size"], (2, SHAPE["block_size"]))
    expected = model(tokens, next_tokens(tokens))
    expected_gradients = torch.autograd.grad(expected, list(model.parameters()))
    names = list(model.state_dict())
    model.compile_parts()
    found = model(tokens, next_tokens(tokens))
    gradients = torch.autograd.grad(found, list(model.parameters()))
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)
    assert list(model.state_dict()) == names
    for a, b in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
