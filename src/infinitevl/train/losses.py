"""Losses over tokens, a chunk at a time, so that the logits of all tokens never exist at once."""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from infinitevl.data.encode import IGNORED

CHUNK = 4096  # tokens whose logits exist at a time


def cross_entropy(hidden: Tensor, head: Tensor, targets: Tensor) -> Tensor:
    """Mean of -log softmax(hidden head^T)[target] over the tokens that have one.

    hidden: [..., D]; head: [V, D]; targets: [...] with IGNORED where there is none.
    """
    learnt = targets != IGNORED
    pairs = _chunks(hidden[learnt], targets[learnt])
    total = sum(
        (_recomputed(_cross_entropy_sum, h, t, head) for h, t in pairs), hidden.new_zeros((), dtype=torch.float32)
    )
    return total / learnt.sum().clamp(min=1)


def distillation(
    student: Tensor, teacher: Tensor, head: Tensor, teacher_head: Tensor, real: Tensor, temperature: float
) -> Tensor:
    """Mean over real tokens of temperature^2 KL(teacher || student) of the logits / temperature.

    student, teacher: [..., D] last hidden states; head, teacher_head: [V, D]; real: [...] bool.
    """
    pairs = _chunks(student[real], teacher[real])
    parts = (_recomputed(_kl_sum, s, t, head, teacher_head, temperature) for s, t in pairs)
    return sum(parts, student.new_zeros((), dtype=torch.float32)) / real.sum().clamp(min=1)


def layer_distance(found: Tensor, wanted: Tensor, real: Tensor) -> Tensor:
    """Mean squared difference of two layer outputs [B, T, D] over real tokens [B, T]."""
    difference = (found.float() - wanted.float()).square().mean(-1)
    return (difference * real).sum() / real.sum().clamp(min=1)


def _chunks(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    return zip(*(tensor.split(CHUNK) for tensor in tensors), strict=True)


def _recomputed(function, *inputs):
    """`function` of the inputs; its logits are made again for the backward pass instead of being kept."""
    return checkpoint(function, *inputs, use_reentrant=False)


def _cross_entropy_sum(hidden: Tensor, targets: Tensor, head: Tensor) -> Tensor:
    return F.cross_entropy(F.linear(hidden, head).float(), targets, reduction="sum")


def _kl_sum(student: Tensor, teacher: Tensor, head: Tensor, teacher_head: Tensor, temperature: float) -> Tensor:
    log_p = F.log_softmax(F.linear(teacher, teacher_head).float() / temperature, dim=-1)
    log_q = F.log_softmax(F.linear(student, head).float() / temperature, dim=-1)
    return F.kl_div(log_q, log_p, reduction="sum", log_target=True) * temperature**2
