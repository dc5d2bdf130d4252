"""Muon (Jordan et al., 2024): momentum whose matrices are made orthogonal. Matrices of one shape are done together."""

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the polynomial that pulls all singular values to about 1
STEPS = 5


class Muon(Optimizer):
    """For parameters that are matrices:

        M = momentum M + (1 - momentum) G
        W = (1 - lr decay) W - lr 0.2 sqrt(max(rows, columns)) orthogonal((1 - momentum) G + momentum M)

    The factor gives steps of the size of AdamW's (arXiv 2502.16982), so that learning rates mean the same.
    `torch.optim.Muon` computes the same, a matrix at a time, in ten times as many launches.
    """

    def __init__(
        self, matrices: Iterable[Tensor], lr: float, momentum: float = 0.95, weight_decay: float = 0.01
    ) -> None:
        super().__init__(matrices, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            alike: dict[Any, list[Tensor]] = defaultdict(list)
            for matrix in group["params"]:
                if matrix.grad is not None:
                    alike[matrix.shape].append(matrix)
            for matrices in alike.values():
                self._step(matrices, group)

    def _step(self, matrices: list[Tensor], group: dict[str, Any]) -> None:
        gradients: Any = [matrix.grad for matrix in matrices]
        moments = [self._moment(matrix) for matrix in matrices]
        torch._foreach_lerp_(moments, gradients, 1 - group["momentum"])
        ahead = torch._foreach_lerp(gradients, moments, group["momentum"])
        steps = orthogonal(torch.stack(ahead)).to(matrices[0].dtype)
        torch._foreach_mul_(matrices, 1 - group["lr"] * group["weight_decay"])
        size = 0.2 * max(matrices[0].shape) ** 0.5
        torch._foreach_add_(matrices, steps.unbind(), alpha=-group["lr"] * size)

    def _moment(self, matrix: Tensor) -> Tensor:
        state = self.state[matrix]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(matrix)
        return state["momentum_buffer"]


def orthogonal(x: Tensor) -> Tensor:
    """Matrices [..., m, n] with about the same singular vectors and singular values near 1, by Newton-Schulz in
    bfloat16 (on a CPU, where that is slow, in their own dtype)."""
    wide = x.shape[-2] <= x.shape[-1]
    y = x if x.device.type == "cpu" else x.bfloat16()
    y = y if wide else y.mT
    y = y / y.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    a, b, c = COEFFICIENTS
    for _ in range(STEPS):
        gram = y @ y.mT
        y = a * y + (b * gram + c * gram @ gram) @ y
    return y if wide else y.mT
