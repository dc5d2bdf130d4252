"""Causal depthwise convolution with a carried tail, tap by tap (faster than a grouped convolution on a CPU)."""

import torch
from torch import Tensor
from torch.nn import functional as F

from infinitevl.ops.rows import extend_sequence, valid_rows, work_dtype


def short_convolution(
    x: Tensor,
    weight: Tensor,
    tail: Tensor | None = None,
    *,
    lengths: Tensor | None = None,
    seq_idx: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    (batch, time, channels), width = x.shape, weight.shape[-1]
    if lengths is not None:
        x = x.masked_fill(~valid_rows(lengths, time)[..., None], 0)
    if tail is None:
        tail = x.new_zeros(batch, width - 1, channels)
    padded = torch.cat([tail.to(x.dtype), x], dim=1)
    history = None
    if seq_idx is not None:
        seq_idx = extend_sequence(seq_idx, lengths)
        history = torch.cat([seq_idx[:, :1].expand(-1, width - 1), seq_idx], dim=1)
    y = _taps(padded, weight.to(work_dtype(x)), history)
    if history is not None:
        padded = padded * (history == history[:, -1:])[..., None]
    return F.silu(y).to(x.dtype), _last_inputs(padded, width - 1, lengths)


def _taps(padded: Tensor, weight: Tensor, history: Tensor | None) -> Tensor:
    """sum_j weight[:, j] padded[:, t + j], over taps of the same sequence as the newest where `history` tells."""
    width, time = weight.shape[-1], padded.shape[1] - weight.shape[-1] + 1
    y = padded[:, width - 1 :] * weight[:, -1]
    for j in range(width - 1):
        tap = weight[:, j]
        if history is not None:
            tap = tap * (history[:, j : j + time] == history[:, width - 1 :])[..., None]
        y = torch.addcmul(y, padded[:, j : j + time], tap)
    return y


def _last_inputs(padded: Tensor, count: int, lengths: Tensor | None) -> Tensor:
    """The `count` inputs that end at each row's last real token; padded: [B, count + T, C]."""
    if lengths is None:
        return padded[:, padded.shape[1] - count :]
    rows = lengths[:, None] + torch.arange(count, device=padded.device)
    return padded.gather(1, rows[..., None].expand(-1, -1, padded.shape[-1]))
