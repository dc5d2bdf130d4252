"""Samples to token ids, targets, positions and frames, in the form that a `Stream` gives them to the model.

A video is frames one by one, each its own temporal step, as a stream sees it. Loss is on the assistant's words and
the mark that ends them, nowhere else.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from infinitevl.data.sample import IMAGE_MARK, VIDEO_MARK, BadSample, Sample
from infinitevl.errors import InfiniteVLError
from infinitevl.model.configuration import InfiniteVLConfig
from infinitevl.model.positions import PositionRule, tick
from infinitevl.model.processing import (
    IM_END,
    IM_START,
    SYSTEM,
    VISION_END,
    VISION_START,
    InfiniteVLProcessor,
)
from infinitevl.video.media import timed_frames
from infinitevl.video.resize import resize

IGNORED = -100
SPARSEST = 256  # a longer video has one frame of so many, and more are too many


@dataclass
class Encoded:
    """ids: [T]; targets: [T], the next token where it is to be learnt, else IGNORED; positions: [3, T];
    frames: uint8 [n, height, width, 3] of each image or video, in the order of their tokens."""

    ids: Tensor
    targets: Tensor
    positions: Tensor
    frames: list[Tensor]

    def __len__(self) -> int:
        return self.ids.shape[0]


@dataclass
class _Draft:
    """A sample in the making. unplaced: how much of the text at the end has no positions yet."""

    ids: list[int] = field(default_factory=list)
    learnt: list[bool] = field(default_factory=list)
    positions: list[Tensor] = field(default_factory=list)
    frames: list[Tensor] = field(default_factory=list)
    rule: PositionRule = field(default_factory=PositionRule)
    unplaced: int = 0

    def text(self, ids: list[int], learnt: bool = False) -> None:
        self.ids += ids
        self.learnt += [learnt] * len(ids)
        self.unplaced += len(ids)

    def vision(self, token: int, times: list[int], height: int, width: int, frames: Tensor) -> None:
        count = len(times) * height * width
        self.ids += [token] * count
        self.learnt += [False] * count
        self._place_text()
        self.positions.append(self.rule.vision(times, height, width))
        self.frames.append(frames)

    def finished(self) -> Encoded:
        self._place_text()
        ids = torch.tensor(self.ids)
        targets = torch.full_like(ids, IGNORED)
        targets[:-1] = torch.where(torch.tensor(self.learnt)[1:], ids[1:], IGNORED)
        return Encoded(ids, targets, torch.cat(self.positions, dim=1), self.frames)

    def _place_text(self) -> None:
        self.positions.append(self.rule.text(self.unplaced))
        self.unplaced = 0


class Encoder:
    """max_tokens: longer samples are refused. min_pixels, max_pixels: bounds of a frame. max_frames: of a video; of
    one with more, or more than there is room for, every second, fourth, ... is taken. None: it is refused.
    """

    def __init__(
        self,
        processor: InfiniteVLProcessor,
        config: InfiniteVLConfig,
        *,
        max_tokens: int,
        min_pixels: int,
        max_pixels: int,
        max_frames: int | None = None,
    ) -> None:
        self.processor, self.config = processor, config
        self.max_tokens, self.max_frames = max_tokens, max_frames
        self.bounds = {"min_pixels": min_pixels, "max_pixels": max_pixels}
        vision = config.vision_config
        self.side, self.per_second = vision.patch_size * vision.spatial_merge_size, vision.tokens_per_second

    def __call__(self, sample: Sample) -> Encoded:
        """BadSample, one line, for a sample whose media cannot be read, or that is too long."""
        try:
            return self._encode(sample.check())
        except BadSample:
            raise
        except (InfiniteVLError, OSError, TypeError, ValueError) as error:
            raise BadSample(f"{sample.name}: {' '.join(str(error).split())}") from None

    def _encode(self, sample: Sample) -> Encoded:
        draft, media = _Draft(), {IMAGE_MARK: iter(sample.images), VIDEO_MARK: iter(sample.videos)}
        said = list(self._said(sample))
        most = None if self.max_frames is None else (self.max_frames, self._room(said, len(sample.videos)))
        for piece, learnt in said:
            if isinstance(piece, str):
                self._media(draft, piece, next(media[piece]), sample.fps, most)
            else:
                draft.text(piece, learnt)
        if len(draft.ids) > self.max_tokens:
            raise InfiniteVLError(f"{len(draft.ids)} tokens, more than {self.max_tokens}")
        return draft.finished()

    def _said(self, sample: Sample) -> Iterator[tuple[list[int] | str, bool]]:
        """The conversation in order: tokens of text, or the mark of a picture or video; whether they are learnt."""
        if sample.messages[0]["role"] != "system":
            yield self._ids(SYSTEM), False
        for message in sample.messages:
            learnt = message["role"] == "assistant"
            yield self._ids(f"{IM_START}{message['role']}\n"), False
            for piece in _pieces(message):
                if piece in (IMAGE_MARK, VIDEO_MARK):
                    yield piece, False
                else:
                    yield self._ids(piece, special=False), learnt
            yield self._ids(IM_END), learnt
            yield self._ids("\n"), False

    def _room(self, said: list[tuple[list[int] | str, bool]], videos: int) -> int:
        """Tokens for each of so many videos beside the text, if each is one and there are no pictures."""
        around = len(self._ids(VISION_START)) + len(self._ids(VISION_END))
        taken = sum(around if isinstance(piece, str) else len(piece) for piece, _ in said)
        return (self.max_tokens - taken) // max(1, videos)

    @lru_cache(maxsize=4096)  # noqa: B019 - an encoder lives as long as the training; most pieces recur
    def _ids(self, text: str, special: bool = True) -> list[int]:
        return self.processor.encode(text, special=special)

    def _media(self, draft: _Draft, mark: str, source: Any, fps: float, most: tuple[int, int] | None) -> None:
        """most: frames and tokens of a video, of which `_some` are taken; None where `_all` are, or it is refused."""
        timed = self._frames(source, fps)
        is_image = mark == IMAGE_MARK
        if is_image:
            pairs = list(islice(timed, 1))
        elif most is None:
            pairs = self._all(timed, self.max_tokens - len(draft.ids))
        else:
            pairs = self._some(timed, *most)
        if len({frame.shape for _, frame in pairs}) != 1:
            raise InfiniteVLError("the frames of a video differ in size" if pairs else "a video without frames")
        token = self.config.image_token_id if is_image else self.config.video_token_id
        for video in self._videos(pairs):
            frames, start = torch.stack([frame for _, frame in video]), video[0][0]
            times = [tick(time - start, self.per_second) for time, _ in video]
            draft.text(self._ids(VISION_START))
            draft.vision(token, times, frames.shape[1] // self.side, frames.shape[2] // self.side, frames)
            draft.text(self._ids(VISION_END))

    def _videos(self, pairs: list[tuple[float, Tensor]]) -> list[list[tuple[float, Tensor]]]:
        """A video cut where a stream would begin the next one."""
        videos = [pairs[:1]]
        for time, frame in pairs[1:]:
            if self.processor.settings.ends_video(time - videos[-1][0][0]):
                videos.append([])
            videos[-1].append((time, frame))
        return videos

    def _all(self, timed: Iterator[tuple[float, Tensor]], room: int) -> list[tuple[float, Tensor]]:
        """All frames. Reading ends where they are too many, so that an hour of video is refused soon."""
        pairs, tokens = [], 0
        for time, frame in timed:
            pairs.append((time, frame))
            tokens += self._tokens(frame)
            if tokens > room:
                raise InfiniteVLError(f"more than {self.max_tokens} tokens, {len(pairs)} frames into a video")
        return pairs

    def _some(self, timed: Iterator[tuple[float, Tensor]], most: int, room: int) -> list[tuple[float, Tensor]]:
        """At most so many frames, of so many tokens, evenly: every second of those so far goes when they are too many,
        and of those to come."""
        pairs, step = [], 1
        for number, (time, frame) in enumerate(timed):
            if number % step:
                continue
            pairs.append((time, frame))
            if len(pairs) > min(most, room // self._tokens(frame)):
                pairs, step = pairs[::2], 2 * step
            if step > SPARSEST:
                raise InfiniteVLError(f"a video of more than {number} frames, for {most} and {room} tokens")
        return pairs

    def _tokens(self, frame: Tensor) -> int:
        return frame.shape[0] * frame.shape[1] // self.side**2

    def _frames(self, source: Any, fps: float) -> Iterator[tuple[float, Tensor]]:
        """Frames of a size that the model takes, and their seconds: answers are about the whole video."""
        for time, frame in timed_frames(source, fps, whole=True):
            yield time, resize(frame[None], factor=self.side, **self.bounds)[0]


def _pieces(message: dict[str, str]) -> list[str]:
    """Text and marks, in order. What a user says is stripped around every mark, as a `Stream` strips questions."""
    pieces = re.split(f"({IMAGE_MARK}|{VIDEO_MARK})", message["content"])
    if message["role"] == "user":
        pieces = [piece.strip() for piece in pieces]
    return [piece for piece in pieces if piece]
