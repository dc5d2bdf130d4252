"""Frames to the patches of Qwen2.5-VL's vision tower, as its image processor makes them."""

from collections.abc import Sequence

import torch
from torch import Tensor

from infinitevl import ops
from infinitevl.video.resize import resize

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


def preprocess(
    frames: Tensor,
    *,
    min_pixels: int,
    max_pixels: int,
    patch_size: int = 14,
    merge_size: int = 2,
    temporal_patch_size: int = 2,
    mean: Sequence[float] = CLIP_MEAN,
    std: Sequence[float] = CLIP_STD,
    dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, tuple[int, int, int]]:
    """uint8 RGB frames [N, H, W, 3] to (patches [t * h * w, 3 * T * p * p], grid (t, h, w)), on their device.

    The last frame is repeated to fill a temporal patch, so a picture is a video with N = 1. Rows go by
    temporal patch, then by merge block, then inside it; each is [channel, temporal, p, p], flattened.
    """
    frames = resize(frames, factor=patch_size * merge_size, min_pixels=min_pixels, max_pixels=max_pixels)
    missing = -len(frames) % temporal_patch_size
    if missing:
        frames = torch.cat([frames, frames[-1:].expand(missing, -1, -1, -1)])
    grid = (len(frames) // temporal_patch_size, frames.shape[1] // patch_size, frames.shape[2] // patch_size)
    together = frames.unflatten(0, (-1, temporal_patch_size))
    return ops.patches(together, patch_size, merge_size, mean, std, dtype), grid
