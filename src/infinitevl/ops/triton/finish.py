"""What comes after all programs of attention, in one launch: adding up its parts, and writing the chunk into the ring.

Early tokens of a chunk see ring entries that later ones displace, so nothing may be written before all is read.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

ENTRIES = 8  # of the ring that a program writes


def write_ring(
    ring_k: Tensor,
    ring_v: Tensor,
    k: Tensor,
    v: Tensor,
    count: Tensor,
    *,
    sinks: int = 0,
    lengths: Tensor | None = None,
) -> None:
    k, v = (x if x.stride(-1) == 1 else x.contiguous() for x in (k, v))
    with torch.cuda.device_of(k):
        finish(None, None, None, ring_k, ring_v, k, v, count, sinks=sinks, lengths=lengths)


def capacity_of(ring_k: Tensor | None, ring_v: Tensor | None) -> int:
    """Slots of a ring. Raises ValueError for rings that are not contiguous."""
    if ring_k is None or ring_v is None:
        return 0
    if not (ring_k.is_contiguous() and ring_v.is_contiguous()):
        raise ValueError("the rings must be contiguous")
    return ring_k.shape[2]


def finish(
    parts: Tensor | None,
    sums: Tensor | None,
    out: Tensor | None,
    ring_k: Tensor | None = None,
    ring_v: Tensor | None = None,
    k: Tensor | None = None,
    v: Tensor | None = None,
    count: Tensor | None = None,
    *,
    sinks: int = 0,
    lengths: Tensor | None = None,
    slots: Tensor | None = None,
) -> None:
    """Add up parts [splits, B, T, H, D] by their sums [splits, B, T, H] into out [B, T, H, D] (None: nothing to add
    up), and write k and v [B, T, G, D] into the rings as `ops.ring_attention` says (None: nothing to write).
    """
    width = (out if k is None else k).shape[-1]
    splits, rows, per_program, combines = 1, 0, 1, 0
    if parts is not None:
        splits, rows = parts.shape[0], out.numel() // width
        per_program = max(1, 32 // splits)
        combines = triton.cdiv(rows, per_program)
    time, groups, writes, strides = 0, 1, 0, [0] * 6
    if k is not None:
        batch, time, groups = k.shape[:3]
        writes, strides = batch * triton.cdiv(time * groups, ENTRIES), [*k.stride()[:3], *v.stride()[:3]]
    _finish_kernel[(combines + writes,)](
        parts, sums, out, rows, combines,
        ring_k, ring_v, k, v, count, lengths, slots, time, groups, capacity_of(ring_k, ring_v), sinks, *strides,
        SPLITS=splits, ROWS=per_program, ENTRIES=ENTRIES, D=width, BLOCK_D=triton.next_power_of_2(width),
    )  # fmt: skip


@triton.jit(do_not_specialize=["rows", "combines", "time"])
def _finish_kernel(
    parts, sums, out, rows, combines,
    ring_k, ring_v, k, v, count, lengths, slots, time, groups, capacity, sinks, k_b, k_t, k_g, v_b, v_t, v_g,
    SPLITS: tl.constexpr, ROWS: tl.constexpr, ENTRIES: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    if parts is not None:  # noqa: SIM102, what is None is known when it is compiled
        if program < combines:
            _combine(parts, sums, out, program.to(tl.int64) * ROWS, rows, SPLITS, ROWS, D)
    if k is not None:  # noqa: SIM102
        if program >= combines:
            _write(
                ring_k, ring_v, k, v, count, lengths, slots, time, groups, capacity, sinks,
                k_b, k_t, k_g, v_b, v_t, v_g, program - combines, ENTRIES, D, BLOCK_D,
            )  # fmt: skip


@triton.jit
def _combine(parts, sums, out, first, rows, SPLITS: tl.constexpr, ROWS: tl.constexpr, D: tl.constexpr):
    """out[r] = sum_s 2^sums[s, r] parts[s, r] / sum_s 2^sums[s, r]. A part with the sum -inf was never written."""
    r, d = first + tl.arange(0, ROWS), tl.arange(0, D)
    at = tl.arange(0, SPLITS)[None, :] * rows + r[:, None]
    lse = tl.load(sums + at, mask=(r < rows)[:, None], other=float("-inf"))
    top = tl.max(lse, 1)
    weight = tl.exp2(lse - tl.where(top == float("-inf"), 0.0, top)[:, None])
    total = tl.sum(weight, 1)
    weight /= tl.where(total > 0, total, 1)[:, None]
    part = tl.load(parts + at[:, :, None] * D + d[None, None, :], mask=(weight > 0)[:, :, None], other=0.0)
    o = tl.sum(part * weight[:, :, None], 1)
    tl.store(out + r[:, None] * D + d[None, :], o, mask=(r < rows)[:, None])


@triton.jit
def _write(
    ring_k, ring_v, k, v, count, lengths, slots, time, groups, capacity, sinks, k_b, k_t, k_g, v_b, v_t, v_g,
    program, ENTRIES: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Some entries of the chunk, a few of those of one row."""
    programs = tl.cdiv(time * groups, ENTRIES)
    b = (program // programs).to(tl.int64)
    entry, d = program % programs * ENTRIES + tl.arange(0, ENTRIES), tl.arange(0, BLOCK_D)
    t, g = (entry // groups).to(tl.int64), entry % groups
    length = time
    if lengths is not None:
        length = tl.load(lengths + b).to(tl.int32)
    place = b
    if slots is not None:
        place = tl.load(slots + b)
        length = tl.where(place < 0, 0, length)
    index = tl.load(count + b) + t
    turn = capacity - sinks
    slot = tl.where(index < sinks, index, sinks + tl.maximum(index - sinks, 0) % turn)
    newest = (t + turn >= length) | (index < sinks)  # no later token of the chunk takes the slot
    mask = ((t < length) & newest)[:, None] & (d < D)[None, :]
    key = tl.load(k + (b * k_b + t * k_t + g * k_g)[:, None] + d[None, :], mask=mask)
    value = tl.load(v + (b * v_b + t * v_t + g * v_g)[:, None] + d[None, :], mask=mask)
    at = ((place * groups + g) * capacity + slot)[:, None] * D + d[None, :]
    tl.store(ring_k + at, key, mask=mask)
    tl.store(ring_v + at, value, mask=mask)
