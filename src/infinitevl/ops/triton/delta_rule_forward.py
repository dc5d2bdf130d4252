"""The forward kernels of the gated delta rule. With the eager version's names, per chunk and head,

    M     = tril(k k^T * Gamma, -1)                k and q normalised, q with its K^-0.5
    P     = tril(q k^T * Gamma)
    v_new = (I + diag(beta) M)^-1 diag(beta) (v - diag(exp(c)) k S)
    o     = diag(exp(c)) q S + P v_new
    S     = exp(c_last) S + (diag(exp(c_last - c)) k)^T v_new

The inverse and P are formed for all chunks at once, the rest from chunk to chunk.
"""

from dataclasses import dataclass

import torch
import triton
from torch import Tensor
from triton import language as tl

from infinitevl.ops.triton.chunk import (
    CHUNK,
    FACTORS,
    PRECISION,
    decays,
    inverse_norm,
    load_gates,
    load_rows,
    load_square,
    row_length,
    tokens_of,
    unit_inverse,
)

SIZE: int = CHUNK.value


@dataclass
class Inputs:
    """The inputs as the kernels read them: the tokens of q, k and v at one stride, the rest contiguous."""

    q: Tensor  # [B, T, H, K]
    k: Tensor  # [B, T, H, K]
    v: Tensor  # [B, T, H, V]
    g: Tensor  # [B, T, H]
    beta: Tensor  # [B, T, H]
    state: Tensor | None  # [B, H, K, V]
    lengths: Tensor | None  # [B]
    seq_idx: Tensor | None  # [B, T]

    @classmethod
    def of(cls, q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, *rest: Tensor | None) -> "Inputs":
        """rest: state, lengths, seq_idx."""
        rest = tuple(None if x is None else x.contiguous() for x in rest)
        return cls(_as_rows(q), _as_rows(k.to(q.dtype)), _as_rows(v), g.contiguous(), beta.contiguous(), *rest)

    @property
    def sizes(self) -> tuple[int, int, int, int, int, int]:
        """B, H, the number of chunks, T, K, V."""
        batch, time, heads, width = self.q.shape
        return batch, heads, -(-time // SIZE), time, width, self.v.shape[-1]

    def result(self, like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """Contiguous, for a result at every real token; zeros where there is padding."""
        new = torch.empty if self.lengths is None else torch.zeros
        return new(like.shape, dtype=dtype or like.dtype, device=like.device)


def _as_rows(x: Tensor) -> Tensor:
    """x [B, T, H, W], copied unless its heads lie side by side and its tokens at one stride."""
    _, time, _, width = x.shape
    batch_stride, stride, *inner = x.stride()
    return x if inner == [width, 1] and batch_stride == time * stride else x.contiguous()


@dataclass
class Products:
    """What the scans multiply with, per chunk and head; unspecified for a chunk without real tokens."""

    inverse: Tensor  # [B, H, N, size, size] (I + diag(beta) M)^-1, in q's dtype
    scores: Tensor  # [B, H, N, size, size] P, in q's dtype
    factors: Tensor  # [B, H, N, FACTORS, size] float32


def form_products(x: Inputs) -> Products:
    batch, heads, chunks, time, width, _ = x.sizes
    inverse, scores = (x.q.new_empty(batch, heads, chunks, SIZE, SIZE) for _ in range(2))
    factors = x.q.new_empty(batch, heads, chunks, FACTORS.value, SIZE, dtype=torch.float32)
    _products_kernel[chunks, heads, batch](
        x.q, x.k, x.g, x.beta, x.lengths, x.seq_idx, inverse, scores, factors,
        time, x.q.stride(1), x.k.stride(1), heads, width, num_warps=4,
    )  # fmt: skip
    return Products(inverse, scores, factors)


@triton.jit
def _products_kernel(
    q, k, g, beta, lengths, seq_idx, inverse, scores, factors,
    T, q_stride, k_stride, H: tl.constexpr, K: tl.constexpr,
):  # fmt: skip
    n, head, row = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    length = row_length(lengths, row, T)
    if n * CHUNK >= length:
        return
    i, columns = tl.arange(0, CHUNK), head * K + tl.arange(0, K)
    tokens, real = tokens_of(n, row, length, T)
    key = load_rows(k, tokens, k_stride, columns, real)
    query = load_rows(q, tokens, q_stride, columns, real)
    strength = tl.load(beta + tokens * H + head, mask=real, other=0.0).to(tl.float32)
    key_norm, query_norm = inverse_norm(key), inverse_norm(query) * K**-0.5
    gate = load_gates(g, row, head, n * CHUNK, length, T, H)
    between, entering, leaving, carried = decays(gate, seq_idx, row, n * CHUNK, length, T)
    between *= key_norm[None, :]
    interaction = tl.dot(key, tl.trans(key), input_precision=PRECISION) * between
    interaction = tl.where(i[:, None] > i[None, :], interaction, 0.0) * (strength * key_norm)[:, None]
    score = tl.dot(query, tl.trans(key), input_precision=PRECISION) * between * query_norm[:, None]
    chunk = (row * H + head).to(tl.int64) * tl.num_programs(0) + n
    square = chunk * CHUNK * CHUNK + i[:, None] * CHUNK + i[None, :]
    tl.store(scores + square, score.to(scores.dtype.element_ty))
    tl.store(
        inverse + square,
        unit_inverse(interaction, inverse.dtype.element_ty == tl.float32).to(inverse.dtype.element_ty),
    )
    factor = factors + chunk * FACTORS * CHUNK + i
    tl.store(factor, key_norm * entering)
    tl.store(factor + CHUNK, query_norm * entering)
    tl.store(factor + 2 * CHUNK, key_norm * leaving)
    tl.store(factor + 3 * CHUNK, strength)
    tl.store(factor + 4 * CHUNK, carried + tl.zeros_like(strength))


def scan(x: Inputs, p: Products) -> tuple[Tensor, Tensor]:
    """o [B, T, H, V] in v's dtype and the last state [B, H, K, V] in float32."""
    batch, heads, _, _, width, value_width = x.sizes
    o = x.result(x.v)
    final = o.new_empty(batch, heads, width, value_width, dtype=torch.float32)
    _scan(x, p, o, final, None, None)
    return o, final


def scan_again(x: Inputs, p: Products) -> tuple[Tensor, Tensor]:
    """The state that enters every chunk, [B, H, N, K, V], and v_new [B, T, H, V], both in q's dtype."""
    batch, heads, chunks, _, width, value_width = x.sizes
    states = x.q.new_empty(batch, heads, chunks, width, value_width)
    v_new = x.result(x.v, x.q.dtype)
    _scan(x, p, None, None, states, v_new)
    return states, v_new


def _scan(x: Inputs, p: Products, o, final, states, v_new) -> None:
    batch, heads, _, time, width, value_width = x.sizes
    _scan_kernel[lambda meta: (value_width // meta["VALUES"], heads, batch)](
        x.q, x.k, x.v, p.inverse, p.scores, p.factors, x.state, x.lengths, o, final, states, v_new,
        time, x.q.stride(1), x.k.stride(1), x.v.stride(1), heads, width, value_width,
        VALUES=min(32, value_width), num_warps=4, num_stages=stages(x),
    )  # fmt: skip


def stages(x: Inputs) -> int:
    """How many chunks of a scan are being loaded or worked on at a time: what fits into shared memory."""
    return 3 if x.q.dtype == torch.bfloat16 else 1


@triton.jit
def _scan_kernel(
    q, k, v, inverse, scores, factors, initial, lengths, o, final, states, v_new,
    T, q_stride, k_stride, v_stride, H: tl.constexpr, K: tl.constexpr, V: tl.constexpr, VALUES: tl.constexpr,
):  # fmt: skip
    head, row = tl.program_id(1), tl.program_id(2)
    length = row_length(lengths, row, T)
    i, keys, values = tl.arange(0, CHUNK), tl.arange(0, K), tl.program_id(0) * VALUES + tl.arange(0, VALUES)
    first = (row * H + head).to(tl.int64)
    tile = keys[:, None] * V + values[None, :]
    if initial is None:
        state = tl.zeros([K, VALUES], dtype=tl.float32)
    else:
        state = tl.load(initial + first * K * V + tile).to(tl.float32)
    dtype = inverse.dtype.element_ty
    for n in range(tl.cdiv(length, CHUNK)):
        tokens, real = tokens_of(n, row, length, T)
        chunk = first * tl.cdiv(T, CHUNK) + n
        key = load_rows(k, tokens, k_stride, head * K + keys, real)
        value = load_rows(v, tokens, v_stride, head * V + values, real).to(tl.float32)
        factor = factors + chunk * FACTORS * CHUNK + i
        carried = tl.load(factors + (chunk * FACTORS + 4) * CHUNK)  # long before it is needed
        entering = state.to(dtype)
        error = value - tl.load(factor)[:, None] * tl.dot(key, entering, input_precision=PRECISION)
        error = (tl.load(factor + 3 * CHUNK)[:, None] * error).to(dtype)
        new = tl.dot(load_square(inverse, chunk), error, input_precision=PRECISION)
        cells = tokens[:, None] * (H * V) + (head * V + values)[None, :]
        if states is None:
            query = load_rows(q, tokens, q_stride, head * K + keys, real)
            out = tl.load(factor + CHUNK)[:, None] * tl.dot(query, entering, input_precision=PRECISION)
            out += tl.dot(load_square(scores, chunk), new.to(dtype), input_precision=PRECISION)
            tl.store(o + cells, out.to(o.dtype.element_ty), mask=real[:, None])
        else:
            tl.store(states + chunk * K * V + tile, entering)
            tl.store(v_new + cells, new.to(dtype), mask=real[:, None])
        added = (tl.load(factor + 2 * CHUNK)[:, None] * new).to(dtype)
        state = carried * state
        state += tl.dot(tl.trans(key), added, input_precision=PRECISION)
    if final is not None:
        tl.store(final + first * K * V + tile, state)
