"""A model in float8: near the one that it was rounded from, and as exact as that one within itself."""

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import infinitevl
from helpers import Model, assert_close, even, feed, relative, text_ids, tiny_config, tiny_model
from infinitevl import ops
from infinitevl.benchmark.lost import quantised
from infinitevl.benchmark.measure import random_frames
from infinitevl.errors import InfiniteVLError
from infinitevl.model.fp8 import in_fp8, precision, quantise
from infinitevl.model.linear import Fp8Linear, Linear, join, joined
from infinitevl.model.random_model import random_model, write_random_checkpoint
from infinitevl.ops.rounding import FEW, FP8, Rounded
from interpreter import DEVICE

TYPICAL = 0.0265  # relative error of a rounded weight


@torch.inference_mode()
def logits(model: Model, ids: Tensor) -> Tensor:
    return model(ids).logits


def rounded(model: Model) -> Model:
    other = copy.deepcopy(model)
    quantise(other)
    return other.eval()


def test_as_near_as_rounding_allows():
    """As far off as with noise of that size in every weight: the arithmetic adds nothing to it."""
    model, ids = tiny_model(), text_ids(2, 40)
    other = rounded(model)
    assert in_fp8(other) and precision(other) == "fp8" and not in_fp8(model) and precision(model) == "float32"
    assert not any(type(module) in (Linear, nn.Linear) for module in other.modules())
    assert {w.dtype for w in other.parameters()} == {torch.float32, FP8} and other.dtype == torch.float32
    assert torch.equal(other.get_input_embeddings().weight, model.get_input_embeddings().weight)
    noisy = copy.deepcopy(model)
    for module in noisy.modules():
        if isinstance(module, nn.Linear):
            module.weight = nn.Parameter(module.weight * (1 + TYPICAL * torch.randn_like(module.weight)))
    expected = logits(model, ids)
    assert 0.6 < relative(logits(other, ids), expected) / relative(logits(noisy, ids), expected) < 1.5


@pytest.mark.parametrize("size", [1, 7, 40])
def test_streamed_is_offline(size: int):
    model, ids = rounded(tiny_model()), text_ids(2, 75)
    with torch.inference_mode():
        found = feed(model, ids, model.allocate_state(2), even(75, size))
    assert_close(found, logits(model, ids), 1e-5)


def test_joined_is_separate():
    """Widths of vision's MLP that are padded, too; the scales are side by side as the weights are."""
    config = tiny_config()
    config.vision_config.intermediate_size = 27
    model, ids = rounded(Model(config)), text_ids(2, 9)
    pixels, grid = torch.randn(16, 1176), torch.tensor([[1, 4, 4]])
    with torch.inference_mode():
        expected = logits(model, ids), model.get_image_features(pixels, grid)
        join(model)
        join(model)
        block, mlp = model.model.language_model.layers[1], model.model.visual.blocks[0].mlp
        assert joined([getattr(block.self_attn, name) for name in block.self_attn.joint[0]]) is not None
        whole = joined((mlp.gate_proj, mlp.up_proj), 64)
        assert whole is not None and whole.scale is not None and whole.weight.shape == (128, 32)
        assert not whole.scale.view(2, 64)[:, 27:].any()
        for found, wanted in zip((logits(model, ids), model.get_image_features(pixels, grid)), expected, strict=True):
            assert_close(found, wanted, 1e-5)


def test_kernels_round_what_goes_into_products(monkeypatch: pytest.MonkeyPatch):
    """Of many rows: what the Gated DeltaNet layers give, too, before it reaches their projection. That costs as much
    again as rounding the weights, and in the mean square less than twice."""
    pytest.importorskip("triton")
    sizes = {"num_attention_heads": 2, "linear_head_dim": 16, "num_linear_heads": 2}
    plain, ids = tiny_model(dtype=torch.bfloat16, **sizes).to(DEVICE), text_ids(1, FEW + 4).to(DEVICE)
    model = rounded(plain)
    expected, by_weights = logits(plain, ids), relative(logits(model, ids), logits(plain, ids))
    join(model)
    given, linear_norm = [], ops.linear_norm

    def watched(x: Tensor | Rounded, weight: Tensor, *rest, **options):
        given.append((weight.shape[1], isinstance(x, Rounded)))
        return linear_norm(x, weight, *rest, **options)

    monkeypatch.setattr(ops, "linear_norm", watched)
    with torch.inference_mode(), ops.using("triton"):
        found = model(ids, past_key_values=model.allocate_state(1)).logits
    delta = model.config.text_config.num_linear_heads * model.config.text_config.linear_value_dim
    kinds = model.config.text_config.layer_types
    assert [whether for width, whether in given if width == delta] == [True] * kinds.count("linear_attention")
    assert 0.5 * by_weights < relative(found, expected) < 2 * by_weights


def test_what_it_cannot_do(tmp_path: Path):
    model = rounded(tiny_model())
    with pytest.raises(InfiniteVLError, match="a model in fp8 cannot be trained: load it in bfloat16"):
        model.train()
    with pytest.raises(InfiniteVLError, match="a model in fp8 cannot be saved"):
        model.save_pretrained(tmp_path)


@pytest.mark.parametrize("name", ["fp8", torch.float8_e4m3fn])
def test_loading(tmp_path: Path, name: str | torch.dtype):
    """Weights in float8, everything else in bfloat16."""
    model = infinitevl.load(write_random_checkpoint(tmp_path / "model"), dtype=name)
    assert precision(model) == "fp8" and model.dtype == torch.bfloat16 and not model.training
    for module in model.modules():
        if isinstance(module, Fp8Linear):
            assert module.weight.dtype == FP8 and module.scale.dtype == torch.float32
    stream = model.stream()
    stream.see(random_frames(56)[0])
    assert list(stream.ask("What?", max_new_tokens=2))
    assert stream.state.nbytes == infinitevl.load(tmp_path / "model", dtype="bfloat16").allocate_state().nbytes


def test_what_is_lost():
    model = random_model(0, num_hidden_layers=2)
    lost = quantised(model, random_frames(56))
    assert in_fp8(model)
    assert 0.005 < lost.hidden < 0.1 and 0.005 < lost.logits < 0.1 and 0 < lost.same <= lost.tokens
    assert f"the same {lost.same} times" in str(lost)
    again = quantised(model, random_frames(56))
    assert (again.hidden, again.logits, again.same) == (0, 0, again.tokens)
