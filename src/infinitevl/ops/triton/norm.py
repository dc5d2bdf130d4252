"""Gated RMSNorm for inference in Triton: one pass over x and the gate, which may be a slice of a wider projection."""

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from infinitevl.ops.triton.launch import launches

ROWS = 4  # of a program


def gated_rms_norm(x: Tensor, gate: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Raises NotImplementedError where a gradient is asked for, or for float64."""
    if x.dtype == torch.float64 or (torch.is_grad_enabled() and any(y.requires_grad for y in (x, gate, weight))):
        raise NotImplementedError("gated RMSNorm in Triton: no float64 and no gradient")
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    heads, width = x.shape[-2] if x.dim() > 1 else 1, x.shape[-1]
    x, gate = (y.reshape(1, -1, heads, width) for y in (x, gate))
    x, gate = (y if y.stride(-1) == 1 else y.contiguous() for y in (x, gate))
    _launch(x, gate, weight, eps, None, None, out)
    return out


def norm_real_tokens(
    x: Tensor, gate: Tensor, weight: Tensor, eps: float, slots: Tensor | None, lengths: Tensor | None
) -> Tensor:
    """Gated RMSNorm of x [B, T, H, V] in place; zeros where there is padding and in rows with a negative slot.

    The gate is older than the kernel that makes x: it was there when that began, and is read before x is ready.
    """
    _launch(x, gate, weight, eps, slots, lengths, x, ahead=True)
    return x


def _launch(
    x: Tensor, gate: Tensor, weight: Tensor, eps: float, slots, lengths, out: Tensor, ahead: bool = False
) -> None:
    """x, gate: [B, T, H, V], the tokens of all rows at one stride. ahead: the gate may be read before `gdc_wait`."""
    batch, time, heads, width = x.shape
    rows = batch * time * heads
    early, options = launches(x)
    with torch.cuda.device_of(x):
        _norm_kernel[(triton.cdiv(rows, ROWS),)](
            x, gate, weight, slots, lengths, out, rows, time, heads, *x.stride()[1:3], *gate.stride()[1:3], eps,
            V=width, BLOCK=triton.next_power_of_2(width), ROWS=ROWS, EARLY=early, AHEAD=early and ahead, **options,
        )  # fmt: skip


@triton.jit(do_not_specialize=["rows", "T"])
def _norm_kernel(
    x, gate, weight, slots, lengths, out, rows, T, heads, x_n, x_h, gate_n, gate_h, eps,
    V: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr, EARLY: tl.constexpr, AHEAD: tl.constexpr,
):  # fmt: skip
    if EARLY and not AHEAD:
        gdc_wait()
        gdc_launch_dependents()
    row, column = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS), tl.arange(0, BLOCK)
    n, h = row // heads, row % heads
    real = row < rows
    if lengths is not None:
        real = real & (n % T < tl.load(lengths + n // T, mask=real, other=0))
    if slots is not None:
        real = real & (tl.load(slots + n // T, mask=real, other=-1) >= 0)
    mask = real[:, None] & (column < V)[None, :]
    z = tl.load(gate + (n * gate_n + h * gate_h)[:, None] + column[None, :], mask=mask, other=0.0).to(tl.float32)
    w = tl.load(weight + column, mask=column < V, other=0.0).to(tl.float32)
    if AHEAD:
        gdc_wait()
        gdc_launch_dependents()
    y = tl.load(x + (n * x_n + h * x_h)[:, None] + column[None, :], mask=mask, other=0.0).to(tl.float32)
    y *= tl.rsqrt(tl.sum(y * y, 1) / V + eps)[:, None] * w[None, :]
    tl.store(
        out + row[:, None] * V + column[None, :],
        y * z * tl.sigmoid(z),
        mask=(row < rows)[:, None] & (column < V)[None, :],
    )
