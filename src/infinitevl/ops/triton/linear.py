"""Linear maps in Triton, for the shapes that cuBLAS is slow at: one row (a decoded token), a few rows, and frames of
which the products have few tiles.

One row: no tensor cores, every program sums whole rows of the weight, which is read once, 16 bytes a thread.
More: tiles of out^T = weight x^T, so that the weight is the wide side of the tensor core's product however few the
rows of x are; K is split over programs where that gives too few tiles.
"""

import triton
import triton.language as tl


@triton.jit
def gemv_kernel(
    x, weight, bias, residual, norm, out, N, K, w_row, eps,
    GATED: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """out[n] = residual[n] + bias[n] + sum_k x'[k] weight[n, k], x' = x or, with a norm, RMSNorm(x).

    GATED: the weight has 2 N rows, out[n] = silu(y[n]) y[N + n].
    """
    rows = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    columns = tl.arange(0, BLOCK_K)
    safe = tl.minimum(rows, N - 1).to(tl.int64)
    at = weight + safe[:, None] * w_row + columns[None, :]
    up_at = weight + (N + safe)[:, None] * w_row + columns[None, :]
    w = tl.load(at, mask=(columns < K)[None, :], other=0.0)
    if GATED:
        up_w = tl.load(up_at, mask=(columns < K)[None, :], other=0.0)
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    total = tl.zeros((BLOCK_N, BLOCK_K), tl.float32)
    up_total = tl.zeros((BLOCK_N, BLOCK_K), tl.float32)
    squares = tl.zeros((BLOCK_K,), tl.float32)
    for start in range(0, K, BLOCK_K):
        k = start + columns
        y = tl.load(x + k, mask=k < K, other=0.0).to(tl.float32)
        if norm is not None:
            squares += y * y
            y *= tl.load(norm + k, mask=k < K, other=0.0).to(tl.float32)
        following = (k + BLOCK_K < K)[None, :]
        at += BLOCK_K
        next_w = tl.load(at, mask=following, other=0.0)
        total += w.to(tl.float32) * y[None, :]
        w = next_w
        if GATED:
            up_at += BLOCK_K
            next_up = tl.load(up_at, mask=following, other=0.0)
            up_total += up_w.to(tl.float32) * y[None, :]
            up_w = next_up
    y = tl.sum(total, 1)
    up_y = tl.sum(up_total, 1)
    if norm is not None:
        scale = tl.rsqrt(tl.sum(squares, 0) / K + eps)
        y *= scale
        up_y *= scale
    real = rows < N
    if bias is not None:
        y += tl.load(bias + rows, mask=real, other=0.0).to(tl.float32)
        if GATED:
            up_y += tl.load(bias + N + rows, mask=real, other=0.0).to(tl.float32)
    if GATED:
        y *= tl.sigmoid(y) * up_y
    if residual is not None:
        y += tl.load(residual + rows, mask=real, other=0.0).to(tl.float32)
    tl.store(out + rows, y, mask=real)


@triton.jit
def tile_kernel(
    x, weight, bias, out, M, N, K, x_row, w_row, out_row,
    GATED: tl.constexpr, SPLITS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    """out[m, n] = sum_k x[m, k] weight[n, k] (+ bias[n]). GATED as above.

    SPLITS > 1: out is [SPLITS, M, N] float32, the sum over one part of K each, without a bias.
    """
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    m = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    split = tl.program_id(2)
    columns = tl.arange(0, BLOCK_K)
    safe = tl.minimum(n, N - 1).to(tl.int64)
    w_at = weight + safe[:, None] * w_row + columns[None, :]
    up_at = weight + (N + safe)[:, None] * w_row + columns[None, :]
    x_at = x + tl.minimum(m, M - 1).to(tl.int64)[:, None] * x_row + columns[None, :]
    blocks = tl.cdiv(K, BLOCK_K)
    first, last = split * blocks // SPLITS, (split + 1) * blocks // SPLITS
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    total = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
    up_total = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
    for block in range(first, last):
        real = (columns < K - block * BLOCK_K)[None, :]
        y = tl.load(x_at + block * BLOCK_K, mask=real, other=0.0)
        w = tl.load(w_at + block * BLOCK_K, mask=real, other=0.0)
        total = tl.dot(w, tl.trans(y), total)
        if GATED:
            up_w = tl.load(up_at + block * BLOCK_K, mask=real, other=0.0)
            up_total = tl.dot(up_w, tl.trans(y), up_total)
    if SPLITS == 1:
        if bias is not None:
            total += tl.load(bias + n, mask=n < N, other=0.0).to(tl.float32)[:, None]
            if GATED:
                up_total += tl.load(bias + N + n, mask=n < N, other=0.0).to(tl.float32)[:, None]
        if GATED:
            total *= tl.sigmoid(total) * up_total
    out += split.to(tl.int64) * M * out_row
    at = out + m.to(tl.int64)[:, None] * out_row + n[None, :]
    tl.store(at, tl.trans(total).to(out.dtype.element_ty), mask=(m < M)[:, None] & (n < N)[None, :])
