"""Linear maps in Triton, for the shapes that cuBLAS is slow at: one row (a decoded token), a few rows (tokens of many
streams), and in float8 frames where the weight has few rows. The rest stays with cuBLAS.

One row: no tensor cores, a program sums whole rows of the weight, which is read once, 16 bytes a thread.
More: tiles of out^T = weight x^T, so that the weight is the wide side of the tensor cores' product however few the
rows of x are. Where that gives too few tiles for the processors, K is split and a second kernel adds the parts up.
Weights in float8 become x's dtype in registers, where x is not `Rounded`, too; the sums get the scales.

Every launch may begin before the one before it has ended (`launches`), and loads weights meanwhile: they must not be
results of the kernels of this package.
"""

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional as F

from infinitevl.ops.rounding import FEW, Rounded
from infinitevl.ops.triton.fp8 import TILED, product, round_rows, unfit
from infinitevl.ops.triton.launch import launches
from infinitevl.ops.triton.pointwise import add_norm, add_parts, check_norm, rms_norm, silu_product, with_shape


@dataclass(frozen=True)
class Rows:
    """A product with one row: rows of the weight in a program, columns that it takes at once, warps."""

    block_n: int = 2
    block_k: int = 1024
    warps: int = 4


@dataclass(frozen=True)
class Tiles:
    """Sizes of a tile in M, N and K, parts that K is split in, and Triton's launch options."""

    block_m: int
    block_n: int
    block_k: int
    splits: int = 1
    warps: int = 4
    stages: int = 4


def linear(
    x: Tensor | Rounded,
    weight: Tensor,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    scale: Tensor | None = None,
) -> Tensor:
    """Raises NotImplementedError for what is `unsupported`."""
    rows = _rows(x, weight, bias, residual, scale)
    plan = plan_of(rows.shape[0], *weight.shape, fp8=scale is not None)
    if residual is not None:
        residual = residual.reshape(-1, len(weight))
    return multiply(rows, weight, bias, residual, scale, plan=plan).view(*x.shape[:-1], -1)


def linear_norm(
    x: Tensor | Rounded,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor,
    scale: Tensor | None,
    norm: Tensor,
    eps: float,
    *,
    rounded: bool = False,
) -> tuple[Tensor, Tensor | Rounded]:
    """A kernel that adds the residual alone norms, too. Raises NotImplementedError for what is `unsupported`."""
    rows, shape = _rows(x, weight, bias, residual, scale), residual.shape
    check_norm(residual, norm)
    plan, residual = plan_of(rows.shape[0], *weight.shape, fp8=scale is not None), residual.reshape(-1, len(weight))
    if plan is None:
        y, normed = add_norm(_library(rows, weight, bias, scale)[None], None, residual, norm, eps, rounded)
    elif isinstance(plan, Tiles) and plan.splits > 1:
        with torch.cuda.device_of(weight):
            parts = _tiles(rows, weight, None, None, scale, plan, False)
        y, normed = add_norm(parts, bias, residual, norm, eps, rounded)
    else:
        y = multiply(rows, weight, bias, residual, scale, plan=plan)
        normed = rms_norm(y, norm, eps, rounded=rounded)
    return y.view(shape), with_shape(normed, shape)


def swiglu(
    x: Tensor | Rounded,
    weight: Tensor,
    bias: Tensor | None = None,
    scale: Tensor | None = None,
    *,
    rounded: bool = False,
) -> Tensor | Rounded:
    """Raises NotImplementedError for what is `unsupported`."""
    rows = _rows(x, weight, bias, None, scale)
    size, fp8 = (rows.shape[0], *weight.shape), scale is not None
    plan = plan_of(*size, gated=True, fp8=fp8)
    if plan is None:
        y = multiply(rows, weight, None, None, scale, plan=plan_of(*size, fp8=fp8))
        return with_shape(silu_product(y, bias, rounded), x.shape)
    return multiply(rows, weight, bias, None, scale, plan=plan, gated=True).view(*x.shape[:-1], -1)


def unsupported(
    x: Tensor | Rounded, weight: Tensor, bias: Tensor | None, residual: Tensor | None, scale: Tensor | None
) -> str | None:
    """Why these kernels cannot take such inputs; None where they can."""
    tensors = [y for y in (x, bias, residual, weight if scale is None else None) if isinstance(y, Tensor)]
    if torch.is_grad_enabled() and any(y.requires_grad for y in tensors):
        return "it has no gradient"
    if any(y.dtype != torch.bfloat16 for y in tensors):
        return "everything must be bfloat16"
    if any(y.stride(-1) != 1 for y in (*tensors, weight)):
        return "the last dimension must be contiguous"
    if scale is not None and (reason := unfit(x.shape[:-1].numel(), weight)):
        return reason
    return "autocast chooses dtypes" if torch.is_autocast_enabled(weight.device.type) else None


def plan_of(m: int, n: int, k: int, gated: bool = False, fp8: bool = False) -> Rows | Tiles | None:
    """From the shapes alone, as measured on an H100 and an H200; None is cuBLAS, or, where gated, the plan of the
    product alone. n counts gate and up."""
    if fp8 and m > FEW:
        return _tiles_of_fp8(m, n, k, gated)
    if m == 1:
        return _rows_of(n, k, gated, fp8)
    if 1 < m <= 16:
        return Tiles(16, 64, 128, splits=4) if k >= 8192 else Tiles(16, 64, 128, stages=4 if gated else 6)
    if 16 < m <= 32:
        if n >= 8192 and not gated:
            return Tiles(32, 128, 128, warps=8, stages=3)
        return Tiles(32, 64, 128, splits=4 if k >= 4096 else 1)
    if 32 < m <= 64:
        return Tiles(64, 128, 64, warps=8) if gated else Tiles(64, 64, 64, splits=4 if n <= 2048 else 1, stages=6)
    return None


def _tiles_of_fp8(m: int, n: int, k: int, gated: bool) -> Tiles | None:
    """Up to TILED rows whatever the weight is; of more, where cuBLAS has too few tiles for the processors, or, of
    short rows, is long at their ends."""
    if m <= TILED:
        block, splits = 32 if m <= 32 else 64, 4 if n <= 2048 and not gated else 1
        return Tiles(block, 64, 128, splits=splits, stages=4 if gated else 6)
    if m <= 256 and n <= 2560 and not gated:
        return Tiles(128, 64, 128, splits=2, stages=6) if k >= 4096 else Tiles(64, 64, 128, stages=5)
    if 256 < m <= 1024 and n <= 1280:
        return Tiles(128, 64, 128)
    return Tiles(128, 128, 128, warps=8, stages=3) if 512 < m <= 1024 and k <= 1280 else None


def _rows_of(n: int, k: int, gated: bool, fp8: bool) -> Rows:
    """What reads a weight fastest."""
    if not fp8:
        return Rows(1) if gated else Rows(1, 2048) if k >= 8192 else Rows()
    if k >= 4096:
        return Rows(1, 4096 if k >= 8192 else 2048)
    if gated:
        return Rows(2, warps=2)
    return Rows(4, warps=2) if n >= 8192 else Rows(2, 2048)


def multiply(
    x: Any,
    weight: Tensor,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    scale: Tensor | None = None,
    *,
    plan: Rows | Tiles | None,
    gated: bool = False,
) -> Tensor:
    """`ops.linear`, or `ops.swiglu` where gated, which needs a plan, of x [M, K] and residual [M, N].
    x: Tensor, or `Rounded` for tiles and cuBLAS, which needs it with a weight in float8."""
    if plan is None:
        y = _library(x, weight, bias, scale)
        return y if residual is None else residual + y
    run = _one_row if isinstance(plan, Rows) else _tiles
    with torch.cuda.device_of(weight):
        y = run(x, weight, bias, residual, scale, plan, gated)
        return y if y.dim() == 2 else add_parts(y, bias, residual, _dtype(x))


def _rows(
    x: Tensor | Rounded, weight: Tensor, bias: Tensor | None, residual: Tensor | None, scale: Tensor | None
) -> Tensor | Rounded:
    """[M, K], rounded where a weight in float8 is multiplied with many."""
    reason = unsupported(x, weight, bias, residual, scale)
    if reason:
        raise NotImplementedError(f"linear maps in Triton: {reason}")
    if isinstance(x, Rounded):
        return Rounded(x.values.reshape(-1, x.shape[-1]), x.scale.reshape(-1))
    rows = x.reshape(-1, x.shape[-1])
    return rows if scale is None or len(rows) <= FEW else round_rows(rows)


def _dtype(x: Any) -> torch.dtype:
    """Of what comes of it."""
    return torch.bfloat16 if isinstance(x, Rounded) else x.dtype


def _library(x: Any, weight: Tensor, bias: Tensor | None, scale: Tensor | None) -> Tensor:
    """By cuBLAS. x: `Rounded` where there is a scale of the weight."""
    if scale is None:
        return F.linear(x, weight, bias)
    return product(x, weight, bias, scale)


def _one_row(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    scale: Tensor | None,
    plan: Rows,
    gated: bool,
) -> Tensor:
    n, k = len(weight) // (2 if gated else 1), x.shape[1]
    out = torch.empty(1, n, dtype=x.dtype, device=x.device)
    early, options = launches(x)
    _row_kernel[(triton.cdiv(n, plan.block_n),)](
        x, weight, scale, bias, residual, out, n, weight.stride(0),
        K=k, GATED=gated, BLOCK_N=plan.block_n, BLOCK_K=plan.block_k, EARLY=early, num_warps=plan.warps, **options,
    )  # fmt: skip
    return out


def _tiles(
    x: Any,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    scale: Tensor | None,
    plan: Tiles,
    gated: bool,
) -> Tensor:
    """[M, N], or where K is split the parts of the product alone, [splits, M, N] float32."""
    (m, k), n = x.shape, len(weight) // (2 if gated else 1)
    whole = plan.splits == 1
    shape, dtype = ((m, n), _dtype(x)) if whole else ((plan.splits, m, n), torch.float32)
    x, x_scale = x if isinstance(x, Rounded) else (x, None)
    out = torch.empty(shape, dtype=dtype, device=x.device)
    early, options = launches(x)
    _tile_kernel[triton.cdiv(n, plan.block_n), triton.cdiv(m, plan.block_m), plan.splits](
        x, x_scale, weight, scale, bias if whole else None, residual if whole else None, out, m, n, k,
        x.stride(0), weight.stride(0), 0 if residual is None else residual.stride(0),
        GATED=gated, SPLITS=plan.splits, BLOCK_M=plan.block_m, BLOCK_N=plan.block_n, BLOCK_K=plan.block_k,
        EARLY=early, num_warps=plan.warps, num_stages=plan.stages, **options,
    )  # fmt: skip
    return out


@triton.jit
def _row_kernel(
    x, weight, scale, bias, residual, out, N, w_row,
    K: tl.constexpr, GATED: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """out[n] = residual[n] + bias[n] + scale[n] sum_k x[k] weight[n, k]. GATED: the weight has 2 N rows, and
    out[n] = residual[n] + silu(y[n]) y[N + n]. The next columns of the weight are on their way while these are added.

    The loop is unrolled: what a loop carries in float8 takes a register a number, and as many instructions to part.
    """
    rows, k = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_K)
    safe = tl.minimum(rows, N - 1).to(tl.int64)
    at = weight + safe[:, None] * w_row + k[None, :]
    up_at = weight + (N + safe)[:, None] * w_row + k[None, :]
    next_w = _columns(at, 0, K, BLOCK_K)
    if GATED:
        next_up = _columns(up_at, 0, K, BLOCK_K)
    if EARLY:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    total = tl.zeros((BLOCK_N, BLOCK_K), tl.float32)
    up_total = tl.zeros((BLOCK_N, BLOCK_K), tl.float32)
    for first in tl.static_range(0, K, BLOCK_K):
        y = _columns(x + k[None, :], first, K, BLOCK_K)
        w = next_w
        if GATED:
            up_w = next_up
        if first + BLOCK_K < K:
            next_w = _columns(at, first + BLOCK_K, K, BLOCK_K)
            if GATED:
                next_up = _columns(up_at, first + BLOCK_K, K, BLOCK_K)
        y = y.to(tl.float32)
        total += w.to(tl.float32) * y
        if GATED:
            up_total += up_w.to(tl.float32) * y
    y, real = tl.sum(total, 1), rows < N
    if scale is not None:
        y *= tl.load(scale + rows, mask=real, other=0.0)
    if bias is not None:
        y += tl.load(bias + rows, mask=real, other=0.0).to(tl.float32)
    if GATED:
        up = tl.sum(up_total, 1)
        if scale is not None:
            up *= tl.load(scale + N + rows, mask=real, other=0.0)
        if bias is not None:
            up += tl.load(bias + N + rows, mask=real, other=0.0).to(tl.float32)
        y *= tl.sigmoid(y) * up
    if residual is not None:
        y += tl.load(residual + rows, mask=real, other=0.0).to(tl.float32)
    tl.store(out + rows, y, mask=real)


@triton.jit
def _columns(at, first: tl.constexpr, K: tl.constexpr, BLOCK_K: tl.constexpr):
    """[rows, BLOCK_K] from column `first`, zeros after column K."""
    if first + BLOCK_K <= K:
        y = tl.load(at + first)
    else:
        y = tl.load(at + first, mask=(tl.arange(0, BLOCK_K) < K - first)[None, :], other=0.0)
    return y


@triton.jit(do_not_specialize=["M"])
def _tile_kernel(
    x, x_scale, weight, scale, bias, residual, out, M, N, K, x_row, w_row, residual_row,
    GATED: tl.constexpr, SPLITS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    EARLY: tl.constexpr,
):  # fmt: skip
    """As `_row_kernel`, of M rows; x_scale: [M], those of rows in float8. SPLITS > 1: out is [SPLITS, M, N] float32,
    each the sum over a part of K."""
    n, m = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N), tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    split, k = tl.program_id(2), tl.arange(0, BLOCK_K)
    safe = tl.minimum(n, N - 1).to(tl.int64)
    w_at = weight + safe[:, None] * w_row + k[None, :]
    up_at = weight + (N + safe)[:, None] * w_row + k[None, :]
    x_at = x + tl.minimum(m, M - 1).to(tl.int64)[:, None] * x_row + k[None, :]
    blocks = tl.cdiv(K, BLOCK_K)
    first, last = split * blocks // SPLITS, (split + 1) * blocks // SPLITS
    if EARLY:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    total = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
    up_total = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
    for block in range(first, last):
        real = (k < K - block * BLOCK_K)[None, :]
        y = tl.trans(tl.load(x_at + block * BLOCK_K, mask=real & (m < M)[:, None], other=0.0))
        w = tl.load(w_at + block * BLOCK_K, mask=real, other=0.0)
        total = tl.dot(_as(w, y.dtype), y, total, input_precision="tf32x3")
        if GATED:
            w = tl.load(up_at + block * BLOCK_K, mask=real, other=0.0)
            up_total = tl.dot(_as(w, y.dtype), y, up_total, input_precision="tf32x3")
    if scale is not None:
        total *= tl.load(scale + n, mask=n < N, other=0.0)[:, None]
        if GATED:
            up_total *= tl.load(scale + N + n, mask=n < N, other=0.0)[:, None]
    if x_scale is not None:
        s = tl.load(x_scale + m, mask=m < M, other=0.0)[None, :]
        total *= s
        if GATED:
            up_total *= s
    if bias is not None:
        total += tl.load(bias + n, mask=n < N, other=0.0).to(tl.float32)[:, None]
    if GATED:
        if bias is not None:
            up_total += tl.load(bias + N + n, mask=n < N, other=0.0).to(tl.float32)[:, None]
        total *= tl.sigmoid(total) * up_total
    total, real = tl.trans(total), (m < M)[:, None] & (n < N)[None, :]
    if residual is not None:
        at = residual + m.to(tl.int64)[:, None] * residual_row + n[None, :]
        total += tl.load(at, mask=real, other=0.0).to(tl.float32)
    at = out + (split * M + m).to(tl.int64)[:, None] * N + n[None, :]
    tl.store(at, total.to(out.dtype.element_ty), mask=real)


@triton.jit
def _as(w, dtype: tl.constexpr):
    """By way of float32: there is no fast instruction from float16, which float8 becomes first, to bfloat16."""
    return w.to(tl.float32).to(dtype) if w.dtype != dtype else w
