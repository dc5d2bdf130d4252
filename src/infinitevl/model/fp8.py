"""A model with weights in float8: half the bytes to read, and products at twice the rate where there are many rows."""

from typing import Any

import torch

from infinitevl.model.linear import Fp8Linear, Linear, join
from infinitevl.ops.rounding import FP8

NAMES = ("fp8", "float8_e4m3fn", FP8)  # what it is called as a dtype


@torch.no_grad()
def quantise(model: Any) -> None:
    """Round the weights of all linear maps to float8, in place, the head apart from the embedding that it was tied to.
    Everything else stays as it is: embeddings, norms, convolutions, biases, and the states of streams. On a GPU what
    is multiplied with them is rounded, too, where it has more than `rounding.FEW` rows: frames, text in long pieces,
    and tokens of as many streams at once, so that results depend on how many there are.
    """
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if type(child) is Linear:
                setattr(module, name, Fp8Linear(child))
        for name in getattr(module, "before_products", ()):
            getattr(module, name).rounded = True
    model.graphs = None  # they know the weights that were
    if next(model.parameters()).is_cuda:
        join(model)


def in_fp8(model: Any) -> bool:
    return isinstance(model.lm_head, Fp8Linear)


def precision(model: Any) -> str:
    """What the model's dtype is called."""
    return "fp8" if in_fp8(model) else str(model.dtype).removeprefix("torch.")
