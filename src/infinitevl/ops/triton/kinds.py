"""Which models the kernels of a stream's layers are for."""

import torch

from infinitevl.ops.mixing import DeltaInputs
from infinitevl.ops.triton import attention, mixer


def in_slots(dtype: torch.dtype, head: int, key: int, value: int, rule: str) -> bool:
    """Whether both kinds of layers run in place by slots. head, key, value: widths of heads."""
    q, k, v = (torch.empty(1, 1, 1, width, dtype=dtype, device="meta") for width in (key, key, value))
    head_q = torch.empty(1, 1, 1, head, dtype=dtype, device="meta")
    with torch.no_grad():
        return not (
            mixer.unsupported(DeltaInputs(q, k, v, v, q[..., 0], q[..., 0]), rule)
            or attention.unsupported(head_q, head_q, head_q)
        )
