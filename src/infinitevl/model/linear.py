"""Linear maps, in the model's dtype and in float8, and the weights of those of one input side by side in one tensor:
one product instead of several.

The parameters stay what they are, under their names; they become consecutive views of one storage. Whatever moves,
replaces or wraps them (`.to`, PEFT, a trainer) may undo that: then there are several products again, and the same
results.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from infinitevl import ops
from infinitevl.errors import InfiniteVLError
from infinitevl.ops.rounding import Rounded, round_rows

PADDED = 64  # padded widths are multiples of it


class Linear(nn.Linear):
    """nn.Linear, computed by `ops`."""

    scale: ClassVar = None  # of its rows: they are what they are

    def forward(self, input: Tensor) -> Tensor:
        return ops.linear(input, self.weight, self.bias)


class Fp8Linear(nn.Module):
    """A `Linear` whose weight [N, K] is in float8_e4m3fn, with a scale [N] in float32; the bias stays as it is.

    For inference alone: InfiniteVLError where it is to be trained or saved.
    """

    def __init__(self, linear: nn.Linear):
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        weight, scale = round_rows(linear.weight.detach())
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.scale: Tensor
        self.register_buffer("scale", scale)
        self.bias = linear.bias

    def forward(self, input: Tensor | Rounded) -> Tensor:
        return ops.linear(input, self.weight, self.bias, None, self.scale)

    def train(self, mode: bool = True) -> "Fp8Linear":
        if mode:
            raise InfiniteVLError("a model in fp8 cannot be trained: load it in bfloat16")
        return super().train(mode)

    def _save_to_state_dict(self, *args: Any) -> None:
        raise InfiniteVLError("a model in fp8 cannot be saved: save the one that it was made of")

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"


class Map(NamedTuple):
    """What a product takes: weight [N, K], bias [N], scale [N] where the weight is in float8."""

    weight: Tensor
    bias: Tensor | None
    scale: Tensor | None


def project(x: Tensor | Rounded, *linears: Any) -> Sequence[Tensor]:
    """x through several linear maps: one product where their weights are side by side (`join`), whose results are
    then slices of one tensor."""
    whole = joined(linears)
    if whole is None:
        return [linear(x) for linear in linears]
    y = ops.linear(x, whole.weight, whole.bias, None, whole.scale)
    return y.split([linear.out_features for linear in linears], dim=-1)


def project_onto(residual: Tensor | None, x: Tensor | Rounded, linear: Any) -> Tensor:
    """residual + linear(x). x may be as wide as the padded rows of the linear's weight."""
    whole = _alone(linear, x.shape[-1])
    if whole is not None:
        return ops.linear(x, whole.weight, whole.bias, residual, whole.scale)
    return linear(x) if residual is None else residual + linear(x)


def project_and_norm(residual: Tensor, x: Tensor | Rounded, linear: Any, norm: Any) -> tuple[Tensor, Any]:
    """residual + linear(x), and the `RMSNorm` of that. x: as in `project_onto`."""
    whole = _alone(linear, x.shape[-1])
    if whole is None or _wrapped(norm):
        y = project_onto(residual, x, linear)
        return y, norm(y)
    weight, bias, scale = whole
    return ops.linear_norm(x, weight, bias, residual, scale, norm.weight, norm.eps, rounded=norm.rounded)


def join(model: nn.Module) -> None:
    """Lay the weights and biases of the modules that a module lists in `joint` side by side. Again is harmless.

    `into` of a module names the one that reads what comes of them, elementwise: where its rows are no multiple of 16
    bytes, which the kernels load at a time, all of them are padded with zeros, in memory alone.
    """
    modules: Any = model.modules()
    for module in modules:
        for names in getattr(module, "joint", ()):
            linears = [getattr(module, name) for name in names]
            if all(_plain(linear) for linear in linears):
                # parameters stay tensors of the mode that they were made in
                with torch.inference_mode(linears[0].weight.is_inference()), torch.no_grad():
                    every = _pad(getattr(module, module.into)) if hasattr(module, "into") else 0
                    for name in Map._fields:
                        _lay([getattr(linear, name) for linear in linears], every)


def joined(linears: Sequence[Any], every: int = 0) -> Map | None:
    """All of them as one map, each in `every` rows (0: in as many as it has). None where they do not lie so, are more
    than `Linear`, a gradient is to reach them one by one, and inside torch.compile."""
    if torch.compiler.is_compiling() or not all(_plain(linear) for linear in linears):
        return None
    parts: Any = {name: [getattr(linear, name) for linear in linears] for name in Map._fields}
    whole: Any = {name: _as_one(tensors, every) for name, tensors in parts.items()}
    return None if any(whole[name] is None and parts[name][0] is not None for name in parts) else Map(**whole)


def padded_width(linear: Any) -> int:
    """The width of the rows of its weight in memory, which it may be given instead of its own width."""
    if not _plain(linear) or (torch.is_grad_enabled() and linear.weight.requires_grad):
        return linear.in_features
    return linear.weight.stride(0)


def _plain(linear: Any) -> bool:
    """Whether calling it is a product with its weight and nothing else."""
    return type(linear) in (Linear, Fp8Linear) and not _wrapped(linear)


def _wrapped(module: Any) -> bool:
    """Whether calling it does more than its class says."""
    return bool(module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module))


def _pad(linear: Any) -> int:
    """Make the rows of its weight longer in memory where they are misaligned. Returns `padded_width`."""
    misaligned = linear.in_features * linear.weight.element_size() % 16
    if _plain(linear) and misaligned and linear.weight.is_contiguous() and not linear.weight.is_meta:
        width = -(-linear.in_features // PADDED) * PADDED
        whole = linear.weight.new_zeros(linear.out_features, width)
        whole[:, : linear.in_features] = linear.weight
        linear.weight.data = whole[:, : linear.in_features]
    return padded_width(linear)


def _alone(linear: Any, width: int) -> Map | None:
    """`joined` of one, with the padding of its rows for an input that is as wide."""
    whole = joined((linear,))
    if whole is None or width <= whole.weight.shape[1]:
        return whole
    weight = whole.weight.detach()
    return whole._replace(weight=weight.as_strided((len(weight), weight.stride(0)), weight.stride()))


def _lay(parts: list[Any], every: int) -> None:
    like = parts[0]
    if like is None or any(p.dtype != like.dtype or p.device != like.device for p in parts):
        return
    if like.is_meta or _regular(parts, every):
        return
    sizes = [every or len(part) for part in parts]
    whole = like.new_zeros(sum(sizes), *like.shape[1:])
    for part, place in zip(parts, whole.split(sizes), strict=True):
        place[: len(part)] = part
        part.data = place[: len(part)]


def _as_one(parts: list[Tensor], every: int) -> Tensor | None:
    if len(parts) == 1:
        return parts[0]
    if parts[0] is None or not _regular(parts, every):
        return None
    if torch.is_grad_enabled() and any(part.requires_grad for part in parts):
        return None
    first = parts[0].detach()
    return first.as_strided((sum(every or len(part) for part in parts), *first.shape[1:]), first.stride())


def _regular(parts: list[Tensor], every: int) -> bool:
    """Whether they follow one another in one storage, each in `every` rows (0: in as many as it has)."""
    return all(
        b.data_ptr() == a.data_ptr() + (every or len(a)) * a.stride(0) * a.element_size()
        and b.untyped_storage().data_ptr() == a.untyped_storage().data_ptr()
        and a.is_contiguous()
        and b.is_contiguous()
        for a, b in pairwise(parts)
    )
