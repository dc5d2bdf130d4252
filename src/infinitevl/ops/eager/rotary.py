"""Rotary positions that stay exact however far a stream has run.

A frequency f is a float32 number. Splitting a position as p = 2^16 h + l makes both 2^16 h f and l f exact in float64
for |p| < 2^45, and cos(a + b) = cos a cos b - sin a sin b then gives the angle p f to float64 rounding, whatever
p is. (The float32 product p f is off by 0.06 rad at a million tokens.)
"""

import torch
from torch import Tensor

HALF = 1 << 16


def rotary_table(positions: Tensor, frequencies: Tensor, axes: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    p, f = positions.index_select(0, axes).permute(1, 2, 0), frequencies.double()
    low = p.remainder(HALF)
    a, b = (p - low).double() * f, low.double() * f
    cos = a.cos() * b.cos() - a.sin() * b.sin()
    sin = a.sin() * b.cos() + a.cos() * b.sin()
    return cos.to(dtype)[:, :, None], sin.to(dtype)[:, :, None]
