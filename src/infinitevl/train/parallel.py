"""Tensors that processes hold in parts (FSDP2), whole and in parts again. Ordinary tensors are left alone."""

from typing import Any

from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor


def joined(tensor: Tensor) -> Tensor:
    """All parts together. All processes must call it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def whole(value: Any, kept: bool) -> Any:
    """The tensors in dicts and lists joined, one by one, on the CPU; None where not `kept`. All processes must call
    it."""
    if isinstance(value, dict):
        return {key: whole(item, kept) for key, item in value.items()}
    if isinstance(value, list):
        return [whole(item, kept) for item in value]
    if not isinstance(value, DTensor):
        return value
    full = joined(value)
    return full.cpu() if kept else None


def shared(tensor: Tensor, like: Tensor) -> Tensor:
    """This process's part of a whole tensor, where `like` is held in parts; numbers are never."""
    if isinstance(like, DTensor) and tensor.dim():
        return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements)
    return tensor
