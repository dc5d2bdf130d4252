"""Linear maps, and the two of SwiGLU."""

from torch import Tensor
from torch.nn import functional as F


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, residual: Tensor | None = None) -> Tensor:
    y = F.linear(x, weight, bias)
    return y if residual is None else residual + y


def swiglu(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    gate, up = F.linear(x, weight, bias).chunk(2, dim=-1)
    return F.silu(gate) * up
