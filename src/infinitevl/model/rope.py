"""Rotary positions that stay exact however far a stream has run.

A frequency f is a float32 number. Splitting a position as p = 2^16 h + l makes both 2^16 h f and l f exact in float64
for |p| < 2^45, and cos(a + b) = cos a cos b - sin a sin b then gives the angle p f to float64 rounding, whatever
p is. (The float32 product p f is off by 0.06 rad at a million tokens.)
"""

from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor

from infinitevl.ops.rows import rotate

__all__ = ["frequencies", "rotary_table", "rotate"]

HALF = 1 << 16


@cache  # for ever: graphs read it
def frequencies(head_dim: int, theta: float, device: torch.device) -> Tensor:
    """[head_dim / 2] float32: theta^(-2i / head_dim), rounded as Qwen2.5-VL rounds it."""
    with torch.inference_mode(False):
        exponent = torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim
        return (1.0 / theta**exponent).to(device)


def rotary_table(
    positions: Tensor, head_dim: int, theta: float, sections: Sequence[int], dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """positions: [3, B, T] int64 (temporal, height, width) -> cos, sin: [B, T, 1, head_dim / 2] of `dtype`.

    Frequency i of section s uses axis s mod 3.
    """
    axis = [s % 3 for s, size in enumerate(sections) for _ in range(size)]
    p = torch.cat([positions[a : a + 1].expand(n, -1, -1) for a, n in _runs(axis)]).permute(1, 2, 0)
    f = frequencies(head_dim, theta, positions.device).double()
    low = p.remainder(HALF)
    a, b = (p - low).double() * f, low.double() * f
    cos = a.cos() * b.cos() - a.sin() * b.sin()
    sin = a.sin() * b.cos() + a.cos() * b.sin()
    return cos.to(dtype)[:, :, None], sin.to(dtype)[:, :, None]


def _runs(values: list[int]) -> list[tuple[int, int]]:
    """[0, 0, 1] -> [(0, 2), (1, 1)]"""
    runs: list[tuple[int, int]] = []
    for value in values:
        if runs and runs[-1][0] == value:
            runs[-1] = (value, runs[-1][1] + 1)
        else:
            runs.append((value, 1))
    return runs
