"""The counters of a stream in Triton: one launch, a program a row."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from infinitevl.ops.triton.chunk import place

LONGEST = 1024  # tokens at once


def advance(
    run: Tensor,
    position: Tensor,
    count: Tensor,
    positions: Tensor,
    vision: Tensor,
    *,
    lengths: Tensor | None = None,
    slots: Tensor | None = None,
) -> None:
    batch, time = vision.shape
    with torch.cuda.device_of(run):
        _advance_kernel[(batch,)](
            run, position, count, positions, vision, lengths, slots, time, *positions.stride(), *vision.stride(),
            BLOCK=min(max(triton.next_power_of_2(time), 16), LONGEST), num_warps=1,
        )  # fmt: skip


@triton.jit(do_not_specialize=["T"])
def _advance_kernel(
    run, position, count, positions, vision, lengths, slots, T, p_a, p_b, p_t, v_b, v_t, BLOCK: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    slot, length = place(slots, lengths, row, T)
    if slot < 0:
        return
    largest, last = tl.full((BLOCK,), -1, tl.int64), tl.full((BLOCK,), -1, tl.int64)
    for start in range(0, T, BLOCK):
        at = start + tl.arange(0, BLOCK).to(tl.int64)
        real = at < length
        for axis in tl.static_range(3):
            there = tl.load(positions + axis * p_a + row * p_b + at * p_t, mask=real, other=-1)
            largest = tl.maximum(largest, there)
        seen = tl.load(vision + row * v_b + at * v_t, mask=real, other=0) != 0
        last = tl.maximum(last, tl.where(seen & real, at, -1))
    end, newest = tl.max(largest, 0), tl.max(last, 0)
    since = tl.where(newest < 0, tl.load(run + slot), -1 - newest)
    tl.store(run + slot, since + length)
    tl.store(position + slot, tl.maximum(tl.load(position + slot), end + 1))
    tl.store(count + slot, tl.load(count + slot) + length)
