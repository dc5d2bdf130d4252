"""Window attention over the ring for inference: flash attention with split keys (flash-decoding) in Triton.

A program holds BLOCK_M rows, BLOCK_M // (H / G) queries times the H / G query heads of one key head, so that a key is
loaded once for all heads that read it. It meets one of several parts of the keys that its queries may see; a second
kernel adds the parts up by their log-sum-exps.

Keys are visited in the order of their tokens, not of the slots, and indexed relative to the chunk's first token: the
ring holds -filled .. -1, the chunk 0 .. length - 1. All that depends on how far the stream is, `count`, is read here
on the device, and becomes three numbers: `filled`, `kept` (sinks in the ring), `head` (the slot that comes next). So
blocks that no query sees are never visited. Of the others in the ring most are fast: neighbouring slots, no mask. The
slow ones are the oldest, which need a mask, and the one at the seam, where the last slot meets the first; they and
those of the chunk are dealt out to the parts beginning with the last, whose share of the fast ones may be smaller.
"""

from dataclasses import dataclass
from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from infinitevl.ops.triton.finish import capacity_of, finish

MAX_SPLITS = 64
LOG2_E = 1.4426950408889634


@dataclass(frozen=True)
class Plan:
    """Rows and keys of a block, parts that the keys are split into (a power of two), Triton's launch options, and
    whether the tensor memory accelerator loads the ring."""

    block_m: int
    block_n: int
    splits: int
    warps: int = 4
    stages: int = 3
    tma: bool = False


def window_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    ring_k: Tensor | None = None,
    ring_v: Tensor | None = None,
    count: Tensor | None = None,
    *,
    window: int | None = None,
    sinks: int = 0,
    lengths: Tensor | None = None,
    seq_idx: Tensor | None = None,
) -> Tensor:
    """Raises NotImplementedError for what is `unsupported`."""
    reason = unsupported(q, k, v, seq_idx)
    if reason:
        raise NotImplementedError(f"window attention in Triton: {reason}")
    plan = plan_for(q, k, ring_k, window, sinks)
    with torch.cuda.device_of(q):
        return attend(q, k, v, ring_k, ring_v, count, window=window, sinks=sinks, lengths=lengths, plan=plan)


def unsupported(q: Tensor, k: Tensor, v: Tensor, seq_idx: Tensor | None = None) -> str | None:
    """Why these kernels cannot take such inputs; None where they can."""
    if seq_idx is not None:
        return "sequences are packed"
    if torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v)):
        return "it has no gradient"
    if q.dtype not in (torch.bfloat16, torch.float32):
        return f"q is {q.dtype}, neither bfloat16 nor float32"
    width = q.shape[-1]
    if not 16 <= width <= 128 or width & (width - 1):
        return f"heads are {width} wide: a power of two from 16 to 128 is needed"
    return None


def plan_for(q: Tensor, k: Tensor, ring_k: Tensor | None, window: int | None, sinks: int) -> Plan:
    slots = 0 if ring_k is None else ring_k.shape[2]
    return plan_of(q, k.shape[2], q.shape[1] + (slots if window is None else min(slots, window + sinks)))


def plan_of(q: Tensor, groups: int, keys: int) -> Plan:
    """From shapes alone, as measured on an H100. Tiles of 128 rows where they fill the processors by themselves; else
    of 64, two to a processor, or of a token's heads, one to a processor, and so many parts as that takes."""
    batch, time, heads, width = q.shape
    repeats, wide, processors = heads // groups, q.element_size() > 2, _processors(q.device)
    many = batch * groups * triton.cdiv(time * repeats, 128) >= processors and not wide
    block_m = triton.next_power_of_2(max(16, repeats, min(time * repeats, 128 if many else 64)))
    block_n, few_blocks = 32 if wide else 64, 8 if block_m >= 64 else 2
    programs = batch * groups * triton.cdiv(time, block_m // repeats)
    wanted = processors * (2 if block_m == 64 else 1) // programs
    splits = 1 << max(0, min(wanted, MAX_SPLITS, triton.cdiv(keys, few_blocks * block_n)).bit_length() - 1)
    tma = block_m == 64 and not wide and width >= 64
    return Plan(block_m, block_n, splits, warps=8 if block_m > 64 else 4, stages=2 if wide else 3, tma=tma)


@cache
def _processors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 132


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    ring_k: Tensor | None,
    ring_v: Tensor | None,
    count: Tensor | None,
    *,
    window: int | None,
    sinks: int,
    lengths: Tensor | None,
    plan: Plan,
) -> Tensor:
    """`window_attention` by a given plan."""
    out, parts, sums = launch(
        q, k, v, ring_k, ring_v, count, window=window, sinks=sinks, lengths=lengths, slots=None, plan=plan
    )
    if parts is not None:
        finish(parts, sums, out)
    return out


def launch(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    ring_k: Tensor | None,
    ring_v: Tensor | None,
    count: Tensor | None,
    *,
    window: int | None,
    sinks: int,
    lengths: Tensor | None,
    slots: Tensor | None,
    plan: Plan,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """`attend` up to the parts and sums that are to be added up into its result by `finish` (None: it is there)."""
    (batch, time, heads, width), groups = q.shape, k.shape[2]
    q, k, v = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k, v))
    capacity = 0 if count is None else capacity_of(ring_k, ring_v)
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    parts, sums = None, None
    if plan.splits > 1:
        parts = torch.empty(plan.splits, *q.shape, dtype=torch.float32, device=q.device)
        sums = torch.empty(plan.splits, batch, time, heads, dtype=torch.float32, device=q.device)
    boxes = [None, None]
    if plan.tma and capacity and ring_k.dtype == q.dtype:
        boxes = [TensorDescriptor.from_tensor(r.view(-1, width), [plan.block_n, width]) for r in (ring_k, ring_v)]
    tiles = triton.cdiv(time, plan.block_m // (heads // groups))
    _attend_kernel[tiles, plan.splits, batch * groups](
        q, k, v, ring_k, ring_v, *boxes, count, lengths, slots, out if parts is None else parts, sums,
        time, groups, capacity, time + capacity if window is None else window, sinks,
        *q.stride()[:3], *k.stride()[:3], *v.stride()[:3],
        SCALE=width**-0.5 * LOG2_E, REPEATS=heads // groups, D=width,
        BLOCK_M=plan.block_m, BLOCK_N=plan.block_n, IN_PARTS=plan.splits > 1,
        HAS_RING=capacity > 0, num_warps=plan.warps, num_stages=plan.stages,
    )  # fmt: skip
    return out, parts, sums


@triton.jit(do_not_specialize=["time"])
def _attend_kernel(
    q, k, v, ring_k, ring_v, box_k, box_v, count, lengths, slots, out, sums,
    time, groups, capacity, window, sinks,
    q_b, q_t, q_h, k_b, k_t, k_g, v_b, v_t, v_g,
    SCALE: tl.constexpr, REPEATS: tl.constexpr, D: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, IN_PARTS: tl.constexpr, HAS_RING: tl.constexpr,
):  # fmt: skip
    TILE: tl.constexpr = BLOCK_M // REPEATS  # queries
    first, split, splits = tl.program_id(0) * TILE, tl.program_id(1), tl.num_programs(1)
    b, g = (tl.program_id(2) // groups).to(tl.int64), tl.program_id(2) % groups
    length = time
    if lengths is not None:
        length = tl.load(lengths + b).to(tl.int32)
    place = b
    if slots is not None:
        place = tl.load(slots + b)
        length = tl.where(place < 0, 0, length)
    before = tl.zeros((), tl.int64)
    if count is not None:
        before = tl.load(count + b)

    m, n, d = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_N), tl.arange(0, D)
    t, h = first + m // REPEATS, g * REPEATS + m % REPEATS
    in_tile = m < TILE * REPEATS
    q_rows = q + b * q_b + t.to(tl.int64) * q_t + h * q_h
    queries = tl.load(q_rows[:, None] + d[None, :], mask=(in_tile & (t < length))[:, None], other=0.0)
    past_last = tl.minimum(first + TILE, length)  # the tile's queries are first .. past_last - 1
    oldest = first - window + 1  # that its first query sees, sinks apart

    ring_keys = 0  # kept sinks, then the tokens `from_ring` .. -1
    kept = 0
    from_ring = 0
    head = 0
    if HAS_RING:
        turn = capacity - sinks
        kept = tl.minimum(before, sinks).to(tl.int32)
        written = tl.maximum(before - sinks, 0)
        head = (written % turn).to(tl.int32)
        from_ring = tl.minimum(tl.maximum(-tl.minimum(written, turn).to(tl.int32), oldest), 0)
        ring_keys = kept - from_ring
    ring_blocks = tl.cdiv(ring_keys, BLOCK_N)
    ring_start = ring_keys - ring_blocks * BLOCK_N  # <= 0: the blocks end with the newest token
    hidden = tl.maximum(ring_keys + first + TILE - window, 0)  # keys before this one are not seen by every query
    masked = tl.minimum(tl.cdiv(tl.maximum(hidden, kept) - ring_start, BLOCK_N), ring_blocks)
    seam = ring_blocks - 1 - head // BLOCK_N  # the block that holds the last slot and the first
    seam = tl.where((head % BLOCK_N > 0) & (seam >= masked), seam, ring_blocks)
    torn = tl.where(seam < ring_blocks, 1, 0)
    fast, slow = ring_blocks - masked - torn, masked + torn

    own_sinks = tl.minimum(tl.maximum(sinks - before, 0), tl.maximum(past_last, 0)).to(tl.int32)
    from_chunk = tl.maximum(own_sinks, oldest)
    chunk_keys = own_sinks + past_last - from_chunk  # the chunk's own sinks, then the tokens `from_chunk` ..
    blocks = slow + tl.cdiv(chunk_keys, BLOCK_N)
    busy = past_last > first
    share = tl.where(busy, tl.cdiv(fast, splits), 0)
    begin = split * share
    end = tl.minimum(begin + share, fast)
    slow_share = tl.where(busy, tl.cdiv(blocks, splits), 0)
    slow_begin = (splits - 1 - split) * slow_share
    slow_end = tl.minimum(slow_begin + slow_share, blocks)

    top = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_M,), tl.float32)
    acc = tl.zeros((BLOCK_M, D), tl.float32)
    if HAS_RING:
        ring_row = (place * groups + g) * capacity
        for i in range(slow_begin, tl.minimum(slow_end, slow)):
            x = ring_start + tl.where(i < masked, i, seam) * BLOCK_N + n
            slot = _slot(x, kept, x - ring_keys + head, turn, sinks)
            at = (ring_row + slot)[:, None] * D + d[None, :]
            key = tl.load(ring_k + at, mask=(x >= 0)[:, None], other=0.0).to(queries.dtype)
            value = tl.load(ring_v + at, mask=(x >= 0)[:, None], other=0.0).to(queries.dtype)
            near = (x - ring_keys)[None, :] > t[:, None] - window
            seen = (x >= 0)[None, :] & ((x < kept)[None, :] | near)
            acc, top, total = _meet(acc, top, total, queries, key, value, seen, SCALE)
        for i in range(begin, end):
            block = masked + i
            block += tl.where(block >= seam, 1, 0)
            at = (block - ring_blocks) * BLOCK_N + head
            slot = ring_row + sinks + tl.where(at < 0, at + turn, at)
            if box_k is not None:
                key = box_k.load([slot.to(tl.int32), 0])
                value = box_v.load([slot.to(tl.int32), 0])
            else:
                key = tl.load(ring_k + slot * D + (n * D)[:, None] + d[None, :]).to(queries.dtype)
                value = tl.load(ring_v + slot * D + (n * D)[:, None] + d[None, :]).to(queries.dtype)
            acc, top, total = _meet(acc, top, total, queries, key, value, None, SCALE)
    for i in range(tl.maximum(slow_begin, slow), slow_end):
        x = (i - slow) * BLOCK_N + n
        s = tl.where(x < own_sinks, x, x - own_sinks + from_chunk)
        valid = x < chunk_keys
        token = s.to(tl.int64)[:, None]
        key = tl.load(k + b * k_b + g * k_g + token * k_t + d[None, :], mask=valid[:, None], other=0.0)
        value = tl.load(v + b * v_b + g * v_g + token * v_t + d[None, :], mask=valid[:, None], other=0.0)
        near = (x < own_sinks)[None, :] | (s[None, :] > t[:, None] - window)
        seen = valid[None, :] & (s[None, :] <= t[:, None]) & near
        acc, top, total = _meet(acc, top, total, queries, key, value, seen, SCALE)

    seen_any = total > 0
    total = tl.where(seen_any, total, 1)
    acc /= total[:, None]
    rows = (b * time + t) * (groups * REPEATS) + h
    stored = in_tile & (t < time)
    if IN_PARTS:
        rows += split * (tl.num_programs(2) // groups).to(tl.int64) * time * (groups * REPEATS)
        tl.store(sums + rows, tl.where(seen_any, top * SCALE + tl.log2(total), float("-inf")), mask=stored)
        stored &= seen_any
    tl.store(out + rows[:, None] * D + d[None, :], acc, mask=stored[:, None])


@triton.jit
def _slot(x, kept, place, turn, sinks):
    """Slot of the x-th ring key: sinks stand in place; `place` in -turn .. turn - 1 goes round the rest."""
    return tl.where(x < kept, x, sinks + tl.where(place < 0, place + turn, place))


@triton.jit
def _meet(acc, top, total, queries, key, value, seen, SCALE: tl.constexpr):
    """One step of the online softmax, base 2. seen None: every query sees every key. (Of bfloat16 there is only one
    precision; three products of TensorFloat32 are as exact as float32 and much faster than its own.)"""
    scores = tl.dot(queries, tl.trans(key), input_precision="tf32x3")
    if seen is not None:
        scores = tl.where(seen, scores, float("-inf"))
    new_top = tl.maximum(top, tl.max(scores, 1))
    shift = new_top
    if seen is not None:
        shift = tl.where(new_top == float("-inf"), 0.0, new_top)  # a row that has seen nothing yet
    p = tl.exp2(scores * SCALE - (shift * SCALE)[:, None])
    keep = tl.exp2((top - shift) * SCALE)
    total = total * keep + tl.sum(p, 1)
    acc = tl.dot(p.to(value.dtype), value, acc * keep[:, None], input_precision="tf32x3")
    return acc, new_top, total
