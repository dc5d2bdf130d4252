"""Rotary positions: the frequencies of a model, the axes that they follow, and the table that they give."""

from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor

from infinitevl import ops


@cache  # for ever: graphs read it
def frequencies(head_dim: int, theta: float, device: torch.device) -> Tensor:
    """[head_dim / 2] float32: theta^(-2i / head_dim), rounded as Qwen2.5-VL rounds it."""
    with torch.inference_mode(False):
        exponent = torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim
        return (1.0 / theta**exponent).to(device)


@cache  # for ever: graphs read it
def axes(sections: tuple[int, ...], device: torch.device) -> Tensor:
    """[sum of sections] int64: the axis s mod 3 of every frequency of section s."""
    with torch.inference_mode(False):
        return torch.tensor([s % 3 for s, size in enumerate(sections) for _ in range(size)], device=device)


def rotary_table(
    positions: Tensor, head_dim: int, theta: float, sections: Sequence[int], dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """positions: [3, B, T] int64 (temporal, height, width) -> cos, sin: [B, T, 1, head_dim / 2] of `dtype`.

    Frequency i of section s uses axis s mod 3.
    """
    device = positions.device
    return ops.rotary_table(positions, frequencies(head_dim, theta, device), axes(tuple(sections), device), dtype)
