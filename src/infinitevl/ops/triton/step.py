"""One token of a Gated DeltaNet layer, from the projections to the gated norm, in one launch.

A program holds the memory of one row, one head and BLOCK_V value columns, so that a single stream already fills the
processors. Two things need all programs of a head: the norm, which is over all its value columns, and the tail of q
and k, which all of them read and one must shift. Both are left to the program that arrives last: each counts itself
in when it has read its inputs and written its outputs, before the norm. So nothing waits, no second launch is
needed, and the tail changes in place.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK_V = 32
WARPS = 4


@dataclass(frozen=True)
class StepWeights:
    """Of one layer. conv: [H (2 K + V), W], the channels of q, k and v one after the other, as in the tail;
    A_log, dt_bias: [H]; norm: [V]; eps: the norm's."""

    conv: Tensor
    A_log: Tensor
    dt_bias: Tensor
    norm: Tensor
    eps: float


def delta_step(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    a: Tensor,
    b: Tensor,
    gate: Tensor,
    weights: StepWeights,
    memory: Tensor,
    tail: Tensor,
    arrived: Tensor,
    *,
    slots: Tensor | None = None,
    block_v: int = BLOCK_V,
    warps: int = WARPS,
) -> Tensor:
    """Convolution and SiLU of q, k and v, gates, gated delta rule, gated RMSNorm. Returns o [B, H, V] in v's dtype.

    q, k: [B, H, K], v, gate: [B, H, V] and a, b: [B, H], as the projections leave them; only the rows may have a
    stride of their own. K and V are powers of two.
    memory: [N, H, K, V] float32 and tail: [N, W - 1, H (2 K + V)], changed in place.
    slots: [B] int64, the place in memory and tail of every row, all different; None: row b is at b. A row with a
    negative slot rests: nothing of it is read or written, and its output is 0.
    arrived: [B, H] int32 of zeros, and zeros again afterwards; steps that may run at the same time need their own.
    """
    (batch, heads, key_width), value_width = q.shape, v.shape[-1]
    _check(q, k, v, a, b, gate, weights, memory, tail, arrived, slots)
    o = torch.empty(batch, heads, value_width, dtype=v.dtype, device=v.device)
    unnormed = torch.empty(batch, heads, value_width, dtype=torch.float32, device=v.device)
    block_v = min(block_v, value_width)
    with torch.cuda.device_of(v):
        _step_kernel[value_width // block_v, heads, batch](
            q, k, v, a, b, gate, weights.conv, weights.A_log, weights.dt_bias, weights.norm,
            memory, tail, slots, arrived, unnormed, o,
            *(x.stride(0) for x in (q, k, v, a, b, gate)), weights.eps,
            K=key_width, V=value_width, BLOCK_V=block_v, WIDTH=weights.conv.shape[-1], num_warps=warps,
        )  # fmt: skip
    return o


def _check(q, k, v, a, b, gate, weights, memory, tail, arrived, slots) -> None:
    """Raises ValueError where the kernel would read or write other places than it should."""
    (batch, heads, key_width), value_width = q.shape, v.shape[-1]
    channels, width = weights.conv.shape
    if channels != heads * (2 * key_width + value_width) or tail.shape[1:] != (width - 1, channels):
        raise ValueError(f"a tail {tuple(tail.shape)} and weights {channels, width} for q {tuple(q.shape)}")
    if memory.shape[1:] != (heads, key_width, value_width) or memory.dtype != torch.float32:
        raise ValueError(f"a memory {tuple(memory.shape)} of {memory.dtype}")
    if arrived.shape[1:] != (heads,) or len(arrived) < batch or arrived.dtype != torch.int32:
        raise ValueError(f"arrived {tuple(arrived.shape)} of {arrived.dtype} for {batch} rows and {heads} heads")
    if len(memory) != len(tail) or (len(memory) < batch if slots is None else slots.shape != (batch,)):
        raise ValueError(f"memory and tail have {len(memory), len(tail)} places for {batch} rows with slots {slots}")
    whole = (memory, tail, arrived, weights.conv, *(x[0] for x in (q, k, v, a, b, gate)))
    if not all(x.is_contiguous() for x in whole):
        raise ValueError("memory, tail, arrived, conv and every row of the projections must be contiguous")


@triton.jit
def _step_kernel(
    q, k, v, a, b, gate, conv, A_log, dt_bias, norm,
    memory, tail, slots, arrived, unnormed, out,
    q_row, k_row, v_row, a_row, b_row, gate_row, eps,
    K: tl.constexpr, V: tl.constexpr, BLOCK_V: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    head, heads, row = tl.program_id(1), tl.num_programs(1), tl.program_id(2).to(tl.int64)
    keys, columns = tl.arange(0, K), tl.program_id(0) * BLOCK_V + tl.arange(0, BLOCK_V)
    o_row = (row * heads + head) * V
    slot = row
    if slots is not None:
        slot = tl.load(slots + row)
        if slot < 0:
            tl.store(out + o_row + columns, tl.zeros((BLOCK_V,), out.dtype.element_ty))
            return
    at = memory + ((slot * heads + head) * K + keys[:, None]) * V + columns[None, :]
    state = tl.load(at)

    q_at, k_at, v_at = head * K + keys, (heads + head) * K + keys, 2 * heads * K + head * V + columns
    channels = heads * (2 * K + V)
    tail += slot * (WIDTH - 1) * channels
    q_in = tl.load(q + row * q_row + head * K + keys)
    k_in = tl.load(k + row * k_row + head * K + keys)
    v_in = tl.load(v + row * v_row + head * V + columns)
    q_t = _convolved(q_in, tail + q_at, conv + q_at * WIDTH, channels, WIDTH)
    k_t = _convolved(k_in, tail + k_at, conv + k_at * WIDTH, channels, WIDTH)
    v_t = _convolved(v_in, tail + v_at, conv + v_at * WIDTH, channels, WIDTH)
    q_t *= tl.rsqrt(tl.sum(q_t * q_t, 0) + 1e-6) * K**-0.5
    k_t *= tl.rsqrt(tl.sum(k_t * k_t, 0) + 1e-6)

    dt = tl.load(a + row * a_row + head).to(tl.float32) + tl.load(dt_bias + head).to(tl.float32)
    dt = tl.where(dt > 20, dt, tl.log(1 + tl.exp(tl.minimum(dt, 20))))
    decay = tl.exp(-tl.exp(tl.load(A_log + head).to(tl.float32)) * dt)
    beta = tl.sigmoid(tl.load(b + row * b_row + head).to(tl.float32))

    state *= decay
    written = beta * (v_t - tl.sum(state * k_t[:, None], 0))
    o = tl.sum(state * q_t[:, None], 0) + tl.sum(q_t * k_t, 0) * written
    tl.store(at, state + k_t[:, None] * written[None, :])
    tl.store(unnormed + o_row + columns, o)

    tl.debug_barrier()  # all threads have read the tails and written o
    blocks = tl.num_programs(0)
    last = tl.atomic_add(arrived + row * heads + head, 1, sem="acq_rel") == blocks - 1
    _shift(v_in, tail + v_at, channels, WIDTH)
    if last:
        tl.store(arrived + row * heads + head, 0)
        _shift(q_in, tail + q_at, channels, WIDTH)
        _shift(k_in, tail + k_at, channels, WIDTH)
        every = tl.arange(0, V)
        x = tl.load(unnormed + o_row + every, cache_modifier=".cg")  # of other programs: past the L1 cache
        x *= tl.rsqrt(tl.sum(x * x, 0) / V + eps) * tl.load(norm + every).to(tl.float32)
        z = tl.load(gate + row * gate_row + head * V + every).to(tl.float32)
        tl.store(out + o_row + every, x * z * tl.sigmoid(z))


@triton.jit
def _convolved(x, tail, weight, channels, WIDTH: tl.constexpr):
    """silu of the convolution's output at x, in float32. tail, weight: pointers to the channels of x."""
    y = x.to(tl.float32) * tl.load(weight + WIDTH - 1).to(tl.float32)
    for j in tl.static_range(WIDTH - 1):
        y += tl.load(tail + j * channels).to(tl.float32) * tl.load(weight + j).to(tl.float32)
    return y * tl.sigmoid(y)


@triton.jit
def _shift(x, tail, channels, WIDTH: tl.constexpr):
    """Forget the oldest input, take in x."""
    for j in tl.static_range(WIDTH - 2):
        tl.store(tail + j * channels, tl.load(tail + (j + 1) * channels))
    tl.store(tail + (WIDTH - 2) * channels, x)
