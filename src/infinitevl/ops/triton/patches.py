"""Pictures cut into patches in one launch, to the bit what PyTorch makes of them: a program makes one patch."""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

CHANNELS = 3


def patches(
    frames: Tensor, patch: int, merge: int, mean: Sequence[float], std: Sequence[float], dtype: torch.dtype
) -> Tensor:
    """Raises NotImplementedError for pictures that are not of three colours."""
    n, temporal, height, width, channels = frames.shape
    if channels != CHANNELS:
        raise NotImplementedError("patches in Triton: of three colours")
    count, size = n * (height // patch) * (width // patch), channels * patch * patch
    out = torch.empty(count, size * temporal, dtype=dtype, device=frames.device)
    colours = [x for m, s in zip(mean, std, strict=True) for x in (1 / (255 * s), m / s)]
    with torch.cuda.device_of(frames):
        _patch_kernel[(count,)](
            frames, out, *frames.stride(), height // (merge * patch), width // (merge * patch), *colours,
            P=patch, MERGE=merge, TEMPORAL=temporal, SIZE=size, BLOCK=triton.next_power_of_2(size),
            enable_fp_fusion=False,
        )  # fmt: skip
    return out


@triton.jit
def _patch_kernel(
    frames, out, n_stride, t_stride, y_stride, x_stride, c_stride, rows, columns,
    red, red_shift, green, green_shift, blue, blue_shift,
    P: tl.constexpr, MERGE: tl.constexpr, TEMPORAL: tl.constexpr, SIZE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    number = tl.program_id(0).to(tl.int64)
    cell, block = number % (MERGE * MERGE), number // (MERGE * MERGE)
    y = (block // columns % rows * MERGE + cell // MERGE) * P
    x = (block % columns * MERGE + cell % MERGE) * P
    k = tl.arange(0, BLOCK)
    channel, pixel = k // (P * P), k % (P * P)
    at = frames + block // columns // rows * n_stride + (y + pixel // P) * y_stride + (x + pixel % P) * x_stride
    scale = tl.where(channel == 0, red, tl.where(channel == 1, green, blue))
    shift = tl.where(channel == 0, red_shift, tl.where(channel == 1, green_shift, blue_shift))
    for t in tl.static_range(TEMPORAL):
        value = tl.load(at + t * t_stride + channel * c_stride, mask=k < SIZE, other=0).to(tl.float32)
        cells = (channel * TEMPORAL + t) * P * P + pixel
        tl.store(out + number * SIZE * TEMPORAL + cells, value * scale - shift, mask=k < SIZE)
