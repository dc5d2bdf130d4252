"""Causal depthwise convolution with a carried tail."""

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
    wide, taps = padded.to(work_dtype(x)), weight.to(work_dtype(x))
    if seq_idx is None:
        y = F.conv1d(wide.transpose(1, 2), taps[:, None], groups=channels).transpose(1, 2)
        return F.silu(y).to(x.dtype), _last_inputs(padded, width - 1, lengths)
    seq_idx = extend_sequence(seq_idx, lengths)
    history = torch.cat([seq_idx[:, :1].expand(-1, width - 1), seq_idx], dim=1)
    y = torch.zeros_like(x, dtype=wide.dtype)
    for j in range(width):
        same = (history[:, j : j + time] == seq_idx)[..., None]
        y = y + taps[:, j] * wide[:, j : j + time] * same
    last_seq = history[:, -1:]
    kept = padded * (history == last_seq)[..., None]
    return F.silu(y).to(x.dtype), _last_inputs(kept, width - 1, lengths)


def _last_inputs(padded: Tensor, count: int, lengths: Tensor | None) -> Tensor:
    """The `count` inputs that end at each row's last real token; padded: [B, count + T, C]."""
    if lengths is None:
        return padded[:, padded.shape[1] - count :]
    rows = lengths[:, None] + torch.arange(count, device=padded.device)
    return padded.gather(1, rows[..., None].expand(-1, -1, padded.shape[-1]))
