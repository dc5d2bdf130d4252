"""One endless stream: frames go in, questions are answered, memory stays the same."""

import inspect
import json
import math
import os
import weakref
from collections.abc import Generator, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from time import perf_counter

import numpy as np
import torch
from torch import Tensor

from infinitevl.errors import InfiniteVLError
from infinitevl.model.modeling import InfiniteVLForConditionalGeneration
from infinitevl.model.positions import grid_positions, tick
from infinitevl.model.processing import IM_END, IM_START, SYSTEM, VISION_END, VISION_START
from infinitevl.model.state import State
from infinitevl.streaming.text import Sampling, TextPieces, decode
from infinitevl.video.preprocess import smart_resize
from infinitevl.video.sampling import Sampler

MIN_PIXELS, MAX_PIXELS = 4 * 28 * 28, 256 * 28 * 28  # 4 to 256 tokens a frame
SLACK = 1e-3  # seconds: video files write times in milliseconds, so that 1/3 s is 0.333


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
    phase: str = "new"
    start: float = 0.0
    last: float | None = None
    shift: float = 0.0
    stats: Stats = field(default_factory=Stats)


class Stream:
    """A model that watches: `see` frames, `ask` questions, `fork`, `save` and `load`.

    fps: at most so many frames a second of stream time are taken, the others are ignored (None: all are taken).
    min_pixels, max_pixels: bounds of a frame's size after the resize; 784 pixels make a token. By default a frame
    has at most 256 tokens, and no more than the model's processor allows: small models know small frames alone.
    Not thread-safe: use it from one thread, or hold a lock around `see` and around the call of `ask`.
    """

    def __init__(
        self,
        model: InfiniteVLForConditionalGeneration,
        *,
        fps: float | None = 2.0,
        min_pixels: int = MIN_PIXELS,
        max_pixels: int | None = None,
    ) -> None:
        if model.processor is None:
            raise InfiniteVLError("the model has no processor: use infinitevl.load, or set model.processor")
        self.model = model
        self.state: State = model.allocate_state()
        if max_pixels is None:
            max_pixels = min(MAX_PIXELS, model.processor.settings.max_pixels)
        self.session = Session(fps, min_pixels, max_pixels)
        self._sampler = None if fps is None else Sampler(fps, SLACK)
        self._writer: weakref.ref[Generator[str]] | None = None  # the answer being written into this stream

    @property
    def stats(self) -> Stats:
        return replace(self.session.stats, state_bytes=self.state.nbytes)

    @torch.inference_mode()
    def see(self, frame: np.ndarray | Tensor, time: float | None = None) -> bool:
        """Take in a frame, uint8 RGB [H, W, 3], seen at `time` seconds (by default one step after the last).

        Returns False for a frame that comes sooner than `fps` allows, which changes nothing.
        """
        self._check_free()
        pixels = self._checked(frame)
        at = self._stream_time(time)
        if self._sampler is not None and not self._sampler.take(at):
            return False
        began = perf_counter()
        self._open_video(at)
        self._take(pixels, at)
        session = self.session
        session.last = at
        session.stats.frames += 1
        session.stats.seconds += perf_counter() - began
        return True

    def ask(
        self,
        question: str,
        *,
        remember: bool = False,
        max_new_tokens: int = 128,
        temperature: float = 0.0,
        top_p: float = 1.0,
        stop: Sequence[str] = (),
        seed: int | None = None,
    ) -> Iterator[str]:
        """Answer about all that was seen until now, piece by piece; "".join(...) is the whole answer.

        The answer is written on a fork taken by this call, so frames may be seen while it is read. With
        `remember` question and answer become part of the stream: read the answer to its end, or close it, before
        the next frame. The answer ends at the model's end mark, before a stop string, or after max_new_tokens.
        """
        self._check_free()
        if not question.strip():
            raise InfiniteVLError("the question is empty")
        if max_new_tokens < 1:
            raise InfiniteVLError(f"max_new_tokens must be at least 1, not {max_new_tokens}")
        sampling = Sampling(temperature, top_p, seed)
        speaker = self if remember else self.fork()
        answer = speaker._answer(question.strip(), max_new_tokens, sampling, stop)
        speaker._writer = weakref.ref(answer)
        return answer

    def fork(self) -> "Stream":
        """An independent stream with the same memory."""
        self._check_free()
        branch = object.__new__(Stream)
        branch.model, branch.state = self.model, self.state.fork()
        branch.session = replace(self.session, stats=replace(self.session.stats))
        branch._sampler = self._resumed_sampler(branch.session)
        branch._writer = None
        return branch

    def save(self, path: str | os.PathLike) -> None:
        """Write everything to a file of constant size, atomically."""
        self._check_free()
        self.state.save(path, {"stream": json.dumps(asdict(self.session))})

    @classmethod
    def load(cls, model: InfiniteVLForConditionalGeneration, path: str | os.PathLike) -> "Stream":
        """Go on from a saved stream. InfiniteVLError for a file that is damaged or of another model."""
        stream = cls(model)
        extra = stream.state.load(path)
        if "stream" not in extra:
            raise InfiniteVLError(f"{path} is the state of a model, not a saved stream")
        try:
            values = json.loads(extra["stream"])
            stream.session = Session(**{**values, "stats": Stats(**values["stats"])})
        except (ValueError, TypeError, KeyError) as error:
            raise InfiniteVLError(f"{path} is damaged: what it says of the stream cannot be read") from error
        stream._sampler = cls._resumed_sampler(stream.session)
        return stream

    @staticmethod
    def _resumed_sampler(session: Session) -> Sampler | None:
        if session.fps is None:
            return None
        sampler = Sampler(session.fps, SLACK)
        if session.last is not None:
            sampler.take(session.last)
        return sampler

    def _check_free(self) -> None:
        answer = self._writer() if self._writer else None
        if answer is not None and inspect.getgeneratorstate(answer) != inspect.GEN_CLOSED:
            raise InfiniteVLError(
                "an answer is still being written into this stream: read it to its end, or close it, first"
            )

    def _checked(self, frame: np.ndarray | Tensor) -> Tensor:
        """The frame as a tensor uint8 [H, W, 3]. InfiniteVLError where it is none."""
        array = frame if isinstance(frame, Tensor) else np.asarray(frame)
        kind = str(array.dtype).removeprefix("torch.")
        if kind != "uint8" or array.ndim != 3 or array.shape[2] != 3 or 0 in array.shape:
            raise InfiniteVLError(f"a frame must be uint8 [H, W, 3], not {kind} {list(array.shape)}")
        bounds = {"min_pixels": self.session.min_pixels, "max_pixels": self.session.max_pixels}
        smart_resize(*array.shape[:2], **bounds)  # complains of extreme shapes
        if isinstance(array, Tensor):
            return array
        return torch.from_numpy(np.require(array, requirements=["C", "W"]))  # a copy of flipped or read-only views

    def _stream_time(self, time: float | None) -> float:
        """Seconds on the stream's clock. A time that goes back belongs to a new source: it continues the clock."""
        session = self.session
        if time is not None and not math.isfinite(time):
            raise InfiniteVLError(f"the time of a frame must be a number of seconds, not {time}")
        step = 1 / session.fps if session.fps else 0.5
        if session.last is None:
            return time or 0.0
        if time is None:
            return session.last + step
        if time + session.shift < session.last:
            session.shift = session.last + step - time
        return time + session.shift

    def _open_video(self, at: float) -> None:
        """Say what comes before a video, unless one is open."""
        if self.session.phase == "video":
            return
        before = SYSTEM if self.session.phase == "new" else f"{IM_END}\n"
        self._feed(self._encode(f"{before}{IM_START}user\n{VISION_START}"))
        self.state.open_video()
        self.session.phase, self.session.start = "video", at

    def _take(self, pixels: Tensor, at: float) -> None:
        model, session = self.model, self.session
        patches, grid = model.processor.patches(
            pixels[None].to(model.device), min_pixels=session.min_pixels, max_pixels=session.max_pixels
        )
        features = model.encode(patches, (grid,))[None]
        take_frames(model, self.state, features, grid[1:], [at - session.start])
        session.stats.tokens += features.shape[1]

    def _answer(self, question: str, limit: int, sampling: Sampling, stop: Sequence[str]) -> Generator[str]:
        """Write the question, then the answer, into this stream's own state."""
        logits = self._feed(self._question(question))
        self.session.phase = "answered"
        pieces = TextPieces(self.model.processor.tokenizer, stop)
        yield from decode(logits, self._feed, sampling, pieces, limit=limit, ends=self.model.end_tokens())

    def _question(self, question: str) -> list[int]:
        opening = {
            "new": f"{SYSTEM}{IM_START}user\n",
            "video": VISION_END,
            "answered": f"{IM_END}\n{IM_START}user\n",
        }[self.session.phase]
        closing = f"{IM_END}\n{IM_START}assistant\n"
        asked = self.model.processor.encode(question, special=False)
        return [*self._encode(opening), *asked, *self._encode(closing)]

    @torch.inference_mode()
    def _feed(self, tokens: list[int]) -> Tensor:
        """Put text into the state; logits [vocabulary] after it."""
        ids = torch.tensor([tokens], device=self.model.device)
        self.session.stats.tokens += len(tokens)
        return self.model(ids, past_key_values=self.state, logits_to_keep=1).logits[0, -1]

    def _encode(self, text: str) -> list[int]:
        return self.model.processor.encode(text)


def take_frames(
    model: InfiniteVLForConditionalGeneration,
    state: State,
    features: Tensor,
    size: tuple[int, int],
    seconds: Sequence[float],
) -> None:
    """Put the next n frames of every row into the state, in place.

    features: [B, n * tokens, hidden], as `encode` gives them; size: height and width of a frame in patches;
    seconds: of each frame, since the open video's first one.
    """
    vision = model.config.vision_config
    merge, times = vision.spatial_merge_size, [tick(time, vision.tokens_per_second) for time in seconds]
    offsets = grid_positions(times, size[0] // merge, size[1] // merge).to(model.device)
    positions = state.base[None, :, None] + offsets[:, None]
    is_vision = torch.ones(positions.shape[1:], dtype=torch.bool, device=model.device)
    model.model.language_model(features, positions, is_vision, state=state)
