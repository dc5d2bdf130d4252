"""Messages on their way to one reader."""

import asyncio
from collections import deque
from typing import Any

WAITING = 1000
SLOW, GONE, DOWN = 1013, 4404, 1012  # why no more come, as a WebSocket is closed


class Finished(Exception):
    """No more messages come. code: why."""

    def __init__(self, code: int) -> None:
        self.code = code


class Outbox:
    """A queue in the event loop that never makes its writer wait: a reader who lets too many wait loses it."""

    def __init__(self, limit: int = WAITING) -> None:
        self._limit, self._messages, self._ready = limit, deque[dict[str, Any]](), asyncio.Event()
        self.code: int | None = None
        self.over = asyncio.Event()

    def put(self, message: dict[str, Any]) -> None:
        if len(self._messages) >= self._limit:
            self._messages.clear()
            self.finish(SLOW)
        if self.code is None:
            self._messages.append(message)
            self._ready.set()

    def finish(self, code: int) -> None:
        """The reader gets what waits, then Finished."""
        if self.code is None:
            self.code = code
            self.over.set()
            self._ready.set()

    async def take(self) -> dict[str, Any]:
        """The next message. Raises Finished after the last."""
        while not self._messages:
            if self.code is not None:
                raise Finished(self.code)
            self._ready.clear()
            await self._ready.wait()
        return self._messages.popleft()
