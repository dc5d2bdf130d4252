"""Queries and keys of one joint projection, turned where they lie."""

import torch
import triton
import triton.language as tl
from torch import Tensor

ROWS = 32  # heads of queries and keys of a program


def rotate_heads(qkv: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """In place. Raises NotImplementedError where a gradient is asked for, or for float64."""
    if qkv.dtype == torch.float64 or (torch.is_grad_enabled() and qkv.requires_grad) or not qkv.is_contiguous():
        raise NotImplementedError("rotation in Triton: contiguous, no float64 and no gradient")
    time, _, heads, width = qkv.shape
    rows = time * 2 * heads
    with torch.cuda.device_of(qkv):
        _rotate_kernel[(triton.cdiv(rows, ROWS),)](
            qkv, cos, sin, rows, heads, HALF=width // 2, BLOCK=triton.next_power_of_2(width // 2), ROWS=ROWS
        )
    q, k, v = qkv.unbind(1)
    return q, k, v


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
