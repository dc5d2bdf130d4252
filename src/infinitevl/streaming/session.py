"""What a stream is apart from the model's memory: its clock, its rate, where its conversation stands."""

import json
from dataclasses import asdict, dataclass, field
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from infinitevl.errors import InfiniteVLError
from infinitevl.model.processing import (
    IM_END,
    IM_START,
    SLACK,
    SYSTEM,
    VISION_END,
    VISION_START,
    InfiniteVLProcessor,
    MediaSettings,
)
from infinitevl.video.resize import smart_resize
from infinitevl.video.sampling import Sampler

LATEST = 1e11  # seconds of a frame's time, before or after 0: some 3,000 years
MIN_PIXELS, MAX_PIXELS = 4 * 28 * 28, 256 * 28 * 28  # 4 to 256 tokens a frame
OPENINGS = {"new": f"{SYSTEM}{IM_START}user\n", "video": VISION_END, "answered": f"{IM_END}\n{IM_START}user\n"}


@dataclass
class Stats:
    """frames: taken into memory; tokens: all that the memory has seen; dropped: frames that a live source
    dropped; seconds: spent on frames; state_bytes: size of the memory."""

    frames: int = 0
    tokens: int = 0
    dropped: int = 0
    seconds: float = 0.0
    state_bytes: int = 0

    @property
    def seconds_per_frame(self) -> float:
        return self.seconds / self.frames if self.frames else 0.0


@dataclass
class Session:
    """Where a stream stands, apart from the model's state; saved with it.

    phase: "new" (nothing said), "video" (frames may follow), "answered" (an answer was remembered).
    start: time of the open video's first frame. last: time of the newest frame. shift: added to the times given,
    so that a source that begins at zero again continues the stream.
    """

    fps: float | None = 2.0
    min_pixels: int = MIN_PIXELS
    max_pixels: int = MAX_PIXELS
    phase: Literal["new", "video", "answered"] = "new"
    start: float = 0.0
    last: float | None = None
    shift: float = 0.0
    stats: Stats = field(default_factory=Stats)

    @classmethod
    def begin(cls, processor: InfiniteVLProcessor, fps: float | None, min_pixels: int, max_pixels: int | None):
        """A new one. max_pixels None: the default, and no more than the processor allows."""
        session = cls(fps, min_pixels, min(MAX_PIXELS, processor.settings.max_pixels))
        session.max_pixels = session.max_pixels if max_pixels is None else max_pixels
        session.sampler()  # complains of an impossible rate
        return session

    def dumps(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def loads(cls, text: str) -> "Session":
        """Raises ValueError, TypeError or KeyError for what `dumps` did not write."""
        values = json.loads(text)
        return cls(**{**values, "stats": Stats(**values["stats"])})

    def sampler(self) -> Sampler | None:
        """Which frames are taken from here on; None: all."""
        if self.fps is None:
            return None
        sampler = Sampler(self.fps, SLACK)
        if self.last is not None:
            sampler.take(self.last)
        return sampler

    def time(self, given: float | None) -> float:
        """Seconds on the stream's clock. A time that goes back belongs to a new source: it continues the clock."""
        if given is not None and not abs(given) <= LATEST:  # nor NaN
            raise InfiniteVLError(f"the time of a frame must be a number of seconds, not {given}")
        step = 1 / self.fps if self.fps else 0.5
        if self.last is None:
            return given or 0.0
        if given is None:
            return self.last + step
        if given + self.shift < self.last:
            self.shift = self.last + step - given
        return given + self.shift

    def before_frame(self, settings: MediaSettings, at: float) -> str:
        """What is said before a frame at this time: nothing inside a video."""
        if self.phase == "video":
            return f"{VISION_END}{VISION_START}" if settings.ends_video(at - self.start) else ""
        before = SYSTEM if self.phase == "new" else f"{IM_END}\n"
        return f"{before}{IM_START}user\n{VISION_START}"

    def question(self, processor: InfiniteVLProcessor, text: str) -> list[int]:
        """The tokens of a question here. InfiniteVLError for an empty one."""
        return self.asked(processor, question_tokens(processor, text))

    def asked(self, processor: InfiniteVLProcessor, tokens: list[int]) -> list[int]:
        """The same for tokens of `question_tokens`."""
        opening = processor.encode(OPENINGS[self.phase])
        return [*opening, *tokens, *processor.encode(f"{IM_END}\n{IM_START}assistant\n")]

    def frame(self, frame: np.ndarray | Tensor) -> Tensor:
        """The frame as a tensor uint8 [H, W, 3]. InfiniteVLError where it is none."""
        array = frame if isinstance(frame, Tensor) else np.asarray(frame)
        if array.dtype not in (torch.uint8, np.uint8) or array.ndim != 3 or array.shape[2] != 3 or 0 in array.shape:
            kind = str(array.dtype).removeprefix("torch.")
            raise InfiniteVLError(f"a frame must be uint8 [H, W, 3], not {kind} {list(array.shape)}")
        bounds = {"min_pixels": self.min_pixels, "max_pixels": self.max_pixels}
        smart_resize(*array.shape[:2], **bounds)  # complains of extreme shapes
        if isinstance(array, Tensor):
            return array
        return torch.from_numpy(np.require(array, requirements=["C", "W"]))  # a copy of flipped or read-only views


def question_tokens(processor: InfiniteVLProcessor, text: str) -> list[int]:
    """The tokens of a question, wherever it is asked. InfiniteVLError for an empty one."""
    if not text.strip():
        raise InfiniteVLError("the question is empty")
    return processor.encode(text.strip(), special=False)
