"""What the tests share: tiny random models whose outputs depend on everything, and ways to feed and compare them."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from infinitevl.model.configuration import InfiniteVLConfig
from infinitevl.model.modeling import InfiniteVLForConditionalGeneration as Model
from infinitevl.model.state import State

VOCABULARY, IMAGE, VIDEO, VISION_START, VISION_END = 96, 90, 91, 92, 93
TEXT_IDS = 90  # ids below are text
HYBRID = ("sliding_attention", "linear_attention", "linear_attention", "sliding_attention", "linear_attention")
MIXED = ("full_attention", "linear_attention", "sliding_attention", "linear_attention")
RELATIVE = {torch.float32: 1e-5, torch.float64: 1e-10}  # Frobenius, between two ways to compute the same thing

TEXT = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "num_linear_heads": 3, "linear_head_dim": 8, "expand_v": 2,
    "sliding_window": 32, "rope_theta": 1e4, "rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]},
}  # fmt: skip
VISION = {
    "depth": 2, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2, "out_hidden_size": 32,
    "fullatt_block_indexes": [1],
}  # fmt: skip


def tiny_config(layer_types: Sequence[str] = HYBRID, **text: Any) -> InfiniteVLConfig:
    text = {**TEXT, "layer_types": list(layer_types), "num_hidden_layers": len(layer_types), **text}
    return InfiniteVLConfig(
        text_config=text, vision_config=VISION, image_token_id=IMAGE, video_token_id=VIDEO,
        vision_start_token_id=VISION_START, vision_end_token_id=VISION_END, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip


@torch.no_grad()
def randomise(module: torch.nn.Module, std: float = 0.15) -> None:
    """Weights so large that no part of a small model can be cut unnoticed. Leaves A_log and dt_bias as they are."""
    for name, weight in module.named_parameters():
        if name.endswith("embed_tokens.weight"):
            weight.normal_(0, 0.3)
        elif "norm" in name or name.endswith("ln_q.weight"):
            weight.normal_(1, 0.1)
        elif not name.endswith(("A_log", "dt_bias")):
            weight.normal_(0, 0.5 if "conv1d" in name else std)


def tiny_model(layer_types: Sequence[str] = HYBRID, dtype: torch.dtype = torch.float32, **text: Any) -> Model:
    model = Model(tiny_config(layer_types, **text))
    randomise(model)
    return model.to(dtype).eval()


def text_ids(*shape: int) -> Tensor:
    return torch.randint(TEXT_IDS, shape)


def relative(found: Tensor, expected: Tensor) -> float:
    """Frobenius distance relative to `expected`, in float64. NaN wherever there is one."""
    assert found.shape == expected.shape, (found.shape, expected.shape)
    found, expected = found.detach().double(), expected.detach().double()
    return float((found - expected).norm() / expected.norm().clamp(min=1e-30))


def assert_close(found: Tensor, expected: Tensor, tolerance: float) -> None:
    """Frobenius, relative. (`not <=`, so that NaN fails.)"""
    distance = relative(found, expected)
    assert distance <= tolerance, f"{distance:.2e} > {tolerance:.0e}"


def assert_same_gradients(found: Iterable[Tensor], expected: Iterable[Tensor], tolerance: float) -> None:
    """float64. A gradient that is zero (of a gate that decays nothing, of the scores of one key) stays zero."""
    for mine, theirs in zip(found, expected, strict=True):
        if theirs.norm() < 1e-12:
            assert mine.norm() < 1e-12
        else:
            assert_close(mine, theirs, tolerance)


def assert_same_state(found: State, expected: State, tolerance: float = 0.0) -> None:
    mine, theirs = found.tensors(), expected.tensors()
    assert mine.keys() == theirs.keys()
    for name, tensor in mine.items():
        if tensor.dtype == torch.int64 or not tolerance:
            assert torch.equal(tensor, theirs[name]), name
        else:
            assert_close(tensor, theirs[name], tolerance)


def feed(model: Model, ids: Tensor, state: State, sizes: Iterable[int], **options: Any) -> Tensor:
    """Logits of ids [B, T], fed into `state` in chunks of these sizes."""
    pieces = ids.split(list(sizes), dim=1)
    return torch.cat([model(piece, past_key_values=state, **options).logits for piece in pieces], dim=1)


def even(total: int, size: int) -> list[int]:
    """`total` in pieces of `size`, the last maybe smaller."""
    return [min(size, total - start) for start in range(0, total, size)]


def poison(x: Tensor, lengths: Tensor | None) -> Tensor:
    """NaN at the padding of x [B, T, ...]."""
    if lengths is None:
        return x
    padding = torch.arange(x.shape[1], device=x.device) >= lengths[:, None].to(x.device)
    return x.masked_fill(padding.view(*padding.shape, *[1] * (x.dim() - 2)), float("nan"))


def unpad(x: Tensor, lengths: Tensor | None) -> Tensor:
    """The real tokens of x [B, T, ...], of all rows one after the other."""
    return (
        x.flatten(0, 1)
        if lengths is None
        else torch.cat([row[:n] for row, n in zip(x, lengths.tolist(), strict=True)])
    )


def segments(batch: int, time: int) -> Tensor:
    """Random seq_idx [B, T]: long sequences in the first row, short ones (some of one token) in the last."""
    rate = torch.linspace(0.02, 0.4, batch)[:, None]
    return (torch.rand(batch, time) < rate).cumsum(1)


def ragged(time: int) -> Tensor:
    """Lengths of 3 rows: full, partly padded, empty."""
    return torch.tensor([time, time * 2 // 3, 0])
