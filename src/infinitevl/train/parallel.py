"""Tensors that processes hold in parts (FSDP2), whole and in parts again. Ordinary tensors are left alone."""

from typing import Any

from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor


def whole(value: Any) -> Any:
    """All parts together, of a tensor or of those in dicts and lists. All processes must call it."""
    if isinstance(value, dict):
        return {key: whole(item) for key, item in value.items()}
    if isinstance(value, list):
        return [whole(item) for item in value]
    return value.full_tensor() if isinstance(value, DTensor) else value


def shared(tensor: Tensor, like: Tensor) -> Tensor:
    """This process's part of a whole tensor, where `like` is held in parts; numbers are never."""
    if isinstance(like, DTensor) and tensor.dim():
        return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements)
    return tensor
