"""Which models the kernels of a stream's layers are for."""

import torch
from torch import Tensor

from infinitevl.ops.mixing import DeltaInputs, DeltaWeights
from infinitevl.ops.triton import attention, mixer


def in_slots(dtype: torch.dtype, head: int, key: int, value: int, taps: int, rule: str) -> bool:
    """Whether both kinds of layers run in place by slots. head, key, value: widths of heads; taps: of convolutions."""

    def empty(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    q, v, gate, query = (empty(1, 1, 1, width) for width in (key, value, 1, head))
    convolutions = (empty(key, taps), empty(key, taps), empty(value, taps))
    weights = DeltaWeights(*convolutions, empty(1), empty(1), empty(value), 1e-5)
    x, tail = DeltaInputs(q, q, v, v, gate[..., 0], gate[..., 0]), empty(1, taps - 1, 2 * key + value)
    with torch.no_grad():
        return not (mixer.unsupported(x, weights, tail, rule) or attention.unsupported(query, query, query))
