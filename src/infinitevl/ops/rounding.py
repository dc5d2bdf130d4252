"""Numbers in float8_e4m3fn, every row with a scale of its own."""

from typing import NamedTuple

import torch
from torch import Tensor

FP8, LARGEST = torch.float8_e4m3fn, 448.0
SMALLEST = 2.0**-100  # scale of a row of zeros
FEW = 16  # rows that kernels multiply as they are; of more, both sides of a product are in float8


class Rounded(NamedTuple):
    """Rows x[..., k] = values[..., k] scale[...]. values: [..., K] float8_e4m3fn; scale: [...] float32."""

    values: Tensor
    scale: Tensor

    @property
    def shape(self) -> torch.Size:
        return self.values.shape

    def to(self, dtype: torch.dtype) -> Tensor:
        """[..., K]"""
        return (self.values.float() * self.scale[..., None]).to(dtype)


def round_rows(x: Tensor) -> Rounded:
    """To nearest, scales such that the largest number of a row becomes LARGEST: off by at most
    max(|x| / 16, scale / 1024), and by 2.65% in the mean square of numbers that are not all of one size."""
    wide = x.float()
    scale = (wide.abs().amax(-1) / LARGEST).clamp(min=SMALLEST)
    return Rounded((wide / scale[..., None]).to(FP8), scale)
