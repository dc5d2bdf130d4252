"""All that an attention layer of a stream does between its products, in two launches: attend, finish. Both turn
queries and keys to their places as they load them."""

import torch
from torch import Tensor

from infinitevl.ops.triton.attention import launch, plan_for, unsupported
from infinitevl.ops.triton.finish import finish


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
    q, k, v = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k, v))
    table = {"cos": cos.contiguous(), "sin": sin.contiguous()}
    rows = {"sinks": sinks, "lengths": lengths, "slots": slots}
    plan = plan_for(q, k, ring_k, window, sinks)
    with torch.cuda.device_of(q):
        out, parts, sums = launch(q, k, v, ring_k, ring_v, count, **table, window=window, plan=plan, **rows)
        finish(parts, sums, out, ring_k, ring_v, k, v, count, **table, **rows)
    return out
