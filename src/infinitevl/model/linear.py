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
    """Lay the weights and biases of the modules that a module lists in `joint` side by side. Again is harmless.

    Those of a module with a `width` get so many rows each, zeros behind their own, and what it lists in `widened` so
    many columns.
    """
    for module in model.modules():
        width = getattr(module, "width", None)
        for names in getattr(module, "joint", ()):
            linears = [getattr(module, name) for name in names]
            if all(_plain(linear) for linear in linears):
                _lay([linear.weight for linear in linears], width)
                _lay([linear.bias for linear in linears], width)
        for name in getattr(module, "widened", ()):
            if _plain(linear := getattr(module, name)):
                _widen(linear.weight, width)


def aligned(width: int) -> int:
    """As it is where rows of so many numbers begin at multiples of 16 bytes, else the next multiple of 64."""
    return width if width % 8 == 0 else -(-width // 64) * 64


def joined(linears: Sequence[nn.Module], rows: int | None = None) -> tuple[Tensor, Tensor | None] | None:
    """Weight [N, K] and bias [N] of all of them as one map; None where they are not side by side, are more than
    `Linear`, or a gradient is to reach them one by one, and inside torch.compile. rows: of each, with its zeros."""
    if torch.compiler.is_compiling() or not all(_plain(linear) for linear in linears):
        return None
    weight, bias = (_as_one([getattr(linear, name) for linear in linears], rows) for name in ("weight", "bias"))
    return None if weight is None or (bias is None and linears[0].bias is not None) else (weight, bias)


def _plain(linear: nn.Module) -> bool:
    """Whether calling it is a product with its weight and nothing else."""
    return type(linear) is Linear and not (
        linear._forward_hooks or linear._forward_pre_hooks or "forward" in vars(linear)
    )


def widened(linear: nn.Linear, width: int) -> Tensor | None:
    """The weight [N, width] with the zeros behind its columns; None where there are none."""
    weight = linear.weight.detach()
    if width == weight.shape[1]:
        return weight
    if weight.stride() != (width, 1) or not _holds(weight, len(weight) * width):
        return None
    return weight.as_strided((len(weight), width), (width, 1))


def _widen(weight: Tensor, width: int) -> None:
    if width > weight.shape[1] and not weight.is_meta and weight.stride(0) != width:
        whole = weight.new_zeros(len(weight), width)
        whole[:, : weight.shape[1]] = weight.detach()
        weight.data = whole[:, : weight.shape[1]]


def _lay(parts: list[Tensor], rows: int | None = None) -> None:
    like = parts[0]
    if like is None or any(p.dtype != like.dtype or p.device != like.device for p in parts):
        return
    if like.is_meta or _consecutive(parts, rows):
        return
    sizes = [rows or len(part) for part in parts]
    whole = like.new_zeros(sum(sizes), *like.shape[1:])
    for part, place in zip(parts, whole.split(sizes), strict=True):
        place[: len(part)] = part.detach()
        part.data = place[: len(part)]


def _as_one(parts: list[Tensor], rows: int | None = None) -> Tensor | None:
    if len(parts) == 1:
        return parts[0]
    if parts[0] is None or not _consecutive(parts, rows):
        return None
    if torch.is_grad_enabled() and any(part.requires_grad for part in parts):
        return None
    first = parts[0].detach()
    size = sum(rows or len(part) for part in parts)
    if not _holds(first, size * first.stride(0)):
        return None
    return first.as_strided((size, *first.shape[1:]), first.stride())


def _holds(first: Tensor, numbers: int) -> bool:
    """Whether so many numbers from the first of `first` on are its storage's."""
    return (first.storage_offset() + numbers) * first.element_size() <= first.untyped_storage().nbytes()


def _consecutive(parts: list[Tensor], rows: int | None = None) -> bool:
    return all(
        b.data_ptr() == a.data_ptr() + (rows or len(a)) * a.stride(0) * a.element_size()
        and b.untyped_storage().data_ptr() == a.untyped_storage().data_ptr()
        and a.is_contiguous()
        and b.is_contiguous()
        for a, b in pairwise(parts)
    )
