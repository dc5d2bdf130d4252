"""Samples of any length packed into rows of one length, with nothing passing between them."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain, groupby

import torch
from torch import Tensor

from infinitevl.data.encode import IGNORED, Encoded


@dataclass
class Batch:
    """B rows of T tokens: packed samples, then padding.

    ids, targets, seq_idx: [B, T]; positions: [3, B, T]; lengths: [B] real tokens of each row;
    frames: uint8 [n, height, width, 3], all images and videos in the order of their tokens, row by row; neighbours
    of one size are one tensor.
    """

    ids: Tensor
    targets: Tensor
    positions: Tensor
    seq_idx: Tensor
    lengths: Tensor
    frames: list[Tensor]

    def to(self, device: torch.device) -> "Batch":
        return self._changed(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> "Batch":
        """A copy in page-locked memory (data loaders ask for it), which goes to a GPU beside its work."""
        return self._changed(Tensor.pin_memory)

    def _changed(self, change: Callable[[Tensor], Tensor]) -> "Batch":
        tensors = {name: change(value) for name, value in vars(self).items() if isinstance(value, Tensor)}
        return Batch(**tensors, frames=[change(frames) for frames in self.frames])

    @property
    def tokens(self) -> int:
        """Real tokens."""
        return int(self.lengths.sum())


def fill_row(
    samples: Iterator[Encoded], tokens: int, waiting: list[Encoded] | None = None, most_waiting: int = 4
) -> list[Encoded]:
    """Samples for one row of `tokens`: first of `waiting`, then of `samples`, in order.

    A sample that does not fit is put into `waiting`; the row ends when that holds `most_waiting` of them. Give the
    same list for the next row, where the oldest comes first, and no sample is lost. Rows are empty in the end.
    ValueError for a sample longer than any row.
    """
    waiting = [] if waiting is None else waiting
    candidates, used = chain(tuple(waiting), samples), 0
    waiting.clear()
    row = []
    for sample in candidates:
        if len(sample) > tokens:
            raise ValueError(f"a sample of {len(sample)} tokens for rows of {tokens}")
        if used + len(sample) <= tokens:
            row.append(sample)
            used += len(sample)
        else:
            waiting.append(sample)
            if len(waiting) >= most_waiting:
                break
    return row


def pack(rows: list[list[Encoded]], tokens: int) -> Batch:
    """Rows of samples, each at most `tokens` long in all, to a batch."""
    ids = torch.zeros(len(rows), tokens, dtype=torch.int64)
    targets, seq_idx = torch.full_like(ids, IGNORED), torch.zeros_like(ids)
    positions = torch.zeros(3, len(rows), tokens, dtype=torch.int64)
    lengths = torch.tensor([sum(map(len, row)) for row in rows])
    for b, row in enumerate(rows):
        start = 0
        for number, sample in enumerate(row):
            place = slice(start, start + len(sample))
            ids[b, place], targets[b, place], seq_idx[b, place] = sample.ids, sample.targets, number
            positions[:, b, place] = sample.positions
            start = place.stop
    frames = [clip for row in rows for sample in row for clip in sample.frames]
    return Batch(ids, targets, positions, seq_idx, lengths, _joined(frames))


def _joined(clips: list[Tensor]) -> list[Tensor]:
    """Neighbouring clips of one size as one: frames do not see each other in the vision tower."""
    runs = groupby(clips, key=lambda clip: clip.shape[1:])
    return [torch.cat(list(run)) for _, run in runs]
