"""Between the projections of a Gated DeltaNet layer in Triton: one launch for a token, four for more."""

import torch
from torch import Tensor

from infinitevl.ops.mixing import DeltaInputs, DeltaWeights
from infinitevl.ops.rounding import Rounded
from infinitevl.ops.triton import delta_rule
from infinitevl.ops.triton.frame import delta_frame
from infinitevl.ops.triton.step import delta_step

TAPS = 4


def unsupported(x: DeltaInputs, weights: DeltaWeights, tail: Tensor, rule: str = "gated_delta") -> str | None:
    """Why these kernels cannot take such inputs; None where they can."""
    if torch.is_grad_enabled() and any(y.requires_grad for y in x):
        return "a gradient is asked for"
    if {y.dtype for y in (*x[:4], tail)} != {x.q.dtype}:
        return "q, k, v, gate and the tail are of several dtypes"
    if weights.conv_q.shape[-1] != TAPS or x.v.shape[-1] % x.q.shape[-1]:
        return f"convolutions of {TAPS} taps and values as wide as keys, or a multiple, are needed"
    return delta_rule.unsupported(x.q, x.v, rule == "gated_delta")


def delta_mixer(
    x: DeltaInputs,
    weights: DeltaWeights,
    memory: Tensor,
    tail: Tensor,
    *,
    rule: str = "gated_delta",
    slots: Tensor | None = None,
    lengths: Tensor | None = None,
    arrived: Tensor | None = None,
    rounded: bool = False,
) -> Tensor | Rounded:
    """Raises NotImplementedError for what is `unsupported`."""
    reason = unsupported(x, weights, tail, rule)
    if reason:
        raise NotImplementedError(f"delta mixer in Triton: {reason}")
    _check(x, weights, memory, tail, slots, arrived)
    if x.q.shape[1] > 1:
        return delta_frame(x, weights, memory, tail, slots, lengths, rounded)
    if arrived is None:
        arrived = torch.zeros(memory.shape[:2], dtype=torch.int32, device=memory.device)
    return delta_step(x, weights, memory, tail, slots, lengths, arrived)


def _check(x: DeltaInputs, weights: DeltaWeights, memory: Tensor, tail: Tensor, slots, arrived) -> None:
    """Raises ValueError where the kernels would read or write other places than they should."""
    (batch, _, heads, width), value_width = x.q.shape, x.v.shape[-1]
    if memory.shape[1:] != (heads, width, value_width) or memory.dtype != torch.float32:
        raise ValueError(f"a memory {tuple(memory.shape)} of {memory.dtype} for q {tuple(x.q.shape)}")
    if tail.shape[1:] != (TAPS - 1, heads * (2 * width + value_width)):
        raise ValueError(f"a tail {tuple(tail.shape)} for q {tuple(x.q.shape)}")
    if len(memory) != len(tail) or (len(memory) < batch if slots is None else slots.shape != (batch,)):
        raise ValueError(f"memory and tail have {len(memory), len(tail)} places for {batch} rows with slots {slots}")
    if arrived is not None and (arrived.shape != memory.shape[:2] or arrived.dtype != torch.int32):
        raise ValueError(f"arrived {tuple(arrived.shape)} of {arrived.dtype} for a memory {tuple(memory.shape)}")
    if not all(y.is_contiguous() for y in (memory, tail, *weights[:6], *(() if arrived is None else (arrived,)))):
        raise ValueError("memory, tail, arrived and weights must be contiguous")
