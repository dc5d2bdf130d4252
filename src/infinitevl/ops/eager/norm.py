"""RMSNorm, alone and gated."""

from torch import Tensor
from torch.nn import functional as F

from infinitevl.ops.rows import work_dtype


def rms_norm(x: Tensor, weight: Tensor, eps: float, *, rounded: bool = False) -> Tensor:
    return F.rms_norm(x, weight.shape, weight, eps)


def gated_rms_norm(x: Tensor, gate: Tensor, weight: Tensor, eps: float) -> Tensor:
    dtype = work_dtype(x)
    normed = F.rms_norm(x.to(dtype), weight.shape, weight.to(dtype), eps)
    return (normed * F.silu(gate.to(dtype))).to(x.dtype)
