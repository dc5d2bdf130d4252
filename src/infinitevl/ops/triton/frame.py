"""Many tokens of a Gated DeltaNet layer, from the projections to the gated norm, for inference: three kernels.

`_prepare_kernel`, for every chunk and head at once: the convolutions, the gates, and with the names of the eager rule

    A = (I + tril(diag(beta) k k^T, -1))^-1 * Gamma diag(beta)        P = tril(q k^T * Gamma)

(the inverse does not depend on the gates: Gamma can be multiplied to it element by element). `_carry_kernel` takes
the memory, some value columns of a head, through the chunks, and brings the tail up to date:

    v_new = A (v - diag(exp(c)) k S)
    o     = diag(exp(c)) q S + P v_new
    S     = exp(c_last) S + (diag(exp(c_last - c)) k)^T v_new

The third is the gated norm, which needs all value columns of a head.
"""

from dataclasses import dataclass

import torch
import triton
from torch import Tensor
from triton import language as tl

from infinitevl.ops.mixing import DeltaInputs, DeltaWeights
from infinitevl.ops.triton.chunk import CHUNK, PRECISION, decays, gates, inverse_norm, load_square, place, unit_inverse
from infinitevl.ops.triton.norm import norm_real_tokens

SIZE: int = CHUNK.value
PIECE = 8192  # tokens that are prepared before the memory is carried through them: it bounds the scratch memory


def delta_frame(
    x: DeltaInputs, weights: DeltaWeights, memory: Tensor, tail: Tensor, slots: Tensor | None, lengths: Tensor | None
) -> Tensor:
    """As `ops.delta_mixer`. o [B, T, H, V]; memory and tail are changed in place."""
    time = x.q.shape[1]
    pieces = []
    for start in range(0, time, PIECE):
        piece = DeltaInputs(*(y[:, start : start + PIECE] for y in x))
        rest = None if lengths is None else (lengths - start).clamp(min=0, max=piece.q.shape[1])
        pieces.append(_piece(piece, weights, memory, tail, slots, rest))
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=1)


@dataclass
class _Prepared:
    """What the memory meets, of every row, head and chunk; zeros at padding. In the inputs' dtype but for factors."""

    q: Tensor  # [B, H, N, size, K], normalised, times exp(c)
    k: Tensor  # [B, H, N, size, K]
    v: Tensor  # [B, H, N, size, V]
    a: Tensor  # [B, H, N, size, size]
    p: Tensor  # [B, H, N, size, size]
    factors: Tensor  # [B, H, N, 3, size] float32: exp(c) and exp(c_last - c), both / |k|, and exp(c_last)


def _piece(x: DeltaInputs, w: DeltaWeights, memory: Tensor, tail: Tensor, slots, lengths) -> Tensor:
    x = DeltaInputs(*(_as_rows(y) for y in x))
    prepared = _prepare(x, w, tail, slots, lengths)
    o = _carry(x, prepared, memory, tail, slots, lengths)
    return norm_real_tokens(o, x.gate, w.norm, w.eps, slots, lengths)


def _as_rows(x: Tensor) -> Tensor:
    """x [B, T, H, ...], copied unless a token's numbers lie side by side and the tokens at one stride."""
    token = x[0, 0]
    return x if token.is_contiguous() and x.stride(0) == x.shape[1] * x.stride(1) else x.contiguous()


def _prepare(x: DeltaInputs, w: DeltaWeights, tail: Tensor, slots: Tensor | None, lengths: Tensor | None) -> _Prepared:
    (batch, time, heads, width), value_width = x.q.shape, x.v.shape[-1]
    chunks, values = triton.cdiv(time, SIZE), min(128, value_width)
    made = [x.q.new_empty(batch, heads, chunks, SIZE, n) for n in (width, width, value_width, SIZE, SIZE)]
    made.append(x.q.new_empty(batch, heads, chunks, 3, SIZE, dtype=torch.float32))
    with torch.cuda.device_of(x.q):
        _prepare_kernel[1 + value_width // values, chunks * heads, batch](
            *x[:3], *x[4:], *w[:5], tail, slots, lengths, *made,
            time, *(y.stride(1) for y in (*x[:3], *x[4:])),
            H=heads, K=width, V=value_width, VALUES=values, WIDTH=w.conv_q.shape[-1], num_warps=8,
        )  # fmt: skip
    return _Prepared(*made)


@triton.jit(do_not_specialize=["T"])
def _prepare_kernel(
    q, k, v, a, b, conv_q, conv_k, conv_v, A_log, dt_bias, tail, slots, lengths,
    q_out, k_out, v_out, a_out, p_out, factors,
    T, q_stride, k_stride, v_stride, a_stride, b_stride,
    H: tl.constexpr, K: tl.constexpr, V: tl.constexpr, VALUES: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """The first program of a chunk and head does what needs q and k, each of the others VALUES columns of v."""
    part, row = tl.program_id(0), tl.program_id(2).to(tl.int64)
    head, n = tl.program_id(1) % H, tl.program_id(1) // H
    slot, length = place(slots, lengths, row, T)
    if (slot < 0) | (n * CHUNK >= length):
        return
    i = tl.arange(0, CHUNK)
    at = n * CHUNK + i
    chunk = (row * H + head) * tl.cdiv(T, CHUNK) + n
    tail += slot * (WIDTH - 1) * H * (2 * K + V)
    dtype = q_out.dtype.element_ty
    if part > 0:
        values = (part - 1) * VALUES + tl.arange(0, VALUES)
        tail_v = tail + 2 * H * K
        value = _convolved(v, tail_v, conv_v, at, row * T, length, v_stride, head * V + values, H * (2 * K + V), WIDTH)
        tl.store(v_out + (chunk * CHUNK + i[:, None]) * V + values[None, :], value.to(dtype))
        return
    keys = tl.arange(0, K)
    columns, channels = head * K + keys, H * (2 * K + V)
    key = _convolved(k, tail + H * K, conv_k, at, row * T, length, k_stride, columns, channels, WIDTH)
    key = key.to(dtype)
    key_norm = inverse_norm(key)
    square = chunk * CHUNK * CHUNK + i[:, None] * CHUNK + i[None, :]
    cells = (chunk * CHUNK + i[:, None]) * K + keys[None, :]
    tl.store(k_out + cells, key)
    a, b = a + (row * T + at) * a_stride + head, b + (row * T + at) * b_stride + head
    strength, gate = gates(a, b, A_log + head, dt_bias + head, at < length)
    between, entering, leaving, carried = decays(gate, None, row, n * CHUNK, length, T)
    lower = tl.dot(key, tl.trans(key), input_precision=PRECISION) * key_norm[None, :]
    lower = tl.where(i[:, None] > i[None, :], lower, 0.0) * (key_norm * strength)[:, None]
    inverse = unit_inverse(lower, dtype == tl.float32) * between * strength[None, :]
    tl.store(a_out + square, inverse.to(dtype))
    query = _convolved(q, tail, conv_q, at, row * T, length, q_stride, columns, channels, WIDTH)
    query *= inverse_norm(query)[:, None] * K**-0.5
    score = tl.dot(query.to(dtype), tl.trans(key), input_precision=PRECISION) * between * key_norm[None, :]
    tl.store(p_out + square, score.to(dtype))
    tl.store(q_out + cells, (query * entering[:, None]).to(dtype))
    factors += chunk * 3 * CHUNK + i
    tl.store(factors, entering * key_norm)
    tl.store(factors + CHUNK, leaving * key_norm)
    tl.store(factors + 2 * CHUNK, carried + tl.zeros_like(leaving))


@triton.jit
def _convolved(x, tail, weight, at, first, length, stride, columns, channels, WIDTH: tl.constexpr):
    """silu(convolution) of the tokens `at` of a row, zeros at padding. first, tail: the row's."""
    y = tl.zeros([at.shape[0], columns.shape[0]], dtype=tl.float32)
    for j in tl.static_range(WIDTH):
        token = at + j - (WIDTH - 1)
        inside, before = (token >= 0) & (token < length), token < 0
        here = x + (first + token)[:, None] * stride + columns[None, :]
        earlier = tail + (at + j)[:, None] * channels + columns[None, :]
        tap = tl.load(here, mask=inside[:, None], other=0.0) + tl.load(earlier, mask=before[:, None], other=0.0)
        y += tap.to(tl.float32) * tl.load(weight + columns * WIDTH + j).to(tl.float32)[None, :]
    return tl.where((at < length)[:, None], y * tl.sigmoid(y), 0.0)


def _carry(x: DeltaInputs, p: _Prepared, memory: Tensor, tail: Tensor, slots, lengths) -> Tensor:
    """o [B, T, H, V] before the norm, unspecified at padding."""
    (batch, time, heads, width), value_width = x.q.shape, x.v.shape[-1]
    o = x.v.new_empty(x.v.shape)
    values = max(min(32, value_width), value_width // width)
    with torch.cuda.device_of(o):
        _carry_kernel[value_width // values, heads, batch](
            *(y for y in (p.q, p.k, p.v, p.a, p.p, p.factors)), memory, o, *x[:3], tail, slots, lengths,
            time, *(y.stride(1) for y in x[:3]),
            H=heads, K=width, V=value_width, VALUES=values, WIDTH=tail.shape[1] + 1,
            num_warps=4, num_stages=3 if o.dtype == torch.bfloat16 else 1,
        )  # fmt: skip
    return o


@triton.jit(do_not_specialize=["T"])
def _carry_kernel(
    q, k, v, a, p, factors, memory, o, q_in, k_in, v_in, tail, slots, lengths,
    T, q_stride, k_stride, v_stride,
    H: tl.constexpr, K: tl.constexpr, V: tl.constexpr, VALUES: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    part, head, row = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    slot, length = place(slots, lengths, row, T)
    if (slot < 0) | (length == 0):
        return
    i, keys, values = tl.arange(0, CHUNK), tl.arange(0, K), part * VALUES + tl.arange(0, VALUES)
    memory += ((slot * H + head) * K + keys[:, None]) * V + values[None, :]
    state = tl.load(memory)
    dtype = k.dtype.element_ty
    first = (row * H + head) * tl.cdiv(T, CHUNK)
    for n in range(tl.cdiv(length, CHUNK)):
        tokens = (first + n) * CHUNK + i
        key = tl.load(k + tokens[:, None] * K + keys[None, :])
        query = tl.load(q + tokens[:, None] * K + keys[None, :])
        value = tl.load(v + tokens[:, None] * V + values[None, :])
        factor = factors + (first + n) * 3 * CHUNK + i
        entering = state.to(dtype)
        error = value - tl.load(factor)[:, None] * tl.dot(key, entering, input_precision=PRECISION)
        new = tl.dot(load_square(a, first + n), error.to(dtype), input_precision=PRECISION)
        out = tl.dot(query, entering, input_precision=PRECISION)
        out += tl.dot(load_square(p, first + n), new.to(dtype), input_precision=PRECISION)
        at = n * CHUNK + i
        cells = (row * T + at)[:, None] * (H * V) + (head * V + values)[None, :]
        tl.store(o + cells, out.to(o.dtype.element_ty), mask=(at < length)[:, None])
        added = (tl.load(factor + CHUNK)[:, None] * new).to(dtype)
        state = state * tl.load(factors + ((first + n) * 3 + 2) * CHUNK)
        state += tl.dot(tl.trans(key), added, input_precision=PRECISION)
    tl.store(memory, state)

    SHARE: tl.constexpr = K * VALUES // V  # columns of q and of k that this program is to look after
    share, channels = head * K + part * SHARE + tl.arange(0, SHARE), H * (2 * K + V)
    tail += slot * (WIDTH - 1) * channels
    _advance(q_in, tail, row * T, length, q_stride, share, channels, WIDTH)
    _advance(k_in, tail + H * K, row * T, length, k_stride, share, channels, WIDTH)
    _advance(v_in, tail + 2 * H * K, row * T, length, v_stride, head * V + values, channels, WIDTH)


@triton.jit
def _advance(x, tail, first, length, stride, columns, channels, WIDTH: tl.constexpr):
    """The last WIDTH - 1 inputs of a row, of the tail and x, become its tail."""
    for j in tl.static_range(WIDTH - 1):
        token = tl.zeros_like(columns) + (length + j - (WIDTH - 1))
        kept = tl.load(tail + (length + j) * channels + columns, mask=token < 0, other=0.0)
        taken = tl.load(x + (first + token) * stride + columns, mask=token >= 0, other=0.0)
        tl.store(tail + j * channels + columns, kept + taken)
