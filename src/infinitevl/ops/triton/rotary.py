"""Rotary positions in Triton: the table of a chunk, and queries and keys turned by it."""

import torch
import triton
import triton.language as tl
from torch import Tensor

TOKENS = 4  # of a program of the table
ROWS = 16  # heads of tokens of a program that turns them


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


def rotated(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """`ops.rows.rotate` of q [B, T, H, D] and k [B, T, G, D], both contiguous afterwards."""
    (batch, time, heads, width), groups = q.shape, k.shape[2]
    q, k = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k))
    out_q, out_k = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k))
    _rotate_kernel[triton.cdiv(time * (heads + groups), ROWS), batch](
        q, k, cos.contiguous(), sin.contiguous(), out_q, out_k, time, heads, groups, *q.stride()[:3], *k.stride()[:3],
        HALF=width // 2, ROWS=ROWS,
    )  # fmt: skip
    return out_q, out_k


@triton.jit(do_not_specialize=["time"])
def _rotate_kernel(
    q, k, cos, sin, out_q, out_k, time, heads, groups, q_b, q_t, q_h, k_b, k_t, k_g,
    HALF: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    b = tl.program_id(1).to(tl.int64)
    row, d = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.arange(0, HALF)
    t, h = (row // (heads + groups)).to(tl.int64), row % (heads + groups)
    real = (t < time)[:, None]
    angle = (b * time + t)[:, None] * HALF + d[None, :]
    c, s = tl.load(cos + angle, mask=real, other=0.0), tl.load(sin + angle, mask=real, other=0.0)
    at = (b * q_b + t * q_t + h * q_h)[:, None] + d[None, :]
    to = ((b * time + t) * heads + h)[:, None] * (2 * HALF) + d[None, :]
    _turn(q, out_q, at, to, c, s, real & (h < heads)[:, None], HALF)
    g = h - heads
    at = (b * k_b + t * k_t + g * k_g)[:, None] + d[None, :]
    to = ((b * time + t) * groups + g)[:, None] * (2 * HALF) + d[None, :]
    _turn(k, out_k, at, to, c, s, real & (g >= 0)[:, None], HALF)


@triton.jit
def _turn(x, out, at, to, c, s, mask, HALF: tl.constexpr):
    first = tl.load(x + at, mask=mask, other=0.0).to(c.dtype)
    second = tl.load(x + at + HALF, mask=mask, other=0.0).to(c.dtype)
    tl.store(out + to, first * c - second * s, mask=mask)
    tl.store(out + to + HALF, second * c + first * s, mask=mask)
