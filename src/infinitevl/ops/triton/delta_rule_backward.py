"""The backward kernels of the gated delta rule, with the names of the forward ones; d_x is the gradient of x.

With w = v_new, T the inverse, S the entering and S' the leaving state of a chunk, and with the decays folded into
k_in = diag(exp(c)) k, q_in = diag(exp(c)) q and k_out = diag(exp(c_last - c)) k, from the last chunk to the first:

    x   = T^T (P^T d_o + k_out d_S')               d_v = diag(beta) x
    d_S = exp(c_last) d_S' + q_in^T d_o - k_in^T d_v

Since d_M = -diag(beta) x w^T, no gradient of the inverse is needed. What is left is sums over values, per chunk:

    D_P = tril(d_o w^T * Gamma), D_M = -tril(x w^T * Gamma, -1)
    d_q = diag(exp(c)) d_o S^T + D_P k
    z   = D_M k - diag(exp(c)) x S^T               what a key receives as it reads, but for beta
    y   = diag(exp(c_last - c)) w d_S'^T + D_P^T q + D_M^T diag(beta) k              and as it is written
    d_k = diag(beta) z + y, d_beta = rows of x . v + k . z
    d_c = rows of q . d_q + diag(beta) k . z - k . y, plus, at the last token, what exp(c_last) receives

then the normalisation of q and k, and d_g, the sum of d_c from a token to the end of its chunk.
"""

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
)
from infinitevl.ops.triton.delta_rule_forward import SIZE, Inputs, Products, form_products, scan_again, stages


def gradients(x: Inputs, d_o: Tensor, d_final: Tensor) -> tuple[Tensor, ...]:
    """Gradients of q, k, v in their dtypes and of g, beta and the initial state in float32."""
    products = form_products(x)
    states, v_new = scan_again(x, products)
    d_o = d_o.to(x.q.dtype).contiguous()
    received, d_v, d_states, d_initial = _scan_back(x, products, d_o, d_final.contiguous())
    squares = _between_tokens(x, d_o, received, v_new)
    d_q, d_k, d_g, d_beta = _sum_values(x, d_o, received, v_new, states, d_states, squares)
    return d_q, d_k, d_v, d_g, d_beta, d_initial


def _scan_back(x: Inputs, p: Products, d_o: Tensor, d_final: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x [B, T, H, V] and d_S' [B, H, N, K, V] in q's dtype, d_v, and the gradient of the initial state."""
    batch, heads, chunks, time, width, value_width = x.sizes
    received, d_v = x.result(x.v, x.q.dtype), x.result(x.v)
    d_states = x.q.new_empty(batch, heads, chunks, width, value_width)
    d_initial = torch.empty_like(d_final)
    _scan_back_kernel[lambda meta: (value_width // meta["VALUES"], heads, batch)](
        x.q, x.k, p.inverse, p.scores, p.factors, x.lengths, d_o, d_final, received, d_v, d_states, d_initial,
        time, x.q.stride(1), x.k.stride(1), heads, width, value_width,
        VALUES=min(32, value_width), num_warps=4, num_stages=stages(x),
    )  # fmt: skip
    return received, d_v, d_states, d_initial


@triton.jit
def _scan_back_kernel(
    q, k, inverse, scores, factors, lengths, d_o, d_final, received, d_v, d_states, d_initial,
    T, q_stride, k_stride, H: tl.constexpr, K: tl.constexpr, V: tl.constexpr, VALUES: tl.constexpr,
):  # fmt: skip
    head, row = tl.program_id(1), tl.program_id(2)
    length = row_length(lengths, row, T)
    i, keys, values = tl.arange(0, CHUNK), tl.arange(0, K), tl.program_id(0) * VALUES + tl.arange(0, VALUES)
    first = (row * H + head).to(tl.int64)
    tile = keys[:, None] * V + values[None, :]
    d_state = tl.load(d_final + first * K * V + tile).to(tl.float32)
    dtype = inverse.dtype.element_ty
    count = tl.cdiv(length, CHUNK)
    for back in range(count):
        n = count - 1 - back
        tokens, real = tokens_of(n, row, length, T)
        chunk = first * tl.cdiv(T, CHUNK) + n
        key = load_rows(k, tokens, k_stride, head * K + keys, real)
        query = load_rows(q, tokens, q_stride, head * K + keys, real)
        d_out = load_rows(d_o, tokens, H * V, head * V + values, real)
        factor = factors + chunk * FACTORS * CHUNK + i
        carried = tl.load(factors + (chunk * FACTORS + 4) * CHUNK)  # long before it is needed
        leaving = d_state.to(dtype)
        tl.store(d_states + chunk * K * V + tile, leaving)
        d_new = tl.load(factor + 2 * CHUNK)[:, None] * tl.dot(key, leaving, input_precision=PRECISION)
        d_new += tl.dot(tl.trans(load_square(scores, chunk)), d_out, input_precision=PRECISION)
        got = tl.dot(tl.trans(load_square(inverse, chunk)), d_new.to(dtype), input_precision=PRECISION)
        d_value = tl.load(factor + 3 * CHUNK)[:, None] * got
        cells = tokens[:, None] * (H * V) + (head * V + values)[None, :]
        tl.store(received + cells, got.to(dtype), mask=real[:, None])
        tl.store(d_v + cells, d_value.to(d_v.dtype.element_ty), mask=real[:, None])
        read = (tl.load(factor + CHUNK)[:, None] * d_out.to(tl.float32)).to(dtype)
        corrected = (tl.load(factor)[:, None] * d_value).to(dtype)
        d_state = carried * d_state
        d_state += tl.dot(tl.trans(query), read, input_precision=PRECISION)
        d_state -= tl.dot(tl.trans(key), corrected, input_precision=PRECISION)
    tl.store(d_initial + first * K * V + tile, d_state)


def _between_tokens(x: Inputs, d_o: Tensor, received: Tensor, v_new: Tensor) -> Tensor:
    """D_P and D_M, [2, B, H, N, size, size] in q's dtype."""
    batch, heads, chunks, time, _, value_width = x.sizes
    squares = x.q.new_empty(2, batch, heads, chunks, SIZE, SIZE)
    _between_tokens_kernel[chunks, heads, batch](
        x.g, x.lengths, x.seq_idx, d_o, received, v_new, *squares,
        time, heads, value_width, VALUES=min(64, value_width), num_warps=4, num_stages=stages(x),
    )  # fmt: skip
    return squares


@triton.jit
def _between_tokens_kernel(
    g, lengths, seq_idx, d_o, received, v_new, d_scores, d_interactions,
    T, H: tl.constexpr, V: tl.constexpr, VALUES: tl.constexpr,
):  # fmt: skip
    n, head, row = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    length = row_length(lengths, row, T)
    if n * CHUNK >= length:
        return
    i = tl.arange(0, CHUNK)
    tokens, real = tokens_of(n, row, length, T)
    d_score = tl.zeros([CHUNK, CHUNK], dtype=tl.float32)
    d_interaction = tl.zeros([CHUNK, CHUNK], dtype=tl.float32)
    for start in range(0, V, VALUES):
        values = head * V + start + tl.arange(0, VALUES)
        new = tl.trans(load_rows(v_new, tokens, H * V, values, real))
        d_score += tl.dot(load_rows(d_o, tokens, H * V, values, real), new, input_precision=PRECISION)
        d_interaction -= tl.dot(load_rows(received, tokens, H * V, values, real), new, input_precision=PRECISION)
    gate = load_gates(g, row, head, n * CHUNK, length, T, H)
    between, _, _, _ = decays(gate, seq_idx, row, n * CHUNK, length, T)
    d_interaction = tl.where(i[:, None] > i[None, :], d_interaction * between, 0.0)
    chunk = (row * H + head).to(tl.int64) * tl.num_programs(0) + n
    square = chunk * CHUNK * CHUNK + i[:, None] * CHUNK + i[None, :]
    tl.store(d_scores + square, (d_score * between).to(d_scores.dtype.element_ty))
    tl.store(d_interactions + square, d_interaction.to(d_interactions.dtype.element_ty))


def _sum_values(
    x: Inputs, d_o: Tensor, received: Tensor, v_new: Tensor, states: Tensor, d_states: Tensor, squares: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of q, k, g and beta."""
    batch, heads, chunks, time, width, value_width = x.sizes
    d_q, d_k, d_g, d_beta = x.result(x.q), x.result(x.k), *(x.result(y, torch.float32) for y in (x.g, x.beta))
    _sum_values_kernel[chunks, heads, batch](
        x.q, x.k, x.v, x.g, x.beta, x.lengths, x.seq_idx, d_o, received, v_new, states, d_states, *squares,
        d_q, d_k, d_g, d_beta, time, x.q.stride(1), x.k.stride(1), x.v.stride(1),
        heads, width, value_width, VALUES=min(32, value_width), num_warps=8, num_stages=stages(x),
    )  # fmt: skip
    return d_q, d_k, d_g, d_beta


@triton.jit
def _sum_values_kernel(
    q, k, v, g, beta, lengths, seq_idx, d_o, received, v_new, states, d_states, d_scores, d_interactions,
    d_q, d_k, d_g, d_beta, T, q_stride, k_stride, v_stride,
    H: tl.constexpr, K: tl.constexpr, V: tl.constexpr, VALUES: tl.constexpr,
):  # fmt: skip
    n, head, row = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    length = row_length(lengths, row, T)
    if n * CHUNK >= length:
        return
    keys = tl.arange(0, K)
    tokens, real = tokens_of(n, row, length, T)
    chunk = (row * H + head).to(tl.int64) * tl.num_programs(0) + n
    d_query = tl.zeros([CHUNK, K], dtype=tl.float32)
    reading = tl.zeros([CHUNK, K], dtype=tl.float32)
    writing = tl.zeros([CHUNK, K], dtype=tl.float32)
    d_strength = tl.zeros([CHUNK], dtype=tl.float32)
    d_carried = tl.zeros([K], dtype=tl.float32)
    for start in range(0, V, VALUES):
        values = start + tl.arange(0, VALUES)
        tile = chunk * K * V + keys[:, None] * V + values[None, :]
        state, d_state = tl.load(states + tile), tl.load(d_states + tile)
        got = load_rows(received, tokens, H * V, head * V + values, real)
        value = load_rows(v, tokens, v_stride, head * V + values, real)
        d_out = load_rows(d_o, tokens, H * V, head * V + values, real)
        new = load_rows(v_new, tokens, H * V, head * V + values, real)
        d_query += tl.dot(d_out, tl.trans(state), input_precision=PRECISION)
        reading -= tl.dot(got, tl.trans(state), input_precision=PRECISION)
        writing += tl.dot(new, tl.trans(d_state), input_precision=PRECISION)
        d_strength += tl.sum(got.to(tl.float32) * value.to(tl.float32), axis=1)
        d_carried += tl.sum(state.to(tl.float32) * d_state.to(tl.float32), axis=1)
    gate = load_gates(g, row, head, n * CHUNK, length, T, H)
    _, entering, leaving, carried = decays(gate, seq_idx, row, n * CHUNK, length, T)
    strength = tl.load(beta + tokens * H + head, mask=real, other=0.0).to(tl.float32)
    query = load_rows(q, tokens, q_stride, head * K + keys, real)
    query_norm = inverse_norm(query) * K**-0.5
    query = (query_norm[:, None] * query.to(tl.float32)).to(q.dtype.element_ty)
    key = load_rows(k, tokens, k_stride, head * K + keys, real)
    key_norm = inverse_norm(key)
    key = (key_norm[:, None] * key.to(tl.float32)).to(k.dtype.element_ty)
    d_score, d_interaction = load_square(d_scores, chunk), load_square(d_interactions, chunk)
    d_query = entering[:, None] * d_query + tl.dot(d_score, key, input_precision=PRECISION)
    reading = entering[:, None] * reading + tl.dot(d_interaction, key, input_precision=PRECISION)
    writing = leaving[:, None] * writing
    d_last = tl.sum(key.to(tl.float32) * writing) + carried * tl.sum(d_carried)
    writing += tl.dot(tl.trans(d_score), query, input_precision=PRECISION)
    weighted = (strength[:, None] * key.to(tl.float32)).to(key.dtype)
    writing += tl.dot(tl.trans(d_interaction), weighted, input_precision=PRECISION)

    query, key = query.to(tl.float32), key.to(tl.float32)
    along_query = tl.sum(query * d_query, axis=1)
    along_read, along_written = tl.sum(key * reading, axis=1), tl.sum(key * writing, axis=1)
    d_c = along_query + strength * along_read - along_written
    d_gate = tl.cumsum(d_c, axis=0, reverse=True) + d_last
    d_query = query_norm[:, None] * (d_query - K * along_query[:, None] * query)
    d_key = strength[:, None] * reading + writing
    d_key = key_norm[:, None] * (d_key - (strength * along_read + along_written)[:, None] * key)
    cells = tokens[:, None] * (H * K) + (head * K + keys)[None, :]
    tl.store(d_q + cells, d_query.to(d_q.dtype.element_ty), mask=real[:, None])
    tl.store(d_k + cells, d_key.to(d_k.dtype.element_ty), mask=real[:, None])
    tl.store(d_g + tokens * H + head, d_gate, mask=real)
    tl.store(d_beta + tokens * H + head, d_strength + along_read, mask=real)
