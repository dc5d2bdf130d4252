"""An answer on its way from the engine's thread to one reader in the event loop."""

import asyncio
from collections.abc import AsyncIterator, Callable

from infinitevl.engine.types import Answered, Delta

Begin = Callable[[Callable[[Delta | Answered], None]], str]
"""Asks the engine; told -> the answer's id."""


class Writing:
    """Pieces come from `pieces`; then `answered` is there. `cancel` may be called from any thread, at any time."""

    def __init__(self, cancel: Callable[[str], None], ended: Callable[[Answered], None]) -> None:
        self._loop, self._ready = asyncio.get_running_loop(), asyncio.Event()
        self._cancel, self._ended = cancel, ended
        self._pieces: list[str] = []
        self._wanted = True
        self.id: str | None = None
        self.answered: Answered | None = None

    def begin(self, begin: Begin) -> None:
        """Ask; in a thread."""
        self.id = begin(self._told)
        if not self._wanted:
            self._cancel(self.id)

    def cancel(self) -> None:
        self._wanted = False
        if self.id is not None and self.answered is None:
            self._cancel(self.id)

    async def pieces(self) -> AsyncIterator[str]:
        """The text as it comes; what waits comes at once."""
        while self.answered is None or self._pieces:
            await self._ready.wait()
            text, self._pieces = "".join(self._pieces), []
            if self.answered is None:
                self._ready.clear()
            if text:
                yield text

    async def end(self) -> Answered:
        async for _ in self.pieces():
            pass
        assert self.answered is not None
        return self.answered

    def _told(self, event: Delta | Answered) -> None:
        """From the engine's thread."""
        self._loop.call_soon_threadsafe(self._came, event)

    def _came(self, event: Delta | Answered) -> None:
        if isinstance(event, Delta):
            self._pieces.append(event.text)
        else:
            self.answered = event
            self._ended(event)
        self._ready.set()
