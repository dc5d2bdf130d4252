"""The counters of a stream."""

import torch
from torch import Tensor


def advance(
    run: Tensor,
    position: Tensor,
    count: Tensor,
    positions: Tensor,
    vision: Tensor,
    *,
    lengths: Tensor | None = None,
    slots: Tensor | None = None,
) -> None:
    """With slots it works on copies of the counters, and asks the device which rows rest."""
    if slots is not None:
        awake = slots >= 0
        places = slots[awake]
        copies = run[places], position[places], count[places]
        rest = None if lengths is None else lengths[awake]
        advance(*copies, positions[:, awake], vision[awake], lengths=rest)
        for counter, copied in zip((run, position, count), copies, strict=True):
            counter[places] = copied
        return
    steps = torch.arange(vision.shape[1], device=vision.device)
    added = torch.full_like(vision[:, 0], vision.shape[1], dtype=torch.int64) if lengths is None else lengths
    valid = steps < added[:, None]
    largest = positions.amax(0).masked_fill(~valid, -1).amax(1)
    last_vision = torch.where(vision & valid, steps, -1).amax(1)
    run.copy_(torch.where(last_vision < 0, run, -1 - last_vision) + added)
    position.copy_(torch.maximum(position, largest + 1))
    count += added
