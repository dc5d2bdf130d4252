"""Weights of one input side by side: the same parameters, the same results."""

import copy
from pathlib import Path

import pytest
import torch
from torch import nn

from helpers import Model, assert_close, text_ids, tiny_model
from infinitevl.model.layers import MLP
from infinitevl.model.linear import join, joined


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
            weight, bias = joined(linears)  # pyright: ignore
            assert weight.shape[0] == sum(linear.out_features for linear in linears)
            assert (bias is None) == (linears[0].bias is None)
            whole = nn.functional.linear(x, weight, bias)
            assert_close(whole, torch.cat([linear(x) for linear in linears], -1), 1e-6)


def test_saved_and_loaded(model: Model, tmp_path: Path):
    ids = text_ids(1, 5)
    expected = logits(model, ids)
    join(model)
    model.save_pretrained(tmp_path)
    assert torch.equal(logits(Model.from_pretrained(tmp_path), ids), expected)
    other = tiny_model()
    join(other)
    other.load_state_dict(model.state_dict())
    assert all(is_joined(other))
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


def test_widths_are_aligned(tmp_path: Path):
    """Rows and columns of zeros, which are no part of the parameters."""
    mlp = MLP(16, 12, bias=True)
    plain, x = copy.deepcopy(mlp), torch.randn(5, 16)
    join(mlp)
    join(mlp)
    assert mlp.width == 64 and mlp.down_proj.weight.stride() == (64, 1)
    before, after = plain.state_dict(), mlp.state_dict()
    assert list(before) == list(after) and all(torch.equal(after[name], before[name]) for name in before)
    with torch.inference_mode():
        whole = joined((mlp.gate_proj, mlp.up_proj), mlp.width)
        assert whole is not None and whole[0].shape == (128, 16)
        assert_close(mlp(x, x), x + plain(x), 1e-6)
    mlp(x).sum().backward()
    plain(x).sum().backward()
    assert_close(mlp.up_proj.weight.grad, plain.up_proj.weight.grad, 1e-6)
    mlp.double()
    assert_close(mlp(x.double()), plain(x), 1e-5)


def test_aligned_weights_are_saved(tmp_path: Path):
    model = tiny_model(intermediate_size=44)
    ids = text_ids(1, 5)
    expected = logits(model, ids)
    join(model)
    assert_close(logits(model, ids), expected, 1e-5)
    model.save_pretrained(tmp_path)
    assert_close(logits(Model.from_pretrained(tmp_path).eval(), ids), expected, 1e-5)
