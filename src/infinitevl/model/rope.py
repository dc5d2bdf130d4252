"""Rotary positions that stay exact however far a stream has run, and the 3-D rule that numbers its tokens.

A frequency f is a float32 number. Splitting a position as p = 2^16 h + l makes both 2^16 h f and l f exact in float64
for |p| < 2^45, and cos(a + b) = cos a cos b - sin a sin b then gives the angle p f to float64 rounding, whatever
p is. (The float32 product p f is off by 0.06 rad at a million tokens.)
"""

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

HALF = 1 << 16


@lru_cache(maxsize=16)
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


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate x [B, T, H, D] by the angles of cos and sin [B, T, 1, D / 2], pairing i with i + D / 2."""
    first, second = x.to(cos.dtype).chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1).to(x.dtype)


def grid_positions(times: Sequence[int], height: int, width: int) -> Tensor:
    """Offsets [3, len(times) * height * width] of merged patches from where their image or video begins."""
    t = torch.tensor(times, dtype=torch.int64)[:, None, None].expand(-1, height, width)
    h = torch.arange(height)[None, :, None].expand_as(t)
    w = torch.arange(width)[None, None, :].expand_as(t)
    return torch.stack([t, h, w]).flatten(1)


class PositionRule:
    """Numbers the tokens of one sequence from 0, as the authors' implementation does.

    Text counts up. An image or video begins at next + run, run being the length of the text just before it
    (the authors' rule; Qwen2.5-VL's has no `+ run`). Text after it goes on at its largest position + 1.
    """

    def __init__(self) -> None:
        self.next = 0
        self.run = 0

    def text(self, length: int) -> Tensor:
        """[3, length]"""
        start, self.next, self.run = self.next, self.next + length, self.run + length
        return torch.arange(start, start + length).expand(3, -1)

    def vision(self, times: Sequence[int], height: int, width: int) -> Tensor:
        """[3, len(times) * height * width], for temporal offsets `times` and merged patches."""
        positions = self.next + self.run + grid_positions(times, height, width)
        self.next, self.run = int(positions.max()) + 1, 0
        return positions
