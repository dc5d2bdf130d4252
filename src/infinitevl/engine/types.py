"""What the engine is asked, and what it tells: plain values, without tensors."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

Result = Literal["seen", "skipped", "dropped", "refused"]
Place = Literal["slot", "host", "disk"]
Reason = Literal["stop", "length", "cancelled", "error"]


@dataclass(frozen=True)
class Budget:
    """What an engine may hold. slots: states on the model's device, computed together; host: states in the host's
    memory; streams: streams in all; questions: answers that wait or are written, in all; waiting: newest frames that
    a stream keeps while it waits for its turn; prompt: tokens of a prompt; save_every: seconds between saves of a
    stream that changes."""

    slots: int = 8
    host: int = 64
    streams: int = 256
    questions: int = 64
    waiting: int = 2
    prompt: int = 16384
    save_every: float = 30.0


@dataclass(frozen=True)
class Asking:
    """How an answer is written: as in `Stream.ask`."""

    max_tokens: int = 128
    temperature: float = 0.0
    top_p: float = 1.0
    stop: Sequence[str] = ()
    seed: int | None = None
    remember: bool = False


@dataclass(frozen=True)
class FrameResult:
    """What became of a frame. time: on the stream's clock; lag: seconds from its arrival to this; message: why it was
    refused."""

    result: Result
    time: float
    lag: float
    message: str | None = None


@dataclass(frozen=True)
class Delta:
    """A piece of an answer."""

    text: str


@dataclass(frozen=True)
class Answered:
    """The end of an answer, and all of it. time, frames: where the stream was when the question came; seconds are of
    the wall clock, from the question on (first: None where no token came)."""

    text: str
    reason: Reason
    time: float | None
    frames: int
    prompt_tokens: int
    completion_tokens: int
    first: float | None
    seconds: float
    error: str | None = None


@dataclass(frozen=True)
class View:
    """How a stream is doing. waiting: frames that came and are not in memory yet; seconds: its clock; fps, lag
    (seconds): of the last seconds; saved: frames in memory when it was last written to the store, and when (Unix
    time)."""

    id: str
    about: dict[str, Any]
    fps_limit: float | None
    max_pixels: int
    place: Place
    frames: int
    tokens: int
    dropped: int
    waiting: int
    seconds: float
    fps: float
    lag: float
    state_bytes: int
    saved: tuple[int, float] | None


@dataclass(frozen=True)
class MemoryNorms:
    """Norm of the memory of the Gated DeltaNet layers over a stream's life: norms[i][j] of layers[j] at times[i]."""

    layers: list[int] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    norms: list[list[float]] = field(default_factory=list)


FrameTold = Callable[[FrameResult], None]
AnswerTold = Callable[[Delta | Answered], None]
Observe = Callable[[str, float], None]
"""Told of everything that is counted: a name and a value, from any thread.

frame_lag, first_token, answer_seconds, step_seconds (seconds); frames, frames_dropped, frames_skipped, tokens,
answers, answers_failed, saves, saves_failed (how many); batch_frames, batch_decode (rows of a step).
"""
