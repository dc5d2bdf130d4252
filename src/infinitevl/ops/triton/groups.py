"""Attention inside small groups in one launch: a program holds all queries and keys of one head in one group, turns
them in registers, and needs no online softmax. Groups that are large, or not all of one size, are PyTorch's."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from infinitevl.ops.groups import Groups
from infinitevl.ops.triton.heads import rotate_heads, unsupported
from infinitevl.ops.triton.launch import launches

LARGEST, WIDEST = 64, 128  # group, and head, that a program holds
LOG2_E = 1.4426950408889634


def group_attention(qkv: Tensor, cos: Tensor, sin: Tensor, groups: Groups) -> Tensor:
    """May change qkv. Raises NotImplementedError for what is `unsupported`."""
    if reason := unsupported(qkv):
        raise NotImplementedError(f"attention in groups in Triton: {reason}")
    (time, _, heads, width), size = qkv.shape, len(qkv) // groups.count
    if groups.gather is not None or size > LARGEST or width > WIDEST:
        return groups.attend(*rotate_heads(qkv, cos, sin))
    out = torch.empty(time, heads, width, dtype=qkv.dtype, device=qkv.device)
    early, options = launches(qkv)
    with torch.cuda.device_of(qkv):
        _group_kernel[(groups.count * heads,)](
            qkv, cos, sin, out, size, heads, SCALE=width**-0.5 * LOG2_E, HALF=width // 2,
            BLOCK_T=max(16, triton.next_power_of_2(size)), BLOCK_D=max(16, triton.next_power_of_2(width // 2)),
            EARLY=early, **options,
        )  # fmt: skip
    return out


@triton.jit
def _group_kernel(
    qkv, cos, sin, out, size, heads,
    SCALE: tl.constexpr, HALF: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_D: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """o = softmax(q k^T SCALE, base 2) v of one head of one group. Both halves of a head are tiles of their own."""
    if EARLY:
        tl.extra.cuda.gdc_launch_dependents()
    group, head = (tl.program_id(0) // heads).to(tl.int64), tl.program_id(0) % heads
    t, d = tl.arange(0, BLOCK_T), tl.arange(0, BLOCK_D)
    mask = (t < size)[:, None] & (d < HALF)[None, :]
    row = group * size + t
    angle = (row * HALF)[:, None] + d[None, :]
    c, s = tl.load(cos + angle, mask=mask, other=0.0), tl.load(sin + angle, mask=mask, other=0.0)
    if EARLY:
        tl.extra.cuda.gdc_wait()
    at = qkv + ((row * 3 * heads + head) * (2 * HALF))[:, None] + d[None, :]
    part = heads * 2 * HALF
    q, q_up = _turned(at, c, s, mask, HALF)
    k, k_up = _turned(at + part, c, s, mask, HALF)
    v = tl.load(at + 2 * part, mask=mask, other=0.0)
    v_up = tl.load(at + 2 * part + HALF, mask=mask, other=0.0)
    scores = tl.dot(q, tl.trans(k), input_precision="tf32x3")
    scores = tl.dot(q_up, tl.trans(k_up), scores, input_precision="tf32x3")
    scores = tl.where((t < size)[None, :], scores * SCALE, float("-inf"))
    p = tl.exp2(scores - tl.max(scores, 1)[:, None])
    total = tl.sum(p, 1)[:, None]
    p = p.to(v.dtype)
    at = out + ((row * heads + head) * (2 * HALF))[:, None] + d[None, :]
    tl.store(at, tl.dot(p, v, input_precision="tf32x3") / total, mask=mask)
    tl.store(at + HALF, tl.dot(p, v_up, input_precision="tf32x3") / total, mask=mask)


@triton.jit
def _turned(at, c, s, mask, HALF: tl.constexpr):
    """Both halves of heads, turned in float32, in the dtype that they have."""
    x, up = tl.load(at, mask=mask, other=0.0), tl.load(at + HALF, mask=mask, other=0.0)
    a, b = x.to(tl.float32), up.to(tl.float32)
    return (a * c - b * s).to(x.dtype), (b * c + a * s).to(x.dtype)
