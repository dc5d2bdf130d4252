"""Queries and keys of one joint projection, turned where they lie."""

import torch
import triton
import triton.language as tl
from torch import Tensor

ROWS = 32  # heads of queries and keys of a program


def rotate_heads(qkv: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values [T, H, D] of qkv [T, 3, H, D], which is changed: queries and keys are turned by the
    angles of cos and sin [T, 1, D / 2], which pair i with i + D / 2. For what is not `unsupported`."""
    time, _, heads, width = qkv.shape
    rows = time * 2 * heads
    with torch.cuda.device_of(qkv):
        _rotate_kernel[(triton.cdiv(rows, ROWS),)](
            qkv, cos, sin, rows, heads, HALF=width // 2, BLOCK=triton.next_power_of_2(width // 2), ROWS=ROWS
        )
    q, k, v = qkv.unbind(1)
    return q, k, v


def unsupported(qkv: Tensor) -> str | None:
    """Why these kernels cannot take such inputs; None where they can."""
    if torch.is_grad_enabled() and qkv.requires_grad:
        return "it has no gradient"
    return "contiguous, and no float64" if qkv.dtype == torch.float64 or not qkv.is_contiguous() else None


@triton.jit(do_not_specialize=["rows"])
def _rotate_kernel(qkv, cos, sin, rows, heads, HALF: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr):
    row, d = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.arange(0, BLOCK)
    t = (row // (2 * heads)).to(tl.int64)
    mask = (row < rows)[:, None] & (d < HALF)[None, :]
    angle = t[:, None] * HALF + d[None, :]
    c, s = tl.load(cos + angle, mask=mask, other=0.0), tl.load(sin + angle, mask=mask, other=0.0)
    at = qkv + (t * 3 * heads + row % (2 * heads))[:, None] * (2 * HALF) + d[None, :]
    first = tl.load(at, mask=mask, other=0.0).to(tl.float32)
    second = tl.load(at + HALF, mask=mask, other=0.0).to(tl.float32)
    tl.store(at, first * c - second * s, mask=mask)
    tl.store(at + HALF, second * c + first * s, mask=mask)
