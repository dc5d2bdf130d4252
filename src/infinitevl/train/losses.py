"""Losses over tokens, a chunk at a time, so that the logits of all tokens never exist at once."""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from infinitevl.data.encode import IGNORED

CHUNK = 4096  # tokens whose logits exist at a time


def cross_entropy(hidden: Tensor, head: Tensor, targets: Tensor) -> Tensor:
    """Mean of -log softmax(hidden head^T)[target] over the tokens that have one; 0 where none has.

    hidden: [..., D]; head: [V, D]; targets: [...] with IGNORED where there is none. Float32, or float64 for float64.
    """
    learnt = targets != IGNORED
    pairs = _chunks(hidden[learnt], targets[learnt])
    return _total(_recomputed(_cross_entropy_sum, h, t, head) for h, t in pairs) / learnt.sum().clamp(min=1)


def distillation(
    student: Tensor, teacher: Tensor, head: Tensor, teacher_head: Tensor, real: Tensor, temperature: float
) -> Tensor:
    """Mean over real tokens of temperature^2 KL(teacher || student) of the logits / temperature; 0 without any.

    student, teacher: [..., D] last hidden states; head, teacher_head: [V, D]; real: [...] bool.
    """
    pairs = _chunks(student[real], teacher[real])
    parts = (_recomputed(_kl_sum, s, t, head, teacher_head, temperature) for s, t in pairs)
    return _total(parts) / real.sum().clamp(min=1)


def layer_distance(found: Tensor, wanted: Tensor, real: Tensor) -> Tensor:
    """Mean squared difference of two layer outputs [B, T, D] over real tokens [B, T]; 0 without any."""
    difference = _wide(found[real]) - _wide(wanted[real])
    return difference.square().sum() / (real.sum().clamp(min=1) * found.shape[-1])


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _total(parts: Iterator[Tensor]) -> Tensor:
    return torch.stack(list(parts)).sum()


def _chunks(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """At least one, maybe empty."""
    return zip(*(tensor.split(CHUNK) for tensor in tensors), strict=True)


def _recomputed(function, *inputs):
    """`function` of the inputs; its logits are made again for the backward pass instead of being kept."""
    return checkpoint(function, *inputs, use_reentrant=False, preserve_rng_state=False)


def _cross_entropy_sum(hidden: Tensor, targets: Tensor, head: Tensor) -> Tensor:
    return F.cross_entropy(_wide(F.linear(hidden, head)), targets, reduction="sum")


def _kl_sum(student: Tensor, teacher: Tensor, head: Tensor, teacher_head: Tensor, temperature: float) -> Tensor:
    log_p = F.log_softmax(_wide(F.linear(teacher, teacher_head)) / temperature, dim=-1)
    log_q = F.log_softmax(_wide(F.linear(student, head)) / temperature, dim=-1)
    return F.kl_div(log_q, log_p, reduction="sum", log_target=True) * temperature**2
