"""All that an attention layer of a stream does between its products, in three launches: turn queries and keys to
their places, attend, finish."""

import torch
from torch import Tensor

from infinitevl.ops.triton.attention import launch, plan_for, unsupported
from infinitevl.ops.triton.finish import finish
from infinitevl.ops.triton.rotary import rotated


def ring_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cos: Tensor,
    sin: Tensor,
    ring_k: Tensor,
    ring_v: Tensor,
    count: Tensor,
    *,
    window: int | None = None,
    sinks: int = 0,
    lengths: Tensor | None = None,
    slots: Tensor | None = None,
) -> Tensor:
    """Raises NotImplementedError for what is `unsupported`."""
    reason = unsupported(q, k, v)
    if reason:
        raise NotImplementedError(f"ring attention in Triton: {reason}")
    v = v if v.stride(-1) == 1 else v.contiguous()
    rows = {"sinks": sinks, "lengths": lengths, "slots": slots}
    plan = plan_for(q, k, ring_k, window, sinks)
    with torch.cuda.device_of(q):
        q, k = rotated(q, k, cos, sin)
        out, parts, sums = launch(q, k, v, ring_k, ring_v, count, window=window, plan=plan, **rows)
        finish(parts, sums, out, ring_k, ring_v, k, v, count, **rows)
    return out
