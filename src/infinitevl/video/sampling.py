"""When a frame happens and whether it is kept: pure rules over times in seconds."""

import math

from infinitevl.errors import InfiniteVLError


class Sampler:
    """Keeps one frame for every 1/fps seconds, with no drift.

    For k = 0, 1, ... the first frame with time >= k/fps is kept, each frame once at most, so a rate above
    the source's keeps every frame. `slack` seconds is how far below k/fps a time may lie and still reach
    it: the rounding of the clock the times were written with.
    """

    def __init__(self, fps: float, slack: float = 1e-6) -> None:
        if not (math.isfinite(fps) and fps > 0):
            raise InfiniteVLError(f"fps must be a positive number, not {fps}")
        self._fps = fps
        self._slack = slack
        self._next = 0

    def take(self, time: float) -> bool:
        """Whether the frame at `time` is kept. Times must not go backward."""
        time += self._slack
        if time < self._next / self._fps:
            return False
        self._next = max(self._next, math.floor(time * self._fps)) + 1
        return True


class Clock:
    """Turns a source's timestamps into seconds from its first frame that always increase.

    Where a timestamp is missing or does not advance, the time is the one before plus `step`.
    """

    def __init__(self, step: float) -> None:
        self._step = step
        self._start: float | None = None
        self._last: float | None = None

    def at(self, stamp: float | None) -> float:
        """The time of the next frame, whose timestamp in seconds is `stamp`."""
        expected = 0.0 if self._last is None else self._last + self._step
        self._last = self._advance(stamp, expected)
        return self._last

    def _advance(self, stamp: float | None, expected: float) -> float:
        if stamp is None:
            return expected
        if self._start is None:
            self._start = stamp - expected
        time = stamp - self._start
        return time if self._last is None or time > self._last else expected
