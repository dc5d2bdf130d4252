"""What a Gated DeltaNet layer does between its projections, composed of the other operations."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from infinitevl.ops.rows import valid_rows


class DeltaInputs(NamedTuple):
    """As the projections leave them: q, k [B, T, H, K]; v, gate [B, T, H, V]; a, b [B, T, H]."""

    q: Tensor
    k: Tensor
    v: Tensor
    gate: Tensor
    a: Tensor
    b: Tensor


class DeltaWeights(NamedTuple):
    """Of one layer: the convolutions [H K, W], [H K, W] and [H V, W]; A_log, dt_bias [H]; norm [V], its eps."""

    conv_q: Tensor
    conv_k: Tensor
    conv_v: Tensor
    A_log: Tensor
    dt_bias: Tensor
    norm: Tensor
    eps: float


@dataclass(frozen=True)
class Operations:
    """Three operations of one backend, or those that dispatch."""

    short_convolution: Callable[..., tuple[Tensor, Tensor]]
    gated_delta_rule: Callable[..., tuple[Tensor, Tensor]]
    gated_rms_norm: Callable[..., Tensor]


def mix(
    run: Operations,
    x: DeltaInputs,
    weights: DeltaWeights,
    memory: Tensor | None,
    tail: Tensor | None,
    *,
    rule: str = "gated_delta",
    lengths: Tensor | None = None,
    seq_idx: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """o [B, T, H, V], the new memory and the new tail; see `ops.delta_mixer`. Differentiable where `run` is."""
    flat = [y.flatten(2) for y in x[:3]]
    tails = (None,) * 3 if tail is None else tail.split([y.shape[-1] for y in flat], dim=-1)
    pairs = [
        run.short_convolution(y, w, t, lengths=lengths, seq_idx=seq_idx)
        for y, w, t in zip(flat, weights[:3], tails, strict=True)
    ]
    q, k, v = (y.view_as(like) for (y, _), like in zip(pairs, x, strict=False))
    decay, strength = gates(x.a, x.b, weights.A_log, weights.dt_bias, rule)
    o, memory = run.gated_delta_rule(
        q, k, v, decay, strength, memory, delta=rule == "gated_delta", lengths=lengths, seq_idx=seq_idx
    )
    return run.gated_rms_norm(o, x.gate, weights.norm, weights.eps), memory, torch.cat([t for _, t in pairs], dim=-1)


def gates(a: Tensor, b: Tensor, A_log: Tensor, dt_bias: Tensor, rule: str) -> tuple[Tensor, Tensor]:
    """Log decay g and write strength beta [B, T, H], in float32 (float64 for float64 inputs)."""
    wide = torch.float64 if a.dtype == torch.float64 else torch.float32
    if rule == "plain":
        return torch.zeros_like(a, dtype=wide), torch.ones_like(b, dtype=wide)
    dt = F.softplus(a.to(wide) + dt_bias.to(wide))
    return -A_log.to(wide).exp() * dt, b.to(wide).sigmoid()


def mix_in_place(
    run: Operations,
    x: DeltaInputs,
    weights: DeltaWeights,
    memory: Tensor,
    tail: Tensor,
    *,
    rule: str = "gated_delta",
    slots: Tensor | None = None,
    lengths: Tensor | None = None,
) -> Tensor:
    """`ops.delta_mixer` by `mix`."""
    places = slice(None) if slots is None else slots.clamp(min=0)
    if slots is not None:
        lengths = torch.full_like(slots, x.q.shape[1]) if lengths is None else lengths
        lengths = lengths * (slots >= 0)
    o, new_memory, new_tail = mix(run, x, weights, memory[places], tail[places], rule=rule, lengths=lengths)
    active = slice(None) if slots is None else slots >= 0
    places = active if slots is None else slots[active]
    memory[places], tail[places] = new_memory[active].to(memory.dtype), new_tail[active].to(tail.dtype)
    o = o.flatten(2)
    if lengths is None:
        return o
    return o.masked_fill(~valid_rows(lengths, o.shape[1])[..., None], 0)
