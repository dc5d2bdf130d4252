"""Window attention over a ring of earlier tokens plus the new chunk."""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from infinitevl.ops.rows import rotate, valid_rows

BLOCK = 512  # queries at a time, so that the mask and the scores stay small for long chunks
EMPTY = -1  # token index of a ring slot that was never written


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
    time = q.shape[1]
    if lengths is not None:
        valid = valid_rows(lengths, time)[..., None, None]
        q, k, v = (x.masked_fill(~valid, 0) for x in (q, k, v))
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    index = _chunk_index(count, time, q.device)
    slots = 0
    if ring_k is not None and ring_v is not None and count is not None:
        slots = ring_k.shape[2]
        k, v = torch.cat([ring_k.to(k.dtype), k], dim=2), torch.cat([ring_v.to(v.dtype), v], dim=2)
        index = torch.cat([_ring_index(count, slots, sinks), index], dim=1)
    place = index  # in its own sequence
    if seq_idx is not None:
        seq_idx = torch.cat([seq_idx[:, :1].expand(-1, slots), seq_idx], dim=1)
        place = index - _sequence_start(index, seq_idx)
    outputs = []
    for start, stop in _blocks(time):
        everywhere = seq_idx is not None and sinks > 0  # may the sinks be
        columns = [(0, slots + stop)] if everywhere else _visible_columns(start, stop, slots, window, sinks)
        rows = slice(slots + start, slots + stop)
        mask = _mask(index[:, rows], _take(index, 1, columns), _take(place, 1, columns), window, sinks)
        if seq_idx is not None:
            mask = mask & (seq_idx[:, rows, None] == _take(seq_idx, 1, columns)[:, None])
        outputs.append(_attend(q[:, :, start:stop], _take(k, 2, columns), _take(v, 2, columns), mask))
    return torch.cat(outputs, dim=2).transpose(1, 2)


def _attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    groups = q.shape[1] // k.shape[1]
    if q.is_cuda and groups > 1:  # no fast kernel there takes both a mask and groups
        k, v, groups = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1), 1
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None], enable_gqa=groups > 1)


def _blocks(time: int) -> Iterator[tuple[int, int]]:
    for start in range(0, time, BLOCK):
        yield start, min(start + BLOCK, time)


def _visible_columns(start: int, stop: int, slots: int, window: int | None, sinks: int) -> list[tuple[int, int]]:
    """The ranges of columns of [ring, chunk] that some query of chunk rows start..stop may see."""
    first = 0 if window is None else max(0, start - window + 1)
    if first == 0:
        return [(0, slots + stop)]
    head = min(first, sinks)
    return [(0, min(slots, sinks)), (slots, slots + head), (slots + first, slots + stop)]


def _take(x: Tensor, dim: int, ranges: list[tuple[int, int]]) -> Tensor:
    pieces = [x.narrow(dim, start, stop - start) for start, stop in ranges]
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=dim)


def _mask(query: Tensor, key: Tensor, place: Tensor, window: int | None, sinks: int) -> Tensor:
    """[B, Tq], [B, Tk] token indices, the keys' places in their sequences -> [B, Tq, Tk], True where it is seen."""
    query, key, place = query[:, :, None], key[:, None, :], place[:, None, :]
    seen = (key <= query) & (key != EMPTY)
    if window is None:
        return seen
    near = query - key < window
    return seen & (near | (place < sinks)) if sinks else seen & near


def _sequence_start(index: Tensor, seq_idx: Tensor) -> Tensor:
    """[B, slots + T] token index at which a token's sequence starts; 0 for the first, which the ring belongs to."""
    begins = F.pad(seq_idx[:, 1:] != seq_idx[:, :-1], (1, 0))
    return torch.where(begins, index, 0).cummax(1).values


def _chunk_index(count: Tensor | None, time: int, device: torch.device) -> Tensor:
    """[B or 1, T] index in the stream of the chunk's tokens. Padding comes last, so that no token sees it."""
    steps = torch.arange(time, device=device)
    return steps[None] if count is None else count[:, None] + steps


def _ring_index(count: Tensor, slots: int, sinks: int) -> Tensor:
    """[B, slots] index in the stream of the token that each slot holds after `count` tokens, or EMPTY."""
    slot = torch.arange(slots, device=count.device)
    written = count[:, None] - sinks
    turn = slot[sinks:] - sinks
    index = sinks + (written - 1) - (written - 1 - turn) % (slots - sinks)
    ring = torch.where(index >= sinks, index, EMPTY)
    kept = torch.where(slot[:sinks] < count[:, None], slot[:sinks], EMPTY)
    return torch.cat([kept, ring], dim=1)


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
    turn = ring_k.shape[2] - sinks
    for start in range(0, k.shape[1], turn):  # within `turn` tokens no two share a slot
        k_piece, v_piece = k[:, start : start + turn], v[:, start : start + turn]
        index = count[:, None] + start + torch.arange(k_piece.shape[1], device=k.device)
        slot = torch.where(index < sinks, index, sinks + (index - sinks) % turn)
        valid = None if lengths is None else valid_rows(lengths - start, k_piece.shape[1])
        _write(ring_k, k_piece, slot, valid)
        _write(ring_v, v_piece, slot, valid)


def _write(ring: Tensor, new: Tensor, slot: Tensor, valid: Tensor | None) -> None:
    """Put new [B, T, G, D] at slot [B, T] of ring [B, G, C, D]; padding puts back what was there."""
    new = new.detach().transpose(1, 2).to(ring.dtype)
    where = slot[:, None, :, None].expand_as(new)
    if valid is not None:
        new = torch.where(valid[:, None, :, None], new, ring.gather(2, where))
    ring.scatter_(2, where, new)


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
    """With slots it works on copies of the rings, and asks the device which rows rest."""
    if slots is not None:
        awake = slots >= 0
        o = torch.zeros_like(q, memory_format=torch.contiguous_format)
        q, k, v, cos, sin = (x[awake] for x in (q, k, v, cos, sin))
        rings = ring_k[slots[awake]], ring_v[slots[awake]]
        rows = {"window": window, "sinks": sinks, "lengths": None if lengths is None else lengths[awake]}
        o[awake] = ring_attention(q, k, v, cos, sin, rings[0], rings[1], count[awake], **rows)
        ring_k[slots[awake]], ring_v[slots[awake]] = rings
        return o
    q, k = rotate(q, cos, sin), rotate(k, cos, sin)
    o = window_attention(q, k, v, ring_k, ring_v, count, window=window, sinks=sinks, lengths=lengths)
    write_ring(ring_k, ring_v, k, v, count, sinks=sinks, lengths=lengths)
    return o
