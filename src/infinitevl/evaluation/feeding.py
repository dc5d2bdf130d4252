"""Frames of many streams, made by worker processes while the model is busy."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from infinitevl.data.forking import started
from infinitevl.evaluation.scores import Ask
from infinitevl.evaluation.shows import Show, Shown

FRAMES_AT_ONCE = 2048  # of all streams together, passed on in one piece


@dataclass
class Notes:
    """Of a piece: asks (frame, stream, question), asked right after the frame; edges (frame, stream).

    Frames count from the beginning of the piece, streams from the first of the batch.
    """

    asks: list[tuple[int, int, Ask]] = field(default_factory=list)
    edges: list[tuple[int, int]] = field(default_factory=list)


@dataclass(frozen=True)
class Cast:
    """Streams of one show that are played together."""

    show: Show
    seeds: range

    def starts(self) -> range:
        """The first frame of each piece."""
        return range(0, self.show.length, max(1, min(32, FRAMES_AT_ONCE // len(self.seeds))))


Piece = tuple[Tensor, Notes]  # uint8 [streams, frames, size, size, 3]


def feed(casts: Sequence[Cast], workers: int, device: torch.device) -> Iterator[Piece]:
    """All pieces of all casts, in order, on `device`. Each worker makes some streams of every cast."""
    shares, pin = max(1, workers), device.type == "cuda"
    loader = DataLoader(
        _Shares(casts, shares), batch_size=None, num_workers=workers, collate_fn=_as_it_is, pin_memory=pin
    )
    shared = started(loader)  # of each worker in turn
    while parts := list(islice(shared, shares)):
        notes = Notes()
        for _, (asks, edges) in parts:
            notes.asks += asks
            notes.edges += edges
        yield torch.cat([frames.to(device, non_blocking=True) for frames, _ in parts]), notes


class _Shares(IterableDataset):
    """One worker's streams of every piece, as (frames, (asks, edges))."""

    def __init__(self, casts: Sequence[Cast], shares: int) -> None:
        self.casts, self.shares = casts, shares

    def __iter__(self) -> Iterator[tuple[Tensor, tuple[list, list]]]:
        info = get_worker_info()
        share = info.id if info else 0
        torch.set_num_threads(1)
        for cast in self.casts:
            count = len(cast.seeds)
            mine = range(share * count // self.shares, (share + 1) * count // self.shares)
            plays = [(stream, cast.show.play(cast.seeds[stream])) for stream in mine]
            starts = cast.starts()
            for start in starts:
                yield _piece(plays, min(starts.step, cast.show.length - start), cast.show.size)


def _piece(plays: list[tuple[int, Iterator[Shown]]], length: int, size: int) -> tuple[Tensor, tuple[list, list]]:
    frames = np.empty((len(plays), length, size, size, 3), np.uint8)
    asks, edges = [], []
    for row, (stream, play) in enumerate(plays):
        for index, shown in enumerate(islice(play, length)):
            frames[row, index] = shown.frame
            asks += [(index, stream, ask) for ask in shown.asks]
            edges += [(index, stream)] if shown.edge else []
    return torch.from_numpy(frames), (asks, edges)


def _as_it_is(item):
    return item
