"""What lies between products at inference, in Triton: RMSNorm, sums of a split product's parts, SwiGLU's product."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from infinitevl.ops.rounding import Rounded
from infinitevl.ops.triton.fp8 import empty, put_row, takes_rounded, warps_of
from infinitevl.ops.triton.launch import launches

BLOCK = 1024


def rms_norm(x: Tensor, weight: Tensor, eps: float, *, rounded: bool = False) -> Tensor | Rounded:
    """Raises NotImplementedError where a gradient is asked for, for mixed dtypes and for float64."""
    check_norm(x, weight)
    rows = x.reshape(-1, x.shape[-1])
    rows = rows if rows.stride(1) == 1 else rows.contiguous()
    width, block = rows.shape[1], triton.next_power_of_2(rows.shape[1])
    out, scale = _place(rows, width, rounded)
    early, options = launches(x)
    with torch.cuda.device_of(x):
        _norm_kernel[(len(rows),)](
            rows, weight, out, scale, width, rows.stride(0), eps,
            BLOCK=block, EARLY=early, num_warps=warps_of(block), **options,
        )  # fmt: skip
    return with_shape(_result(out, scale), x.shape)


def check_norm(x: Tensor, weight: Tensor) -> None:
    """Raises NotImplementedError, see `rms_norm`."""
    if torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad):
        raise NotImplementedError("RMSNorm in Triton: it has no gradient")
    if x.dtype == torch.float64 or x.dtype != weight.dtype or torch.is_autocast_enabled(x.device.type):
        raise NotImplementedError("RMSNorm in Triton: x and weight must have one dtype, not float64, and keep it")


def with_shape(x: Tensor | Rounded, shape: torch.Size) -> Tensor | Rounded:
    """x [M, N] as [*shape[:-1], N]."""
    if isinstance(x, Rounded):
        return Rounded(x.values.view(*shape[:-1], -1), x.scale.view(shape[:-1]))
    return x.view(*shape[:-1], -1)


def _place(rows: Tensor, width: int, rounded: bool) -> tuple[Tensor, Tensor | None]:
    """For results [M, width] of rows [M, ...], with one for their scales where they are to be `Rounded`, and many."""
    if rounded and takes_rounded(rows, len(rows)):
        return empty(len(rows), width, rows.device)
    return torch.empty(len(rows), width, dtype=rows.dtype, device=rows.device), None


def _result(out: Tensor, scale: Tensor | None) -> Tensor | Rounded:
    return out if scale is None else Rounded(out, scale)


def add_parts(parts: Tensor, bias: Tensor | None, residual: Tensor | None, dtype: torch.dtype) -> Tensor:
    """residual + sum of parts + bias. parts: [P, M, N] float32; bias: [N]; residual: [M, N]. Returns [M, N]."""
    count, m, n = parts.shape
    out = torch.empty(m, n, dtype=dtype, device=parts.device)
    early, options = launches(parts)
    with torch.cuda.device_of(parts):
        _add_kernel[m, triton.cdiv(n, BLOCK)](
            parts, bias, residual, out, m, n, 0 if residual is None else residual.stride(0),
            PARTS=count, BLOCK=BLOCK, EARLY=early, **options,
        )  # fmt: skip
    return out


def add_norm(
    parts: Tensor, bias: Tensor | None, residual: Tensor, weight: Tensor, eps: float, rounded: bool = False
) -> tuple[Tensor, Tensor | Rounded]:
    """`add_parts` in the residual's dtype, and `rms_norm` of what that is, in one launch. parts may have any dtype."""
    count, m, n = parts.shape
    out, (normed, scale) = torch.empty(m, n, dtype=residual.dtype, device=parts.device), _place(residual, n, rounded)
    block, (early, options) = triton.next_power_of_2(n), launches(parts)
    with torch.cuda.device_of(parts):
        _add_norm_kernel[(m,)](
            parts, bias, residual, weight, out, normed, scale, m, n, residual.stride(0), eps,
            PARTS=count, BLOCK=block, EARLY=early, num_warps=warps_of(block), **options,
        )  # fmt: skip
    return out, _result(normed, scale)


def silu_product(x: Tensor, bias: Tensor | None = None, rounded: bool = False) -> Tensor | Rounded:
    """silu(gate) up, of x [M, 2 N] + bias [2 N] with gate and up side by side; rows of x may have a stride."""
    m, n = len(x), x.shape[1] // 2
    out, scale = _place(x, n, rounded)
    block = BLOCK if scale is None else triton.next_power_of_2(n)
    early, options = launches(x)
    with torch.cuda.device_of(x):
        _silu_kernel[m, triton.cdiv(n, block)](
            x, bias, out, scale, n, x.stride(0),
            BLOCK=block, EARLY=early, num_warps=max(4, warps_of(block)), **options,
        )  # fmt: skip
    return _result(out, scale)


@triton.jit
def _norm_kernel(x, weight, out, scale, N, x_row, eps, BLOCK: tl.constexpr, EARLY: tl.constexpr):
    row, column = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK)
    mask = column < N
    if EARLY:
        tl.extra.cuda.gdc_launch_dependents()
    w = tl.load(weight + column, mask=mask, other=0.0).to(tl.float32)
    if EARLY:
        tl.extra.cuda.gdc_wait()
    y = tl.load(x + row * x_row + column, mask=mask, other=0.0).to(tl.float32)
    y *= tl.rsqrt(tl.sum(y * y, 0) / N + eps) * w
    put_row(out, scale, row, column, y, N)


@triton.jit(do_not_specialize=["M"])
def _add_kernel(
    parts, bias, residual, out, M, N, residual_row, PARTS: tl.constexpr, BLOCK: tl.constexpr, EARLY: tl.constexpr
):
    row, column = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = column < N
    if EARLY:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    total = tl.zeros((BLOCK,), tl.float32)
    for part in tl.static_range(PARTS):
        total += tl.load(parts + (part * M + row) * N + column, mask=mask, other=0.0)
    if bias is not None:
        total += tl.load(bias + column, mask=mask, other=0.0).to(tl.float32)
    if residual is not None:
        total += tl.load(residual + row * residual_row + column, mask=mask, other=0.0).to(tl.float32)
    tl.store(out + row * N + column, total, mask=mask)


@triton.jit(do_not_specialize=["M"])
def _add_norm_kernel(
    parts, bias, residual, weight, out, normed, scale, M, N, residual_row, eps,
    PARTS: tl.constexpr, BLOCK: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    row, column = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK)
    mask = column < N
    if EARLY:
        tl.extra.cuda.gdc_launch_dependents()
    w = tl.load(weight + column, mask=mask, other=0.0).to(tl.float32)
    added = tl.zeros((BLOCK,), tl.float32)
    if bias is not None:
        added = tl.load(bias + column, mask=mask, other=0.0).to(tl.float32)
    if EARLY:
        tl.extra.cuda.gdc_wait()
    total = tl.zeros((BLOCK,), tl.float32)
    for part in tl.static_range(PARTS):
        total += tl.load(parts + (part * M + row) * N + column, mask=mask, other=0.0).to(tl.float32)
    total = total + added + tl.load(residual + row * residual_row + column, mask=mask, other=0.0).to(tl.float32)
    whole = total.to(out.dtype.element_ty)
    tl.store(out + row * N + column, whole, mask=mask)
    y = whole.to(tl.float32)
    put_row(normed, scale, row, column, y * (tl.rsqrt(tl.sum(y * y, 0) / N + eps) * w), N)


@triton.jit
def _silu_kernel(x, bias, out, scale, N, x_row, BLOCK: tl.constexpr, EARLY: tl.constexpr):
    row, column = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = column < N
    if EARLY:
        tl.extra.cuda.gdc_launch_dependents()
    gate, up = tl.zeros((BLOCK,), tl.float32), tl.zeros((BLOCK,), tl.float32)
    if bias is not None:
        gate = tl.load(bias + column, mask=mask, other=0.0).to(tl.float32)
        up = tl.load(bias + N + column, mask=mask, other=0.0).to(tl.float32)
    if EARLY:
        tl.extra.cuda.gdc_wait()
    gate += tl.load(x + row * x_row + column, mask=mask, other=0.0).to(tl.float32)
    up += tl.load(x + row * x_row + N + column, mask=mask, other=0.0).to(tl.float32)
    put_row(out, scale, row, column, gate * tl.sigmoid(gate) * up, N)
