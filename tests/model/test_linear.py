"""Weights of one input side by side: the same parameters, the same results."""

from pathlib import Path

import pytest
import torch
from torch import nn

from helpers import Model, assert_close, text_ids, tiny_config, tiny_model
from infinitevl import ops
from infinitevl.model.layers import MLP
from infinitevl.model.linear import join, joined, padded_width


@pytest.fixture
def model() -> Model:
    torch.manual_seed(0)
    return tiny_model()


def groups(model: Model) -> list[tuple[nn.Module, ...]]:
    found = [(m, names) for m in model.modules() for names in getattr(m, "joint", ())]
    return [tuple(getattr(module, name) for name in names) for module, names in found]


@torch.inference_mode()
def logits(model: Model, ids: torch.Tensor) -> torch.Tensor:
    return model(ids).logits


def is_joined(model: Model) -> list[bool]:
    """Widths are multiples of 8 here: nothing is padded."""
    with torch.no_grad():
        return [joined(linears) is not None for linears in groups(model)]


def test_same_parameters_same_results(model: Model):
    ids = text_ids(2, 9)
    expected, before = logits(model, ids), {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert len(groups(model)) == 12 and not any(is_joined(model))
    join(model)
    join(model)
    assert all(is_joined(model))
    after = model.state_dict()
    assert list(after) == list(before) and all(torch.equal(after[name], before[name]) for name in before)
    assert_close(logits(model, ids), expected, 1e-5)


def test_one_product(model: Model):
    """Their results are slices of one tensor, with biases and without."""
    join(model)
    x = torch.randn(2, 3, 32)
    with torch.inference_mode():
        for linears in groups(model):
            weight, bias, _ = joined(linears)  # pyright: ignore
            assert weight.shape[0] == sum(linear.out_features for linear in linears)
            assert (bias is None) == (linears[0].bias is None)
            whole = nn.functional.linear(x, weight, bias)
            assert_close(whole, torch.cat([linear(x) for linear in linears], -1), 1e-6)


def test_saved_and_loaded(tmp_path: Path):
    config = tiny_config()
    config.vision_config.intermediate_size = 27  # padded
    model, ids = Model(config), text_ids(1, 5)
    expected = logits(model, ids)
    join(model)
    model.save_pretrained(tmp_path)
    assert torch.equal(logits(Model.from_pretrained(tmp_path), ids), expected)
    other = Model(config)
    join(other)
    other.load_state_dict(model.state_dict())
    for (name, mine), theirs in zip(other.named_parameters(), model.parameters(), strict=True):
        assert torch.equal(mine, theirs), name
    assert_close(logits(other, ids), expected, 1e-5)


def test_moves(model: Model):
    """Another dtype takes the tensors apart, which is slower, not wrong."""
    ids = text_ids(1, 5)
    expected = logits(model, ids)
    join(model)
    model.double()
    assert not any(is_joined(model))
    assert_close(logits(model, ids), expected, 1e-5)
    join(model)
    assert all(is_joined(model))
    assert_close(logits(model, ids), expected, 1e-5)


@pytest.mark.parametrize("bias", [False, True])
def test_a_misaligned_width_is_padded(bias: bool):
    """In memory alone: names, shapes, results and what is saved stay."""
    mlp, other = MLP(16, 27, bias=bias), MLP(16, 27, bias=bias)
    other.load_state_dict(mlp.state_dict())
    x, residual = torch.randn(2, 5, 16), torch.randn(2, 5, 16)
    join(mlp)
    join(mlp)
    whole = joined_mlp(mlp)
    assert whole is not None and whole[0].shape == (128, 16) and mlp.down_proj.weight.shape == (16, 27)
    with torch.inference_mode():
        assert_close(mlp(x, residual), other(x, residual), 1e-6)
        mlp.down_proj.register_forward_hook(lambda *_: None)
        assert_close(mlp(x), other(x), 1e-6)
    for mine, theirs in zip(mlp.parameters(), other.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    mlp.double()
    assert joined_mlp(mlp) is None
    with torch.inference_mode():
        assert_close(mlp(x.double()), other(x), 1e-6)


def joined_mlp(mlp: MLP) -> tuple | None:
    with torch.no_grad():
        return joined((mlp.gate_proj, mlp.up_proj), padded_width(mlp.down_proj))


@pytest.mark.parametrize("frozen", [["gate_proj", "up_proj"], ["down_proj"], []])
def test_gradients_of_a_padded_mlp(frozen: list[str]):
    mlp, other = MLP(16, 27, bias=True), MLP(16, 27, bias=True)
    other.load_state_dict(mlp.state_dict())
    for module in (mlp, other):
        for name in frozen:
            getattr(module, name).requires_grad_(False)
    join(mlp)
    x = torch.randn(3, 16)
    for module in (mlp, other):
        module(x).square().sum().backward()
    for mine, theirs in zip(mlp.parameters(), other.parameters(), strict=True):
        assert (mine.grad is None) == (theirs.grad is None)
        assert mine.grad is None or torch.equal(mine.grad, theirs.grad)


def test_gradients_reach_each(model: Model):
    ids = text_ids(1, 5)
    join(model)
    model(ids, labels=ids).loss.backward()
    grads = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    other = Model(model.config)
    other.load_state_dict(model.state_dict())
    other(ids, labels=ids).loss.backward()
    expected = {name: p.grad for name, p in other.named_parameters() if p.grad is not None}
    assert grads.keys() == expected.keys()
    for name, grad in grads.items():
        assert torch.equal(grad, expected[name]), name


def test_wrapped_by_peft(model: Model):
    peft = pytest.importorskip("peft")
    ids = text_ids(1, 5)
    join(model)
    expected = logits(model, ids)
    wrapped = peft.get_peft_model(model, peft.LoraConfig(target_modules=["q_proj", "up_proj", "o_proj"], r=2))
    wrapped.eval()
    assert_close(logits(wrapped, ids), expected, 1e-5)
    for name, p in wrapped.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(p, std=0.3)
    changed = logits(wrapped, ids)
    assert (changed - expected).norm() > 0.01 * expected.norm()
    assert_close(logits(wrapped.merge_and_unload(), ids), changed, 1e-4)


def test_hooks_are_called(model: Model):
    join(model)
    called = []
    for layer in model.model.language_model.layers:
        layer.self_attn.k_proj.register_forward_hook(lambda *_: called.append(1))
        layer.mlp.down_proj.register_forward_pre_hook(lambda *_: called.append(1))
    logits(model, text_ids(1, 3))
    assert len(called) == 10


def test_a_block_norms_for_the_next_one(model: Model, monkeypatch: pytest.MonkeyPatch):
    """At inference every norm but the first is computed with the sum that it is of; where one is hooked, it runs."""
    ids, (pixels, grid), called, fused = text_ids(2, 9), (torch.randn(16, 1176), torch.tensor([[1, 4, 4]])), [], []

    def run() -> list[torch.Tensor]:
        called.clear()
        hidden = model(ids, output_hidden_states=True).hidden_states
        return [*hidden, model.get_image_features(pixels, grid)]

    plain = ops.linear_norm
    monkeypatch.setattr(ops, "linear_norm", lambda *args, **options: fused.append(1) or plain(*args, **options))
    with torch.no_grad():
        expected, separate = run(), len(fused)
    for hooked in (False, True):
        fused.clear()
        with torch.inference_mode():
            assert all(torch.equal(mine, theirs) for mine, theirs in zip(run(), expected, strict=True))
        blocks = len(model.model.language_model.layers) + len(model.model.visual.blocks)
        assert len(fused) == separate + blocks - hooked and len(called) == hooked
        model.model.language_model.norm.register_forward_hook(lambda *_: called.append(1))
