"""Many tokens of a Gated DeltaNet layer, from the projections to the gated norm, for inference: four kernels.

`_convolve_kernel` convolves q, k and v. `_products_kernel`, for every chunk and head at once, with the names of the
eager rule:

    A = (I + tril(diag(beta) k k^T, -1))^-1 * Gamma diag(beta)        P = tril(q k^T * Gamma)

(the inverse does not depend on the gates: Gamma can be multiplied to it element by element). `_carry_kernel` takes
the memory, some value columns of a head, through the chunks, and brings the tail up to date:

    v_new = A (v - diag(exp(c)) k S)
    o     = diag(exp(c)) q S + P v_new
    S     = exp(c_last) S + (diag(exp(c_last - c)) k)^T v_new

The last is the gated norm, which needs all value columns of a head.
"""

from dataclasses import dataclass

import torch
import triton
from torch import Tensor
from triton import language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from infinitevl.ops.mixing import DeltaInputs, DeltaWeights
from infinitevl.ops.rounding import Rounded
from infinitevl.ops.triton.chunk import (
    CHUNK,
    PRECISION,
    decays,
    gates,
    inverse_norm,
    load_square,
    place,
    taps,
    unit_inverse,
)
from infinitevl.ops.triton.fp8 import takes_rounded
from infinitevl.ops.triton.launch import launches
from infinitevl.ops.triton.norm import norm_real_tokens

SIZE: int = CHUNK.value
TOKENS = 16  # that a program convolves
FEW = 132  # programs, that leave a processor to each: then it may have twice the warps
PIECE = 8192  # tokens that are prepared before the memory is carried through them: it bounds the scratch memory


def delta_frame(
    x: DeltaInputs,
    weights: DeltaWeights,
    memory: Tensor,
    tail: Tensor,
    slots: Tensor | None,
    lengths: Tensor | None,
    rounded: bool = False,
) -> Tensor | Rounded:
    """As `ops.delta_mixer`: o [B, T, H V]; memory and tail are changed in place."""
    pieces, rounded = [], rounded and takes_rounded(x.v, x.v.shape[:2].numel())
    for start in range(0, x.q.shape[1], PIECE):
        piece = DeltaInputs(*(_as_rows(y[:, start : start + PIECE]) for y in x))
        rest = None if lengths is None else (lengths - start).clamp(min=0, max=piece.q.shape[1])
        prepared = _prepare(piece, weights, tail, slots, rest)
        o = _carry(piece, prepared, memory, tail, slots, rest)
        pieces.append(norm_real_tokens(o, piece.gate, weights.norm, weights.eps, slots, rest, rounded))
    if len(pieces) == 1:
        return pieces[0]
    return Rounded(*(torch.cat(y, dim=1) for y in zip(*pieces, strict=True))) if rounded else torch.cat(pieces, dim=1)


def _as_rows(x: Tensor) -> Tensor:
    """x [B, T, H, ...], copied unless a token's numbers lie side by side and the tokens at one stride."""
    return x if x[0, 0].is_contiguous() and x.stride(0) == x.shape[1] * x.stride(1) else x.contiguous()


@dataclass
class _Prepared:
    """What the memory meets, of every row, head and chunk; of a chunk with real tokens, zeros at padding."""

    q: Tensor  # [B, H, N, size, K], convolved
    k: Tensor  # [B, H, N, size, K], convolved
    v: Tensor  # [B, H, N, size, V], convolved
    a: Tensor  # [B, H, N, size, size]
    p: Tensor  # [B, H, N, size, size]
    factors: Tensor  # [B, H, N, 4, size] float32: exp(c) / |k|, exp(c) / |q|, exp(c_last - c) / |k|, exp(c_last)


def _prepare(x: DeltaInputs, w: DeltaWeights, tail: Tensor, slots: Tensor | None, lengths: Tensor | None) -> _Prepared:
    (batch, time, heads, width), value_width = x.q.shape, x.v.shape[-1]
    chunks = triton.cdiv(time, SIZE)
    q, k, v, a, p = (x.q.new_empty(batch, heads, chunks, SIZE, n) for n in (width, width, value_width, SIZE, SIZE))
    factors = x.q.new_empty(batch, heads, chunks, 4, SIZE, dtype=torch.float32)
    early, options = launches(q)
    with torch.cuda.device_of(q):
        _convolve_kernel[heads * (2 + value_width // width), chunks * (SIZE // TOKENS), batch](
            *x[:3], *w[:3], tail, slots, lengths, q, k, v, time, *(y.stride(1) for y in x[:3]),
            H=heads, K=width, V=value_width, TOKENS=TOKENS, EARLY=early, num_warps=4, **options,
        )  # fmt: skip
        _products_kernel[2, chunks * heads, batch](
            q, k, *x[4:], *w[3:5], slots, lengths, a, p, factors, time, *(y.stride(1) for y in x[4:]),
            H=heads, K=width, EARLY=early, num_warps=8 if 2 * chunks * heads * batch <= FEW else 4, **options,
        )  # fmt: skip
    return _Prepared(q, k, v, a, p, factors)


@triton.jit(do_not_specialize=["T"])
def _convolve_kernel(
    q, k, v, conv_q, conv_k, conv_v, tail, slots, lengths, q_out, k_out, v_out, T, q_stride, k_stride, v_stride,
    H: tl.constexpr, K: tl.constexpr, V: tl.constexpr, TOKENS: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """TOKENS of K channels of a head: of q, of k, or of a part of v."""
    if EARLY:
        gdc_wait()
        gdc_launch_dependents()
    row, at = tl.program_id(2).to(tl.int64), tl.program_id(1) * TOKENS + tl.arange(0, TOKENS)
    slot, length = place(slots, lengths, row, T)
    if (slot < 0) | (tl.program_id(1) * TOKENS // CHUNK * CHUNK >= length):
        return
    part = tl.program_id(0)
    of_q, of_v = part < H, part >= 2 * H
    x, stride = tl.where(of_q, q, tl.where(of_v, v, k)), tl.where(of_q, q_stride, tl.where(of_v, v_stride, k_stride))
    weight = tl.where(of_q, conv_q, tl.where(of_v, conv_v, conv_k))
    out = tl.where(of_q, q_out, tl.where(of_v, v_out, k_out))
    width = tl.where(of_v, V, K)
    block = part - tl.where(of_q, 0, tl.where(of_v, 2 * H, H))  # of K channels
    columns, channels = block * K + tl.arange(0, K), H * (2 * K + V)
    tail += slot * 3 * channels + (part - block) * K
    oldest, older, old, newest = taps(weight, columns)
    y = inputs(x, tail, at - 3, row * T, length, stride, columns, channels) * oldest[None, :]
    y += inputs(x, tail, at - 2, row * T, length, stride, columns, channels) * older[None, :]
    y += inputs(x, tail, at - 1, row * T, length, stride, columns, channels) * old[None, :]
    y += inputs(x, tail, at, row * T, length, stride, columns, channels) * newest[None, :]
    y = tl.where((at < length)[:, None], y / (1 + tl.exp(-y)), 0.0)
    head, start = block * K // width, block * K % width
    first = (row * H + head) * tl.cdiv(T, CHUNK) * CHUNK
    tl.store(out + (first + at)[:, None] * width + (start + tl.arange(0, K))[None, :], y.to(out.dtype.element_ty))


@triton.jit
def inputs(x, tail, token, first, length, stride, columns, channels):
    """Of tokens of a row, those before the first from its tail; zeros at padding. In float32."""
    rows = tl.where(token < 0, tail + (token + 3) * channels, x + (first + token) * stride)
    return tl.load(rows[:, None] + columns[None, :], mask=(token < length)[:, None], other=0.0).to(tl.float32)


@triton.jit(do_not_specialize=["T"])
def _products_kernel(
    q, k, a, b, A_log, dt_bias, slots, lengths, a_out, p_out, factors, T, a_stride, b_stride,
    H: tl.constexpr, K: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """Of a chunk and head, the first program makes A, the second P. What is read before `gdc_wait` is older than the
    convolution, which waited for it."""
    if EARLY:
        gdc_launch_dependents()
    row, head, n = tl.program_id(2).to(tl.int64), tl.program_id(1) % H, tl.program_id(1) // H
    slot, length = place(slots, lengths, row, T)
    if (slot < 0) | (n * CHUNK >= length):
        return
    i = tl.arange(0, CHUNK)
    chunk, at = (row * H + head) * tl.cdiv(T, CHUNK) + n, n * CHUNK + i
    a, b = a + (row * T + at) * a_stride + head, b + (row * T + at) * b_stride + head
    strength, gate = gates(a, b, A_log + head, dt_bias + head, at < length)
    cells = (chunk * CHUNK + i[:, None]) * K + tl.arange(0, K)[None, :]
    square = chunk * CHUNK * CHUNK + i[:, None] * CHUNK + i[None, :]
    between, entering, leaving, carried = decays(gate, None, row, n * CHUNK, length, T)
    if EARLY:
        gdc_wait()
    key = tl.load(k + cells)
    key_norm = inverse_norm(key)
    factor = factors + chunk * 4 * CHUNK + i
    dtype = k.dtype.element_ty
    if tl.program_id(0) == 0:
        tl.store(factor, entering * key_norm)
        tl.store(factor + 2 * CHUNK, leaving * key_norm)
        tl.store(factor + 3 * CHUNK, carried + tl.zeros_like(leaving))
        lower = tl.dot(key, tl.trans(key), input_precision=PRECISION) * key_norm[None, :]
        lower = tl.where(i[:, None] > i[None, :], lower, 0.0) * (key_norm * strength)[:, None]
        inverse = unit_inverse(lower, dtype == tl.float32) * between * strength[None, :]
        tl.store(a_out + square, inverse.to(dtype))
    else:
        query = tl.load(q + cells)
        query_norm = inverse_norm(query) * K**-0.5
        tl.store(factor + CHUNK, entering * query_norm)
        score = tl.dot(query, tl.trans(key), input_precision=PRECISION) * between
        tl.store(p_out + square, (score * key_norm[None, :] * query_norm[:, None]).to(dtype))


def _carry(x: DeltaInputs, p: _Prepared, memory: Tensor, tail: Tensor, slots, lengths) -> Tensor:
    """o [B, T, H, V] before the norm, unspecified at padding."""
    (batch, time, heads, width), value_width = x.q.shape, x.v.shape[-1]
    o = x.v.new_empty(x.v.shape)
    values = max(min(32, value_width), value_width // width)
    early, options = launches(o)
    with torch.cuda.device_of(o):
        _carry_kernel[value_width // values, heads, batch](
            p.q, p.k, p.v, p.a, p.p, p.factors, memory, o, *x[:3], tail, slots, lengths,
            time, *(y.stride(1) for y in x[:3]), H=heads, K=width, V=value_width, VALUES=values, EARLY=early,
            num_warps=4, num_stages=3 if o.dtype == torch.bfloat16 else 1, **options,
        )  # fmt: skip
    return o


@triton.jit(do_not_specialize=["T"])
def _carry_kernel(
    q, k, v, a, p, factors, memory, o, q_in, k_in, v_in, tail, slots, lengths, T, q_stride, k_stride, v_stride,
    H: tl.constexpr, K: tl.constexpr, V: tl.constexpr, VALUES: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """VALUES columns of a head's memory, through all chunks of a row. What is read before `gdc_wait` is older than
    the kernels of this layer, which waited for it."""
    if EARLY:
        gdc_launch_dependents()
    part, head, row = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    slot, length = place(slots, lengths, row, T)
    if (slot < 0) | (length == 0):
        return
    i, keys, values = tl.arange(0, CHUNK), tl.arange(0, K), part * VALUES + tl.arange(0, VALUES)
    memory += ((slot * H + head) * K + keys[:, None]) * V + values[None, :]
    state = tl.load(memory)
    SHARE: tl.constexpr = K * VALUES // V  # columns of q and of k whose tail this program looks after
    share, channels = head * K + part * SHARE + tl.arange(0, SHARE), H * (2 * K + V)
    tail_q = tail + slot * 3 * channels
    tail_k, tail_v = tail_q + H * K, tail_q + 2 * H * K
    j = tl.arange(0, 4)
    last_q = inputs(q_in, tail_q, length - 3 + j, row * T, length, q_stride, share, channels)
    last_k = inputs(k_in, tail_k, length - 3 + j, row * T, length, k_stride, share, channels)
    last_v = inputs(v_in, tail_v, length - 3 + j, row * T, length, v_stride, head * V + values, channels)
    if EARLY:
        gdc_wait()
    dtype = k.dtype.element_ty
    first = (row * H + head) * tl.cdiv(T, CHUNK)
    for n in range(tl.cdiv(length, CHUNK)):
        tokens = (first + n) * CHUNK + i
        key = tl.load(k + tokens[:, None] * K + keys[None, :])
        query = tl.load(q + tokens[:, None] * K + keys[None, :])
        value = tl.load(v + tokens[:, None] * V + values[None, :])
        factor = factors + (first + n) * 4 * CHUNK + i
        carried = tl.load(factors + ((first + n) * 4 + 3) * CHUNK)  # long before it is needed
        entering = state.to(dtype)
        error = value - tl.load(factor)[:, None] * tl.dot(key, entering, input_precision=PRECISION)
        new = tl.dot(load_square(a, first + n), error.to(dtype), input_precision=PRECISION)
        out = tl.load(factor + CHUNK)[:, None] * tl.dot(query, entering, input_precision=PRECISION)
        out += tl.dot(load_square(p, first + n), new.to(dtype), input_precision=PRECISION)
        at = n * CHUNK + i
        cells = (row * T + at)[:, None] * (H * V) + (head * V + values)[None, :]
        tl.store(o + cells, out.to(o.dtype.element_ty), mask=(at < length)[:, None])
        added = (tl.load(factor + 2 * CHUNK)[:, None] * new).to(dtype)
        state = carried * state
        state += tl.dot(tl.trans(key), added, input_precision=PRECISION)
    tl.store(memory, state)
    kept = (j < 3)[:, None]
    tl.store(tail_q + j[:, None] * channels + share[None, :], last_q, mask=kept)
    tl.store(tail_k + j[:, None] * channels + share[None, :], last_k, mask=kept)
    tl.store(tail_v + j[:, None] * channels + (head * V + values)[None, :], last_v, mask=kept)
