"""One token of a Gated DeltaNet layer, from the projections to the gated norm, in one launch.

A program holds the memory of one row, one head and BLOCK_V value columns, so that a single stream already fills the
processors. Two things need all programs of a head: the norm, which is over all its value columns, and the tail of q
and k, which all of them read and one must shift. Both are left to the program that arrives last: each counts itself
in when it has read its inputs and written its outputs, before the norm. So nothing waits, no second launch is
needed, and the tail changes in place.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from infinitevl.ops.mixing import DeltaInputs, DeltaWeights
from infinitevl.ops.triton.chunk import gates, place
from infinitevl.ops.triton.launch import launches

MANY = 32  # streams, from which on programs are so many that they themselves keep the memory busy
REGISTERS = 168  # of a thread then: three programs to a processor


def delta_step(
    x: DeltaInputs,
    weights: DeltaWeights,
    memory: Tensor,
    tail: Tensor,
    slots: Tensor | None,
    lengths: Tensor | None,
    arrived: Tensor,
    *,
    block_v: int | None = None,
) -> Tensor:
    """As `ops.delta_mixer`, for one token a row: o [B, 1, H V]. A row of length 0 rests.

    block_v: value columns of a program, a power of two from 8.
    """
    (batch, _, heads, key_width), value_width = x.q.shape, x.v.shape[-1]
    rows = [y if y[0].is_contiguous() else y.contiguous() for y in x]
    o = x.v.new_empty(batch, 1, heads * value_width)
    unnormed = torch.empty(batch, heads, value_width, dtype=torch.float32, device=o.device)
    many = batch >= MANY
    block_v = min(block_v or (64 if many else 32), value_width)
    early, options = launches(o)
    if early and many:
        options["maxnreg"] = REGISTERS
    with torch.cuda.device_of(o):
        _step_kernel[value_width // block_v, heads, batch](
            *rows, *weights[:6], memory, tail, slots, lengths, arrived, unnormed, o,
            *(y.stride(0) for y in rows), weights.eps,
            K=key_width, V=value_width, BLOCK_V=block_v, EARLY=early, PREFETCH=early and not many,
            num_warps=4, **options,
        )  # fmt: skip
    return o


@triton.jit
def _step_kernel(
    q, k, v, gate, a, b, conv_q, conv_k, conv_v, A_log, dt_bias, norm,
    memory, tail, slots, lengths, arrived, unnormed, out,
    q_row, k_row, v_row, gate_row, a_row, b_row, eps,
    K: tl.constexpr, V: tl.constexpr, BLOCK_V: tl.constexpr, EARLY: tl.constexpr, PREFETCH: tl.constexpr,
):  # fmt: skip
    head, heads, row = tl.program_id(1), tl.num_programs(1), tl.program_id(2).to(tl.int64)
    keys, columns = tl.arange(0, K), tl.program_id(0) * BLOCK_V + tl.arange(0, BLOCK_V)
    slot, length = place(slots, lengths, row, 1)
    o_row = (row * heads + head) * V
    at = memory + ((slot * heads + head) * K + keys[:, None]) * V
    if EARLY:
        if PREFETCH & (slot >= 0):
            _prefetch(at + tl.program_id(0) * BLOCK_V + tl.arange(0, BLOCK_V // 8)[None, :] * 8)
        gdc_wait()
        gdc_launch_dependents()
    if (slot < 0) | (length == 0):
        tl.store(out + o_row + columns, tl.zeros((BLOCK_V,), out.dtype.element_ty))
        return
    at += columns[None, :]
    state = tl.load(at, eviction_policy="evict_first")  # nobody reads it again before the next token

    q_at, k_at, v_at = head * K + keys, (heads + head) * K + keys, 2 * heads * K + head * V + columns
    channels = heads * (2 * K + V)
    tail += slot * 3 * channels
    q_in = tl.load(q + row * q_row + head * K + keys)
    k_in = tl.load(k + row * k_row + head * K + keys)
    v_in = tl.load(v + row * v_row + head * V + columns)
    beta, g = gates(a + row * a_row + head, b + row * b_row + head, A_log + head, dt_bias + head, True)
    every = tl.arange(0, V)
    z = tl.load(gate + row * gate_row + head * V + every).to(tl.float32)
    scale = tl.load(norm + every).to(tl.float32)
    q_t = _convolved(q_in, tail + q_at, conv_q, head * K + keys, channels)
    k_t = _convolved(k_in, tail + k_at, conv_k, head * K + keys, channels)
    v_t = _convolved(v_in, tail + v_at, conv_v, head * V + columns, channels)
    q_t *= tl.rsqrt(tl.sum(q_t * q_t, 0) + 1e-6) * K**-0.5
    k_t *= tl.rsqrt(tl.sum(k_t * k_t, 0) + 1e-6)

    state *= tl.exp(g)
    written = beta * (v_t - tl.sum(state * k_t[:, None], 0))
    o = tl.sum(state * q_t[:, None], 0) + tl.sum(q_t * k_t, 0) * written
    tl.store(unnormed + o_row + columns, o)

    tl.debug_barrier()  # all threads have read the tails and written o
    blocks = tl.num_programs(0)
    arrived += slot * heads + head
    last = tl.atomic_add(arrived, 1, sem="acq_rel") == blocks - 1
    tl.store(at, state + k_t[:, None] * written[None, :], eviction_policy="evict_first")
    _shift(v_in, tail + v_at, channels)
    if last:
        tl.store(arrived, 0)
        _shift(q_in, tail + q_at, channels)
        _shift(k_in, tail + k_at, channels)
        x = tl.load(unnormed + o_row + every, cache_modifier=".cg")  # of other programs: past the L1 cache
        x *= tl.rsqrt(tl.sum(x * x, 0) / V + eps) * scale
        tl.store(out + o_row + every, x * z * tl.sigmoid(z))


@triton.jit
def _prefetch(at):
    """Begin to bring memory into the L2 cache, a pointer for every 32 bytes."""
    code: tl.constexpr = "prefetch.global.L2 [$1]; mov.u32 $0, 0;"
    tl.inline_asm_elementwise(code, "=r,l", [at], dtype=tl.int32, is_pure=False, pack=1)


@triton.jit
def _convolved(x, tail, weight, columns, channels):
    """silu of the convolution's output at x, in float32. tail: pointers to the channels of x."""
    y = x.to(tl.float32) * tl.load(weight + columns * 4 + 3).to(tl.float32)
    for i in tl.static_range(3):
        y += tl.load(tail + i * channels).to(tl.float32) * tl.load(weight + columns * 4 + i).to(tl.float32)
    return y * tl.sigmoid(y)


@triton.jit
def _shift(x, tail, channels):
    """Forget the oldest input, take in x."""
    tl.store(tail, tl.load(tail + channels))
    tl.store(tail + channels, tl.load(tail + 2 * channels))
    tl.store(tail + 2 * channels, x)
