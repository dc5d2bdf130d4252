"""Rows of a batch: which tokens are real, which sequence a token belongs to, how a token is turned to its place."""

import torch
from torch import Tensor


def work_dtype(x: Tensor) -> torch.dtype:
    """The dtype that sums are carried in: float64 for float64 inputs, else float32."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def valid_rows(lengths: Tensor, time: int) -> Tensor:
    """[B] lengths -> [B, T] bool, True where a token is real."""
    return torch.arange(time, device=lengths.device) < lengths[:, None]


def last_rows(lengths: Tensor) -> Tensor:
    """[B] lengths -> [B] index of the last real token (0 where there is none)."""
    return (lengths - 1).clamp(min=0)


def extend_sequence(seq_idx: Tensor, lengths: Tensor | None) -> Tensor:
    """Let padding belong to the last real token's sequence, so that it never looks like a new one."""
    if lengths is None:
        return seq_idx
    last = seq_idx.gather(1, last_rows(lengths)[:, None])
    return torch.where(valid_rows(lengths, seq_idx.shape[1]), seq_idx, last)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate x [B, T, H, D] by the angles of cos and sin [B, T, 1, D / 2], pairing i with i + D / 2."""
    first, second = x.to(cos.dtype).chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1).to(x.dtype)
