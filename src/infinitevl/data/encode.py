"""Samples to token ids, targets, positions and frames, in the form that a `Stream` gives them to the model.

A video is frames one by one, each its own temporal step, as a stream sees it. Loss is on the assistant's words and
the mark that ends them, nowhere else.
"""

import re
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from infinitevl.data.sample import IMAGE_MARK, VIDEO_MARK, BadSample, Sample
from infinitevl.errors import InfiniteVLError
from infinitevl.model.configuration import InfiniteVLConfig
from infinitevl.model.processing import (
    IM_END,
    IM_START,
    SYSTEM,
    VISION_END,
    VISION_START,
    InfiniteVLProcessor,
    load_video,
)
from infinitevl.model.rope import PositionRule
from infinitevl.video.preprocess import resize

IGNORED = -100


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
    ids: list[int] = field(default_factory=list)
    learnt: list[bool] = field(default_factory=list)
    positions: list[Tensor] = field(default_factory=list)
    frames: list[Tensor] = field(default_factory=list)


class Encoder:
    """max_tokens: longer samples are refused. min_pixels, max_pixels: bounds of a frame. max_frames: of a video."""

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

    def __call__(self, sample: Sample) -> Encoded:
        """BadSample, one line, for a sample whose media cannot be read, or that is too long."""
        try:
            return self._encode(sample)
        except BadSample:
            raise
        except InfiniteVLError as error:
            raise BadSample(f"{sample.name}: {error}") from None

    def _encode(self, sample: Sample) -> Encoded:
        sample.check()
        draft, rule = _Draft(), PositionRule()
        media = {IMAGE_MARK: iter(sample.images), VIDEO_MARK: iter(sample.videos)}
        if sample.messages[0]["role"] != "system":
            self._text(draft, rule, SYSTEM)
        for message in sample.messages:
            learnt = message["role"] == "assistant"
            self._text(draft, rule, f"{IM_START}{message['role']}\n")
            for piece in _pieces(message["content"]):
                if piece in media:
                    self._media(draft, rule, piece, next(media[piece]), sample.fps)
                else:
                    self._text(draft, rule, piece, learnt, special=False)
            self._text(draft, rule, IM_END, learnt)
            self._text(draft, rule, "\n")
        if len(draft.ids) > self.max_tokens:
            raise BadSample(f"{sample.name}: {len(draft.ids)} tokens, more than {self.max_tokens}")
        return _finished(draft)

    def _text(self, draft: _Draft, rule: PositionRule, text: str, learnt: bool = False, special: bool = True) -> None:
        ids = self._ids(text, special)
        draft.ids += ids
        draft.learnt += [learnt] * len(ids)
        draft.positions.append(rule.text(len(ids)))

    @lru_cache(maxsize=4096)  # noqa: B019 - an encoder lives as long as the training; most pieces recur
    def _ids(self, text: str, special: bool) -> list[int]:
        return self.processor.encode(text, special=special)

    def _media(self, draft: _Draft, rule: PositionRule, mark: str, source: Any, fps: float) -> None:
        frames = self._frames(source, fps)
        if mark == IMAGE_MARK:
            frames = frames[:1]
        elif self.max_frames is not None and frames.shape[0] > self.max_frames:
            raise BadSample(f"a video of {frames.shape[0]} frames, more than {self.max_frames}")
        vision = self.config.vision_config
        merged = vision.patch_size * vision.spatial_merge_size
        height, width = frames.shape[1] // merged, frames.shape[2] // merged
        token = self.config.image_token_id if mark == IMAGE_MARK else self.config.video_token_id
        self._text(draft, rule, VISION_START)
        times = [int(i / fps * vision.tokens_per_second) for i in range(frames.shape[0])]
        draft.positions.append(rule.vision(times, height, width))
        draft.ids += [token] * (len(times) * height * width)
        draft.learnt += [False] * (len(times) * height * width)
        draft.frames.append(frames)
        self._text(draft, rule, VISION_END)

    def _frames(self, source: Any, fps: float) -> Tensor:
        frames = source if isinstance(source, (np.ndarray, Tensor)) else load_video(source, fps)[0]
        frames = torch.as_tensor(frames)
        vision = self.config.vision_config
        factor = vision.patch_size * vision.spatial_merge_size
        return resize(frames[None] if frames.dim() == 3 else frames, factor=factor, **self.bounds)


def _pieces(content: str) -> list[str]:
    """Text and marks, in order; empty text is left out."""
    return [piece for piece in re.split(f"({IMAGE_MARK}|{VIDEO_MARK})", content) if piece]


def _finished(draft: _Draft) -> Encoded:
    ids = torch.tensor(draft.ids)
    targets = torch.full_like(ids, IGNORED)
    learnt = torch.tensor(draft.learnt)
    targets[:-1] = torch.where(learnt[1:], ids[1:], IGNORED)
    return Encoded(ids, targets, torch.cat(draft.positions, dim=1), draft.frames)
