"""Which position every token has: the authors' rule, for prompts and for frames of a stream."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

Grid = tuple[tuple[int, int, int], ...]  # (temporal, height, width) in patches, per image or video


def as_grid(grid_thw: Tensor | None) -> Grid:
    """[images, 3] -> a tuple of ints; reads the tensor on the host."""
    return () if grid_thw is None else tuple((t, h, w) for t, h, w in grid_thw.tolist())


def grid_positions(times: Sequence[int], height: int, width: int) -> Tensor:
    """Offsets [3, len(times) * height * width] of merged patches from where their image or video begins."""
    t = torch.tensor(times, dtype=torch.int64)[:, None, None].expand(-1, height, width)
    h = torch.arange(height)[None, :, None].expand_as(t)
    w = torch.arange(width)[None, None, :].expand_as(t)
    return torch.stack([t, h, w]).flatten(1)


def tick(seconds: float, per_second: float) -> int:
    """The temporal position of a frame, rounded down; that sums of 0.1 fall short of a second does not count."""
    return int(seconds * per_second + 1e-6)


class PositionRule:
    """Numbers the tokens of one sequence from 0, as the authors' implementation does.

    Text counts up. An image or video begins at next + run, run being the length of the text just before it
    (the authors' rule; Qwen2.5-VL's has no `+ run`). Text after it goes on at its largest position + 1.
    """

    def __init__(self) -> None:
        self.next = 0
        self.run = 0

    def text(self, length: int) -> Tensor:
        """[3, length]"""
        start, self.next, self.run = self.next, self.next + length, self.run + length
        return torch.arange(start, start + length).expand(3, -1)

    def vision(self, times: Sequence[int], height: int, width: int) -> Tensor:
        """[3, len(times) * height * width], for temporal offsets `times` and merged patches."""
        positions = self.next + self.run + grid_positions(times, height, width)
        self.next, self.run = int(positions.max()) + 1, 0
        return positions


def number_prompts(
    config: Any,
    input_ids: Tensor,
    images: Grid,
    videos: Grid,
    seconds: Tensor | Sequence[float] | None = None,
    attention_mask: Tensor | None = None,
    seq_idx: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Positions [3, B, T] of prompts [B, T] and the rope deltas [B, 1], largest position + 1 - T.

    config: the model's; images, videos: sizes in the order of their tokens; seconds: between the steps of each video
    (1.0 by default). Every sequence of a packed row counts from 0. ValueError where tokens and sizes do not match.
    """
    sizes = {
        config.image_token_id: iter([(size, 0.0) for size in images]),
        config.video_token_id: iter(_timed(videos, seconds)),
    }
    positions = torch.zeros(3, *input_ids.shape, dtype=torch.int64)
    deltas = torch.zeros(input_ids.shape[0], 1, dtype=torch.int64)
    for b, row in enumerate(input_ids.tolist()):
        real = [True] * len(row) if attention_mask is None else (attention_mask[b] != 0).tolist()
        sequences = [0] * len(row) if seq_idx is None else seq_idx[b].tolist()
        for sequence in dict.fromkeys(sequences):
            places = [t for t in range(len(row)) if real[t] and sequences[t] == sequence]
            numbered = _number([row[t] for t in places], sizes, config.vision_config)
            positions[:, b, places] = numbered
            deltas[b] = (int(numbered.max()) + 1 if places else 0) - len(row)
    return positions.to(input_ids.device), deltas.to(input_ids.device)


def _number(tokens: list[int], sizes: dict[int, Iterator[Any]], vision: Any) -> Tensor:
    """Positions [3, T] of one sequence; takes the sizes of its images and videos."""
    rule, pieces, start = PositionRule(), [torch.zeros(3, 0, dtype=torch.int64)], 0
    merge = vision.spatial_merge_size
    while start < len(tokens):
        stop = next((t for t in range(start, len(tokens)) if tokens[t] in sizes), len(tokens))
        pieces.append(rule.text(stop - start))
        start = stop
        if stop < len(tokens):
            (t, h, w), seconds = next(sizes[tokens[stop]], ((0, 0, 0), 0.0))
            start = stop + t * h * w // merge**2
            if t == 0 or start > len(tokens) or any(token != tokens[stop] for token in tokens[stop:start]):
                raise ValueError("the image and video tokens of the prompt do not match the grids")
            times = [int(i * seconds * vision.tokens_per_second) for i in range(t)]
            pieces.append(rule.vision(times, h // merge, w // merge))
    return torch.cat(pieces, dim=1)


def _timed(videos: Grid, seconds: Tensor | Sequence[float] | None) -> list[tuple[tuple[int, int, int], float]]:
    steps = [1.0] * len(videos) if seconds is None else [float(s) for s in seconds]
    if len(steps) != len(videos):
        raise ValueError(f"{len(steps)} second_per_grid_ts for {len(videos)} videos")
    return list(zip(videos, steps, strict=True))
