"""Queries and keys of one joint projection, turned."""

from torch import Tensor

from infinitevl.ops.rows import rotate


def rotate_heads(qkv: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v = qkv.unbind(1)
    return rotate(q, cos, sin), rotate(k, cos, sin), v
