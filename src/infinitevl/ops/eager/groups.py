"""Attention inside groups, by PyTorch."""

from torch import Tensor

from infinitevl.ops.groups import Groups
from infinitevl.ops.rows import rotate


def group_attention(qkv: Tensor, cos: Tensor, sin: Tensor, groups: Groups) -> Tensor:
    q, k, v = qkv.unbind(1)
    return groups.attend(rotate(q, cos, sin), rotate(k, cos, sin), v)
