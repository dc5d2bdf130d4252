"""Gated RMSNorm for inference in Triton: one pass over x and the gate, which may be a slice of a wider projection."""

import torch
import triton
import triton.language as tl
from torch import Tensor

ROWS = 4


def gated_rms_norm(x: Tensor, gate: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Raises NotImplementedError where a gradient is asked for, or for float64."""
    if x.dtype == torch.float64 or (torch.is_grad_enabled() and any(y.requires_grad for y in (x, gate, weight))):
        raise NotImplementedError("gated RMSNorm in Triton: no float64 and no gradient")
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    heads, width = x.shape[-2] if x.dim() > 1 else 1, x.shape[-1]
    x, gate = (y.reshape(-1, heads, width) for y in (x, gate))
    x, gate = (y if y.stride(-1) == 1 else y.contiguous() for y in (x, gate))
    rows = x.shape[0] * heads
    with torch.cuda.device_of(x):
        _norm_kernel[(triton.cdiv(rows, ROWS),)](
            x, gate, weight, out, rows, heads, *x.stride()[:2], *gate.stride()[:2], eps,
            V=width, BLOCK=triton.next_power_of_2(width), ROWS=ROWS,
        )  # fmt: skip
    return out


@triton.jit(do_not_specialize=["rows"])
def _norm_kernel(
    x, gate, weight, out, rows, heads, x_n, x_h, gate_n, gate_h, eps,
    V: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    row, column = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS), tl.arange(0, BLOCK)
    n, h = row // heads, row % heads
    mask = (row < rows)[:, None] & (column < V)[None, :]
    y = tl.load(x + (n * x_n + h * x_h)[:, None] + column[None, :], mask=mask, other=0.0).to(tl.float32)
    z = tl.load(gate + (n * gate_n + h * gate_h)[:, None] + column[None, :], mask=mask, other=0.0).to(tl.float32)
    w = tl.load(weight + column, mask=column < V, other=0.0).to(tl.float32)
    y *= tl.rsqrt(tl.sum(y * y, 1) / V + eps)[:, None] * w[None, :]
    tl.store(out + row[:, None] * V + column[None, :], y * z * tl.sigmoid(z), mask=mask)
