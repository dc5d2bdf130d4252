"""What a source of frames is, and how one is watched: as it comes, or live with the newest frames first."""

import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator

import numpy as np

from infinitevl.errors import FrameError, InfiniteVLError, VideoError
from infinitevl.video.sampling import Sampler

Timed = tuple[float, np.ndarray]
"""Seconds from the start of the video, and a uint8 RGB picture [H, W, 3]."""

Keep = Callable[[float], bool]
"""Told the time of every frame of a source in order, before its pixels are made: whether it is wanted."""


class Source(ABC):
    """Where frames come from."""

    name: str
    duration: float | None = None
    frames: int | None = None
    live: bool = False
    paced: bool = False  # frames come faster than real time unless held back
    tick: float = 0.0  # seconds to which the times are rounded

    @abstractmethod
    def read(self, keep: Keep) -> Iterator[Timed]:
        """The frames that `keep` wants. Ends with VideoError if the source broke, after what it gave."""

    def close(self) -> None:  # noqa: B027
        """Lets the source go. Safe to repeat; not while another thread is reading."""


class _Closed(Exception):
    """Unwinds the reader thread."""


class Live:
    """Iterator over the newest frames of `source`, which a thread reads from now on.

    At most `size` frames wait; when one more comes, the oldest is dropped and counted in `dropped`. An error
    of the thread is raised here after the frames that came before it. VideoError if the source gives nothing
    for `timeout` seconds. A paced source is played at its own speed.
    """

    def __init__(self, source: Source, keep: Keep, *, size: int, timeout: float) -> None:
        if size < 1:
            raise InfiniteVLError(f"queue must hold at least one frame, not {size}")
        self.dropped = 0
        self._source, self._keep, self._timeout = source, keep, timeout
        self._waiting: deque[Timed] = deque(maxlen=size)
        self._ready = threading.Condition()
        self._stop = threading.Event()
        self._ended = False
        self._error: BaseException | None = None
        self._start: float | None = None
        self._alive = time.monotonic()
        self._thread = threading.Thread(target=self._run, name=f"video {source.name}", daemon=True)
        self._thread.start()

    def __iter__(self) -> Iterator[Timed]:
        return self

    def __next__(self) -> Timed:
        with self._ready:
            while not self._waiting:
                self._wait()
            return self._waiting.popleft()

    def close(self) -> None:
        """Stops the thread. One that is blocked inside its source ends by itself when the source returns."""
        with self._ready:
            self._stop.set()
            self._waiting.clear()
            self._ready.notify_all()
        if self._thread is not threading.current_thread():
            self._thread.join(timeout=1.0)

    def _wait(self) -> None:
        if self._stop.is_set():
            raise StopIteration
        if self._ended:
            raise self._error or StopIteration
        left = self._alive + self._timeout - time.monotonic()
        if left <= 0:
            raise VideoError(f"{self._source.name}: no frame came for {self._timeout:g} s")
        self._ready.wait(left)

    def _run(self) -> None:
        try:
            for timed in self._source.read(self._arrived):
                self._put(timed)
        except _Closed:
            pass
        except BaseException as error:  # whatever it is, it belongs to the consumer
            self._error = error
        finally:
            self._source.close()
            with self._ready:
                self._ended = True
                self._ready.notify_all()

    def _arrived(self, at: float) -> bool:
        """Every frame of the source passes here, wanted or not."""
        self._alive = time.monotonic()
        if self._source.paced:
            self._pace(at)
        if self._stop.is_set():
            raise _Closed
        return self._keep(at)

    def _pace(self, at: float) -> None:
        """Sleeps until the frame at `at` seconds is due; the sleep is not a stall."""
        if self._start is None:
            self._start = self._alive - at
        early = self._start + at - self._alive
        if early > 0:
            self._alive += early
            self._stop.wait(early)

    def _put(self, timed: Timed) -> None:
        with self._ready:
            if self._stop.is_set():
                raise _Closed
            self.dropped += len(self._waiting) == self._waiting.maxlen
            self._waiting.append(timed)
            self._ready.notify_all()


class Video:
    """Iterator of (seconds from the start, uint8 RGB array [H, W, 3]), and a context manager.

    If the source breaks after some frames, these are given, iteration ends, and `warning` says in one line
    what broke and how much was kept; if it breaks before any, VideoError. `duration` (seconds) and `frames`
    are of the source before sampling, None where unknown. Unless live, close it from the thread that reads.
    """

    def __init__(self, source: Source, fps: float | None, live: bool, queue: int, timeout: float) -> None:
        self.name, self.duration, self.frames = source.name, source.duration, source.frames
        self.live = live
        self.warning: str | None = None
        self._closed = False
        keep = _keep_all if fps is None else Sampler(fps, slack=max(1e-6, min(source.tick, 1e-3))).take
        self._thread = Live(source, keep, size=queue, timeout=timeout) if live else None
        self._reader = self._thread or source
        self._timed = self._until_broken(self._thread or source.read(keep))

    @property
    def dropped(self) -> int:
        """Frames a live source dropped because newer ones came before they were asked for."""
        return self._thread.dropped if self._thread else 0

    def __iter__(self) -> "Video":
        return self

    def __next__(self) -> Timed:
        if self._closed:
            raise StopIteration
        return next(self._timed)

    def __enter__(self) -> "Video":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Lets go of the source and stops its thread; iteration is then at its end."""
        self._closed = True
        self._reader.close()

    def _until_broken(self, frames: Iterator[Timed]) -> Iterator[Timed]:
        given, at = 0, 0.0
        try:
            for at, frame in frames:
                given += 1
                yield at, frame
            if not given and not self._closed:
                raise VideoError(f"{self.name}: no frame in it")
        except VideoError as error:
            if not given or isinstance(error, FrameError):
                raise
            self.warning = f"{error}; kept {given} frame{'s' * (given > 1)}, up to {at:.2f} s"
        finally:
            self.close()


def _keep_all(_: float) -> bool:
    return True
