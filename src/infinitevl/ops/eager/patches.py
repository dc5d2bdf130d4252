"""Pictures cut into the patches of a vision tower."""

from collections.abc import Sequence

import torch
from torch import Tensor


def patches(
    frames: Tensor, patch: int, merge: int, mean: Sequence[float], std: Sequence[float], dtype: torch.dtype
) -> Tensor:
    n, temporal, height, width, channels = frames.shape
    rows, columns = height // (merge * patch), width // (merge * patch)
    parts = frames.reshape(n, temporal, rows, merge, patch, columns, merge, patch, channels)
    #                     n rows cols my mx ch T  py px
    parts = parts.permute(0, 2, 5, 3, 6, 8, 1, 4, 7).reshape(-1, channels, temporal * patch * patch)
    values = parts.float()
    for channel, m, s in zip(values.unbind(1), mean, std, strict=True):
        channel.mul_(1 / (255 * s)).sub_(m / s)
    return values.flatten(1).to(dtype)
