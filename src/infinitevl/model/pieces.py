"""Chunks of any length in pieces of a few: CUDA graphs know no others."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from infinitevl.model import graphs
from infinitevl.model.state import State

PIECES = (1, 8, 16, 32, 64, 128, 256, 512, 1024)  # tokens of a row
AT_ONCE = 8192  # tokens of all rows that a piece holds at most, if it is longer than the shortest


def in_pieces(
    model: Any, state: State, name: str, put: Callable[..., Tensor], inputs: tuple[Tensor, ...], lengths: Tensor
) -> Iterator[tuple[int, Tensor]]:
    """put(state, *inputs, lengths) of all that inputs [B, T, ...] hold; where graphs replay it, piece after piece.

    lengths: [B] real tokens of each row, then padding. On the host, `put` is given none of a piece that they fill.
    name: of `put`, as in `graphs.run`. Yields where each piece begins in T, and its result; the last piece may be
    longer than what is left of T.
    """
    rows, total = inputs[0].shape[:2]
    replayed = graphs.replays(model, state)
    longest = max((n for n in PIECES if n * rows <= AT_ONCE), default=PIECES[0]) if replayed else total
    for start in range(0, total, longest):
        piece = piece_of(min(longest, total - start)) if replayed else total
        parts = [_padded(x[:, start : start + piece], piece) for x in inputs]
        here = (lengths - start).clamp(0, piece)
        ragged = here.is_cuda or bool((here < piece).any())  # reading it costs nothing on the host
        yield start, graphs.run(model, (name, ragged), put, *parts, *([here] if ragged else []), state=state)


def piece_of(length: int) -> int:
    """The shortest of PIECES that holds so many tokens."""
    return next(piece for piece in PIECES if piece >= length)


def _padded(x: Tensor, length: int) -> Tensor:
    """[B, T, ...] -> [B, length, ...], zeros behind."""
    missing = length - x.shape[1]
    return x if not missing else torch.cat([x, x.new_zeros(x.shape[0], missing, *x.shape[2:])], dim=1)
