"""What the engine keeps of every stream and every answer."""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor

from infinitevl.engine.pool import Seat
from infinitevl.engine.runner import Prefill
from infinitevl.engine.scheduler import Line
from infinitevl.engine.types import AnswerTold, FrameTold, MemoryNorms, Place, View
from infinitevl.streaming.session import Session
from infinitevl.streaming.text import Writer
from infinitevl.video.sampling import Sampler

log = logging.getLogger(__name__)
RECENT = 10.0  # seconds over which rates are told
MOST_NORMS = 512  # times at which the memory's norm is kept


@dataclass(eq=False)
class Frame:
    """A frame that waits: uint8 [h, w, 3] of the size that the model takes."""

    pixels: Tensor
    time: float
    arrived: float
    told: FrameTold | None


class Norms:
    """The memory's norm over all of a stream's life: when there are too many times, every second one is kept.

    One table, float64 [times, 1 + layers], made at once: lists of numbers would grow for the first 512 frames.
    """

    def __init__(self, layers: int) -> None:
        self._table = np.zeros((MOST_NORMS, 1 + layers))
        self._count, self._step, self._frames = 0, 1, 0
        self._lock = threading.Lock()  # the engine's thread writes, any reads

    def due(self) -> bool:
        """Called after every frame: whether the norm is wanted."""
        self._frames += 1
        return (self._frames - 1) % self._step == 0

    def add(self, at: float, values: list[float]) -> None:
        with self._lock:
            self._table[self._count] = at, *values
            self._count += 1
            if self._count == MOST_NORMS:
                self._count, self._step = MOST_NORMS // 2, 2 * self._step
                self._table[: self._count] = self._table[::2].copy()

    def told(self, layers: list[int]) -> MemoryNorms:
        with self._lock:
            kept = self._table[: self._count].copy()
        return MemoryNorms(layers, kept[:, 0].tolist(), kept[:, 1:].tolist())


@dataclass(eq=False)
class Watched:
    """A stream. seen: time of the newest frame in memory; saved: frames and Unix time of the last save; dirty:
    changed since then; saving: a save is on its way; save_after: when the next may begin; gone: it was let go of;
    taken: another engine holds it; opened: when, by this machine's clock; lock: held while a frame is handed in."""

    id: str
    about: dict[str, Any]
    session: Session
    seat: Seat
    line: Line[Frame]
    sampler: Sampler | None
    norms: Norms
    seen: float | None = None
    saved: tuple[int, float] | None = None
    dirty: bool = False
    saving: bool = False
    gone: bool = False
    taken: bool = False
    save_after: float = 0.0
    opened: float = field(default_factory=time.monotonic)
    lock: threading.Lock = field(default_factory=threading.Lock)
    recent: deque[tuple[float, float]] = field(default_factory=lambda: deque(maxlen=64))  # when served, lag

    @property
    def place(self) -> Place:
        if self.seat.slot is not None:
            return "slot"
        return "disk" if self.seat.fetch else "host"

    @property
    def resting(self) -> bool:
        """Nothing is to be done with it."""
        return not (self.saving or self.line.waiting or self.line.held)

    def view(self, state_bytes: int) -> View:
        now = time.monotonic()
        recent = [pair for pair in list(self.recent) if now - pair[0] <= RECENT]
        fps = (len(recent) - 1) / (recent[-1][0] - recent[0][0]) if len(recent) > 1 else 0.0
        stats = self.session.stats
        return View(
            self.id, self.about, self.session.fps, self.session.max_pixels, self.place, stats.frames, stats.tokens,
            stats.dropped, self.line.unseen, self.seen or 0.0, fps,
            sum(lag for _, lag in recent) / len(recent) if recent else 0.0, state_bytes, self.saved,
        )  # fmt: skip


@dataclass(eq=False)
class Answer:
    """An answer on its way. watched: the stream that it is about (None: of a conversation); token: chosen, but not
    yet fed."""

    id: str
    watched: Watched | None
    prefill: Prefill
    writer: Writer
    told: AnswerTold
    remember: bool
    asked: float
    time: float | None
    frames: int
    text: str = ""
    token: int | None = None
    first: float | None = None


def tell(told: Callable[[Any], None] | None, what: Any) -> None:
    """A listener that fails is its own fault."""
    try:
        if told:
            told(what)
    except Exception:
        log.exception("a listener failed")
