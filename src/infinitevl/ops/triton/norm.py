"""Gated RMSNorm for inference in Triton: one pass over x and the gate, which may be a slice of a wider projection."""

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from infinitevl.ops.rounding import Rounded
from infinitevl.ops.triton.fp8 import empty, scale_of, warps_of
from infinitevl.ops.triton.launch import launches
from infinitevl.ops.triton.pointwise import with_shape

ROWS = 4  # of a program, which has those of a whole token where that is rounded


def gated_rms_norm(x: Tensor, gate: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Raises NotImplementedError where a gradient is asked for, or for float64."""
    if x.dtype == torch.float64 or (torch.is_grad_enabled() and any(y.requires_grad for y in (x, gate, weight))):
        raise NotImplementedError("gated RMSNorm in Triton: no float64 and no gradient")
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    heads, width = x.shape[-2] if x.dim() > 1 else 1, x.shape[-1]
    x, gate = (y.reshape(1, -1, heads, width) for y in (x, gate))
    x, gate = (y if y.stride(-1) == 1 else y.contiguous() for y in (x, gate))
    _launch(x, gate, weight, eps, None, None, out, ROWS)
    return out


def norm_real_tokens(
    x: Tensor,
    gate: Tensor,
    weight: Tensor,
    eps: float,
    slots: Tensor | None,
    lengths: Tensor | None,
    rounded: bool,
) -> Tensor | Rounded:
    """Gated RMSNorm of x [B, T, H, V], [B, T, H V]: in place, or every token as a row of `Rounded`. Zeros where there
    is padding and in rows with a negative slot.

    The gate is older than the kernel that makes x: it was there when that began, and is read before x is ready.
    """
    batch, time, heads, width = x.shape
    if not rounded:
        _launch(x, gate, weight, eps, slots, lengths, x, ROWS, ahead=True)
        return x.flatten(2)
    out = empty(batch * time, heads * width, x.device)
    _launch(x, gate, weight, eps, slots, lengths, out.values, heads, out.scale, ahead=True)
    return with_shape(out, x.shape[:3])


def _launch(
    x: Tensor, gate: Tensor, weight: Tensor, eps: float, slots, lengths, out: Tensor, step: int,
    scale: Tensor | None = None, ahead: bool = False,
) -> None:  # fmt: skip
    """x, gate: [B, T, H, V], the tokens of all rows at one stride. step: rows of heads for a program, all of which
    share a number of scale, where there is one. ahead: the gate may be read before `gdc_wait`."""
    batch, time, heads, width = x.shape
    rows, block = triton.next_power_of_2(step), triton.next_power_of_2(width)
    early, options = launches(x)
    with torch.cuda.device_of(x):
        _norm_kernel[(triton.cdiv(batch * time * heads, step),)](
            x, gate, weight, slots, lengths, out, scale, batch * time * heads, time, heads, step,
            *x.stride()[1:3], *gate.stride()[1:3], eps, V=width, BLOCK=block, ROWS=rows, EARLY=early,
            AHEAD=early and ahead, num_warps=max(4, warps_of(rows * block)), **options,
        )  # fmt: skip


@triton.jit(do_not_specialize=["rows", "T"])
def _norm_kernel(
    x, gate, weight, slots, lengths, out, scale, rows, T, heads, step, x_n, x_h, gate_n, gate_h, eps,
    V: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr, EARLY: tl.constexpr, AHEAD: tl.constexpr,
):  # fmt: skip
    if EARLY and not AHEAD:
        gdc_wait()
        gdc_launch_dependents()
    i, column = tl.arange(0, ROWS), tl.arange(0, BLOCK)
    row = tl.program_id(0).to(tl.int64) * step + i
    n, h = row // heads, row % heads
    inside = (i < step) & (row < rows)
    real = inside
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
    y = y * z * tl.sigmoid(z)
    if scale is not None:
        s = scale_of(tl.max(tl.max(tl.abs(y), 1), 0))
        tl.store(scale + tl.program_id(0), s)
        y /= s
    y = y.to(out.dtype.element_ty)
    tl.store(out + row[:, None] * V + column[None, :], y, mask=inside[:, None] & (column < V)[None, :])
