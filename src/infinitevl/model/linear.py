"""Linear maps, and the weights of those of one input side by side in one tensor: one product instead of several.

The parameters stay what they are, under their names; they become consecutive views of one storage. Whatever moves,
replaces or wraps them (`.to`, PEFT, a trainer) may undo that: then there are several products again, and the same
results.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from infinitevl import ops


class Linear(nn.Linear):
    """nn.Linear, computed by `ops`, but where torch.compile is at work, which must not see the dispatch."""

    def forward(self, input: Tensor) -> Tensor:
        if torch.compiler.is_compiling():
            return super().forward(input)
        return ops.linear(input, self.weight, self.bias)


def project(x: Tensor, *linears: nn.Module) -> Sequence[Tensor]:
    """x through several linear maps: one product where their weights are side by side (`join`), whose results are
    then slices of one tensor."""
    whole = joined(linears)
    if whole is None:
        return [linear(x) for linear in linears]
    return ops.linear(x, *whole).split([linear.out_features for linear in linears], dim=-1)


def project_onto(residual: Tensor | None, x: Tensor, linear: nn.Module) -> Tensor:
    """residual + linear(x)."""
    whole = joined((linear,))
    if whole is not None:
        return ops.linear(x, *whole, residual)
    return linear(x) if residual is None else residual + linear(x)


@torch.no_grad()
def join(model: nn.Module) -> None:
    """Lay the weights and biases of the modules that a module lists in `joint` side by side. Again is harmless."""
    for module in model.modules():
        for names in getattr(module, "joint", ()):
            linears = [getattr(module, name) for name in names]
            if all(_plain(linear) for linear in linears):
                _lay([linear.weight for linear in linears])
                _lay([linear.bias for linear in linears])


def joined(linears: Sequence[nn.Module]) -> tuple[Tensor, Tensor | None] | None:
    """Weight [N, K] and bias [N] of all of them as one map; None where they are not side by side, are more than
    `Linear`, or a gradient is to reach them one by one, and inside torch.compile."""
    if torch.compiler.is_compiling() or not all(_plain(linear) for linear in linears):
        return None
    weight, bias = (_as_one([getattr(linear, name) for linear in linears]) for name in ("weight", "bias"))
    return None if weight is None or (bias is None and linears[0].bias is not None) else (weight, bias)


def _plain(linear: nn.Module) -> bool:
    """Whether calling it is a product with its weight and nothing else."""
    return type(linear) is Linear and not (
        linear._forward_hooks or linear._forward_pre_hooks or "forward" in vars(linear)
    )


def _lay(parts: list[Tensor]) -> None:
    like = parts[0]
    if like is None or any(p.dtype != like.dtype or p.device != like.device for p in parts):
        return
    if like.is_meta or _consecutive(parts):
        return
    whole = torch.cat([part.detach() for part in parts])
    for part, place in zip(parts, whole.split([len(part) for part in parts]), strict=True):
        part.data = place


def _as_one(parts: list[Tensor]) -> Tensor | None:
    if len(parts) == 1:
        return parts[0]
    if parts[0] is None or not _consecutive(parts):
        return None
    if torch.is_grad_enabled() and any(part.requires_grad for part in parts):
        return None
    first = parts[0].detach()
    return first.as_strided((sum(len(part) for part in parts), *first.shape[1:]), first.stride())


def _consecutive(parts: list[Tensor]) -> bool:
    return all(
        b.data_ptr() == a.data_ptr() + a.nbytes
        and b.untyped_storage().data_ptr() == a.untyped_storage().data_ptr()
        and a.is_contiguous()
        and b.is_contiguous()
        for a, b in pairwise(parts)
    )
