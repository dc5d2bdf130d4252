"""Linear maps, and the two of SwiGLU."""

import torch
from torch import Tensor
from torch.nn import functional as F

from infinitevl.ops.eager.norm import rms_norm
from infinitevl.ops.rounding import Rounded


def linear(
    x: Tensor | Rounded,
    weight: Tensor,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    scale: Tensor | None = None,
) -> Tensor:
    y = _product(x, weight, bias, scale)
    return y if residual is None else residual + y


def linear_norm(
    x: Tensor | Rounded,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor,
    scale: Tensor | None,
    norm: Tensor,
    eps: float,
    *,
    rounded: bool = False,
) -> tuple[Tensor, Tensor]:
    y = linear(x, weight, bias, residual, scale)
    return y, rms_norm(y, norm, eps)


def swiglu(
    x: Tensor | Rounded,
    weight: Tensor,
    bias: Tensor | None = None,
    scale: Tensor | None = None,
    *,
    rounded: bool = False,
) -> Tensor | Rounded:
    gate, up = _product(x, weight, bias, scale).chunk(2, dim=-1)
    return F.silu(gate) * up


def _product(x: Tensor | Rounded, weight: Tensor, bias: Tensor | None, scale: Tensor | None) -> Tensor:
    x = x.to(torch.bfloat16) if isinstance(x, Rounded) else x
    if scale is None:
        return F.linear(x, weight, bias)
    y = F.linear(x, weight.to(x.dtype)) * scale
    return (y if bias is None else y + bias).to(x.dtype)
