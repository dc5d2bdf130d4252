"""Rotary positions in Triton: the table of a chunk, and how kernels turn what they load by it."""

import torch
import triton
import triton.language as tl
from torch import Tensor

TOKENS = 4  # of a program of the table


def rotary_table(positions: Tensor, frequencies: Tensor, axes: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    _, batch, time = positions.shape
    n = len(frequencies)
    cos, sin = (torch.empty(batch, time, 1, n, dtype=dtype, device=positions.device) for _ in range(2))
    with torch.cuda.device_of(positions):
        _table_kernel[(triton.cdiv(batch * time, TOKENS),)](
            positions, frequencies, axes, cos, sin, batch * time, time, *positions.stride(),
            N=n, BLOCK=triton.next_power_of_2(n), TOKENS=TOKENS,
        )  # fmt: skip
    return cos, sin


@triton.jit(do_not_specialize=["tokens", "time"])
def _table_kernel(
    positions, frequencies, axes, cos, sin, tokens, time, p_a, p_b, p_t,
    N: tl.constexpr, BLOCK: tl.constexpr, TOKENS: tl.constexpr,
):  # fmt: skip
    """A position is split at 2^16, so that both products are exact: see `eager.rotary`."""
    token, i = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS), tl.arange(0, BLOCK)
    b, t = (token // time).to(tl.int64), (token % time).to(tl.int64)
    mask = (token < tokens)[:, None] & (i < N)[None, :]
    axis = tl.load(axes + i, mask=i < N, other=0)
    f = tl.load(frequencies + i, mask=i < N, other=0.0).to(tl.float64)
    p = tl.load(positions + (b * p_b + t * p_t)[:, None] + (axis * p_a)[None, :], mask=mask, other=0)
    low = p & 0xFFFF
    x, y = (p - low).to(tl.float64) * f[None, :], low.to(tl.float64) * f[None, :]
    at = token.to(tl.int64)[:, None] * N + i[None, :]
    tl.store(cos + at, tl.cos(x) * tl.cos(y) - tl.sin(x) * tl.sin(y), mask=mask)
    tl.store(sin + at, tl.sin(x) * tl.cos(y) + tl.cos(x) * tl.sin(y), mask=mask)


@triton.jit
def turned(x, cos, sin, rows, tokens, mask, D: tl.constexpr):
    """[len(rows), D] of x at `rows`, turned by the angles cos, sin [tokens, D / 2] of `tokens`, in float32. cos None:
    as it is."""
    HALF: tl.constexpr = D // 2
    d = tl.arange(0, D)
    found = tl.load(x + rows[:, None] + d[None, :], mask=mask[:, None], other=0.0)
    if cos is not None:
        pair = tl.load(x + rows[:, None] + ((d + HALF) % D)[None, :], mask=mask[:, None], other=0.0)
        angle = tokens[:, None] * HALF + (d % HALF)[None, :]
        c = tl.load(cos + angle, mask=mask[:, None], other=0.0)
        s = tl.load(sin + angle, mask=mask[:, None], other=0.0)
        pair = pair.to(c.dtype)
        pair = tl.where((d < HALF)[None, :], -pair, pair)
        found = (found.to(c.dtype) * c + pair * s).to(found.dtype)
    return found
