"""A source that the server watches for a stream: a thread that opens, paces, tries again."""

import logging
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

import numpy as np

from infinitevl.errors import InfiniteVLError, NotFound, Overloaded
from infinitevl.video.live import Video

log = logging.getLogger(__name__)
ROOM = 3600.0  # seconds that a frame of a source that is not live waits for its turn


@dataclass(frozen=True)
class Opened:
    """live: it comes at its own speed and has no end. hidden, shown: what it is called here, and to clients."""

    video: Video
    live: bool
    hidden: str
    shown: str

    @property
    def warning(self) -> str | None:
        return self.video.warning and self.video.warning.replace(self.hidden, self.shown)


@dataclass(frozen=True)
class Pull:
    """What is watched. open: opens it; again: where it cannot be opened, it is tried again for ever; begin: up to
    which second it was seen before, below 0 where it was not.

    push: takes (frame, seconds, seconds to wait for room) and raises where there is no stream any more; status: is
    told (status, error). Both are called from the puller's thread.
    """

    open: Callable[[], AbstractContextManager[Opened]]
    again: bool
    realtime: bool
    begin: float
    push: Callable[[np.ndarray, float, float], None]
    status: Callable[[str, str | None], None]


class Puller:
    """Runs until the source ends, or `stop`. retry: seconds between two tries, at first and at most."""

    def __init__(self, pull: Pull, retry: tuple[float, float]) -> None:
        self._pull, self._retry = pull, retry
        self._stop = threading.Event()
        self._began: float | None = None  # when the file's time 0 was
        self._thread = threading.Thread(target=self._run, name="infinitevl source", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Take no more frames. Returns at once; nothing is told from here on."""
        self._stop.set()

    def _run(self) -> None:
        wait = self._retry[0]
        while not self._stop.is_set():
            given, live, error = self._watch()
            if not live and (given or not self._pull.again):
                return self._tell("ended" if given else "failed", error)
            wait = self._retry[0] if given else wait
            self._tell("retrying", error or "it ended")
            self._stop.wait(wait)
            wait = min(2 * wait, self._retry[1])
        return None

    def _watch(self) -> tuple[int, bool, str | None]:
        """Open it and watch to its end: how many frames came, whether it was live, and what was wrong."""
        given, live = 0, False
        try:
            with self._pull.open() as opened:
                live = opened.live
                for given, (at, frame) in enumerate(opened.video, 1):
                    if given == 1:
                        self._tell("playing", None)
                    self._give(frame, at, live)
                    if self._stop.is_set():
                        break
                return given, live, opened.warning
        except (NotFound, Overloaded):  # of the engine: the stream is gone, or the server goes down
            self._stop.set()
        except (InfiniteVLError, OSError) as error:
            return given, live, _line(error)
        except Exception as error:
            log.exception("a source broke")
            return given, live, type(error).__name__
        return given, live, None

    def _give(self, frame: np.ndarray, at: float, live: bool) -> None:
        pull = self._pull
        if live:
            return pull.push(frame, at, 0.0)
        if at <= pull.begin:
            return None
        if pull.realtime:
            self._pace(at)
        if not self._stop.is_set():
            pull.push(frame, at, 0.0 if pull.realtime else ROOM)
        return None

    def _pace(self, at: float) -> None:
        """Wait until a file's frame is due."""
        now = time.monotonic()
        if self._began is None:
            self._began = now - at
        self._stop.wait(max(0.0, self._began + at - now))

    def _tell(self, status: str, error: str | None) -> None:
        if not self._stop.is_set():
            self._pull.status(status, error)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
