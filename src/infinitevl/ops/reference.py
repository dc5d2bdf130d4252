"""The operations written as their equations, one token at a time. See the package for the contracts."""

from collections.abc import Sequence
from fractions import Fraction

import torch
from torch import Tensor
from torch.nn import functional as F

from infinitevl.ops.groups import Groups
from infinitevl.ops.mixing import DeltaInputs, DeltaWeights, Operations, mix_in_place
from infinitevl.ops.rows import rotate, work_dtype

TURN = 2 * Fraction("3.14159265358979323846264338327950288419716939937510582097494459230781640628620899")


def normalise(x: Tensor) -> Tensor:
    return x / torch.sqrt((x * x).sum(-1, keepdim=True) + 1e-6)


def gated_delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    initial_state: Tensor | None = None,
    *,
    delta: bool = True,
    lengths: Tensor | None = None,
    seq_idx: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    dtype = work_dtype(q)
    (batch, time, heads, key_width), value_width = q.shape, v.shape[-1]
    outputs, finals = [], []
    for b in range(batch):
        state = torch.zeros(heads, key_width, value_width, dtype=dtype, device=q.device)
        if initial_state is not None:
            state = initial_state[b].to(dtype)
        rows = []
        for t in range(time):
            if lengths is not None and t >= lengths[b]:
                rows.append(torch.zeros_like(v[b, t], dtype=dtype))
                continue
            if seq_idx is not None and t > 0 and seq_idx[b, t] != seq_idx[b, t - 1]:
                state = torch.zeros_like(state)
            q_t = normalise(q[b, t].to(dtype)) * key_width**-0.5
            k_t = normalise(k[b, t].to(dtype))
            state = state * g[b, t].to(dtype).exp()[:, None, None]
            written = v[b, t].to(dtype)
            if delta:
                written = written - torch.einsum("hkv,hk->hv", state, k_t)
            state = state + torch.einsum("hk,hv->hkv", k_t, beta[b, t].to(dtype)[:, None] * written)
            rows.append(torch.einsum("hkv,hk->hv", state, q_t))
        outputs.append(torch.stack(rows))
        finals.append(state)
    return torch.stack(outputs).to(v.dtype), torch.stack(finals)


def short_convolution(
    x: Tensor,
    weight: Tensor,
    tail: Tensor | None = None,
    *,
    lengths: Tensor | None = None,
    seq_idx: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    (batch, time, channels), width = x.shape, weight.shape[-1]
    outputs, tails = [], []
    for b in range(batch):
        zeros = x.new_zeros(width - 1, channels)
        past = list(zeros if tail is None else tail[b])
        rows = []
        for t in range(time):
            if lengths is not None and t >= lengths[b]:
                rows.append(x.new_zeros(channels))
                continue
            if seq_idx is not None and t > 0 and seq_idx[b, t] != seq_idx[b, t - 1]:
                past = list(zeros)
            past.append(x[b, t])
            taps = torch.stack(past[-width:], dim=-1).to(work_dtype(x))
            rows.append(F.silu((taps * weight.to(taps.dtype)).sum(-1)).to(x.dtype))
        outputs.append(torch.stack(rows))
        tails.append(torch.stack(past[len(past) - width + 1 :]))
    return torch.stack(outputs), torch.stack(tails)


def slot_of(index: int, size: int, sinks: int) -> int:
    """The ring slot of token `index` in a ring of `size` slots, the first `sinks` of which keep their tokens."""
    return index if index < sinks else sinks + (index - sinks) % (size - sinks)


def window_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    ring_k: Tensor | None = None,
    ring_v: Tensor | None = None,
    count: Tensor | None = None,
    *,
    window: int | None = None,
    sinks: int = 0,
    lengths: Tensor | None = None,
    seq_idx: Tensor | None = None,
) -> Tensor:
    dtype = work_dtype(q)
    (batch, time, heads, width), groups = q.shape, k.shape[2]
    group_of = torch.arange(heads, device=q.device) // (heads // groups)
    outputs = []
    for b in range(batch):
        before = 0 if count is None else int(count[b])
        rows = []
        for t in range(time):
            if lengths is not None and t >= lengths[b]:
                rows.append(q.new_zeros(heads, width))
                continue
            keys, values, i, first = [], [], before + t, 0
            if seq_idx is not None and seq_idx[b, t] != seq_idx[b, 0]:
                first = before + int((seq_idx[b] == seq_idx[b, t]).nonzero()[0])
            for j in range(i + 1):
                s = j - before
                if seq_idx is not None and seq_idx[b, max(s, 0)] != seq_idx[b, t]:
                    continue
                if window is not None and i - j >= window and j - first >= sinks:
                    continue
                if s < 0 and ring_k is not None and ring_v is not None:
                    slot = slot_of(j, ring_k.shape[2], sinks)
                    keys.append(ring_k[b, :, slot])
                    values.append(ring_v[b, :, slot])
                else:
                    keys.append(k[b, s])
                    values.append(v[b, s])
            key = torch.stack(keys, dim=1)[group_of].to(dtype)
            value = torch.stack(values, dim=1)[group_of].to(dtype)
            scores = torch.einsum("hd,hjd->hj", q[b, t].to(dtype), key) * width**-0.5
            rows.append(torch.einsum("hj,hjd->hd", scores.softmax(-1), value).to(q.dtype))
        outputs.append(torch.stack(rows))
    return torch.stack(outputs)


def write_ring(
    ring_k: Tensor,
    ring_v: Tensor,
    k: Tensor,
    v: Tensor,
    count: Tensor,
    *,
    sinks: int = 0,
    lengths: Tensor | None = None,
) -> None:
    for b in range(k.shape[0]):
        length = k.shape[1] if lengths is None else int(lengths[b])
        for t in range(length):
            slot = slot_of(int(count[b]) + t, ring_k.shape[2], sinks)
            ring_k[b, :, slot] = k[b, t]
            ring_v[b, :, slot] = v[b, t]


def group_attention(qkv: Tensor, cos: Tensor, sin: Tensor, groups: Groups) -> Tensor:
    """Token by token."""
    q, k, v = qkv.unbind(1)
    q, k, outputs = rotate(q, cos, sin), rotate(k, cos, sin), torch.zeros_like(v)
    places = groups.split(torch.arange(len(qkv), device=qkv.device))
    for i, members in enumerate(places):
        near = members if groups.mask is None else members[groups.mask[i, 0, 0]]
        for t in near:
            scores = torch.einsum("hd,shd->hs", q[t], k[near]) * q.shape[-1] ** -0.5
            outputs[t] = torch.einsum("hs,shd->hd", scores.softmax(-1), v[near])
    return outputs


def ring_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cos: Tensor,
    sin: Tensor,
    ring_k: Tensor,
    ring_v: Tensor,
    count: Tensor,
    *,
    window: int | None = None,
    sinks: int = 0,
    lengths: Tensor | None = None,
    slots: Tensor | None = None,
) -> Tensor:
    q, k = rotate(q, cos, sin), rotate(k, cos, sin)
    outputs = torch.zeros_like(q)
    for b in range(q.shape[0]):
        place = b if slots is None else int(slots[b])
        if place < 0:
            continue
        row, ring = slice(b, b + 1), (ring_k[place : place + 1], ring_v[place : place + 1])
        rows = {"sinks": sinks, "lengths": None if lengths is None else lengths[row]}
        outputs[row] = window_attention(q[row], k[row], v[row], *ring, count[row], window=window, **rows)
        write_ring(*ring, k[row], v[row], count[row], **rows)
    return outputs


def rotary_table(positions: Tensor, frequencies: Tensor, axes: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """In fractions of whole numbers, to the last turn."""
    f = [Fraction(value) for value in frequencies.tolist()]
    angles = [
        [[float(p[a] * f_i % TURN) for a, f_i in zip(axes.tolist(), f, strict=True)] for p in zip(*row, strict=True)]
        for row in positions.transpose(0, 1).tolist()
    ]
    angle = torch.tensor(angles, dtype=torch.float64, device=positions.device)[:, :, None]
    return angle.cos().to(dtype), angle.sin().to(dtype)


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
    batch, time = vision.shape
    for b in range(batch):
        place = b if slots is None else int(slots[b])
        if place < 0:
            continue
        for t in range(time if lengths is None else int(lengths[b])):
            run[place] = 0 if vision[b, t] else run[place] + 1
            position[place] = max(int(position[place]), int(positions[:, b, t].max()) + 1)
            count[place] += 1


def linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    scale: Tensor | None = None,
) -> Tensor:
    dtype = work_dtype(x)
    weight = weight.to(dtype) if scale is None else weight.to(dtype) * scale.to(dtype)[:, None]
    y = torch.einsum("...k,nk->...n", x.to(dtype), weight)
    for term in (bias, residual):
        if term is not None:
            y = y + term.to(dtype)
    return y.to(x.dtype)


def linear_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor,
    scale: Tensor | None,
    norm: Tensor,
    eps: float,
    *,
    rounded: bool = False,
) -> tuple[Tensor, Tensor]:
    y = linear(x, weight, bias, residual, scale)
    return y, rms_norm(y, norm, eps)


def swiglu(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, scale: Tensor | None = None, *, rounded: bool = False
) -> Tensor:
    gate, up = linear(x.to(work_dtype(x)), weight, bias, None, scale).chunk(2, dim=-1)
    return (gate * torch.sigmoid(gate) * up).to(x.dtype)


def rms_norm(x: Tensor, weight: Tensor, eps: float, *, rounded: bool = False) -> Tensor:
    y = x.to(work_dtype(x))
    return (y / torch.sqrt((y * y).mean(-1, keepdim=True) + eps) * weight.to(y.dtype)).to(x.dtype)


def gated_rms_norm(x: Tensor, gate: Tensor, weight: Tensor, eps: float) -> Tensor:
    wide = x.to(work_dtype(x))
    scale = torch.sqrt((wide * wide).mean(-1, keepdim=True) + eps)
    return (wide / scale * weight.to(wide.dtype) * F.silu(gate.to(wide.dtype))).to(x.dtype)


def delta_mixer(
    x: DeltaInputs,
    weights: DeltaWeights,
    memory: Tensor,
    tail: Tensor,
    *,
    rule: str = "gated_delta",
    slots: Tensor | None = None,
    lengths: Tensor | None = None,
    arrived: Tensor | None = None,
    rounded: bool = False,
) -> Tensor:
    run = Operations(short_convolution, gated_delta_rule, gated_rms_norm)
    return mix_in_place(run, x, weights, memory, tail, rule=rule, slots=slots, lengths=lengths)


def patches(
    frames: Tensor, patch: int, merge: int, mean: Sequence[float], std: Sequence[float], dtype: torch.dtype
) -> Tensor:
    mean_of, std_of = (torch.tensor(x, dtype=torch.float64, device=frames.device) for x in (mean, std))
    colours = (frames / torch.tensor(255.0, dtype=torch.float64) - mean_of) / std_of
    edge, found = merge * patch, []
    for picture in colours:
        for top in range(0, picture.shape[1], edge):
            for left in range(0, picture.shape[2], edge):
                for y in range(top, top + edge, patch):
                    for x in range(left, left + edge, patch):
                        found.append(picture[:, y : y + patch, x : x + patch].permute(3, 0, 1, 2).flatten())
    return torch.stack(found).to(dtype)
