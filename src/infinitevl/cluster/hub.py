"""A hub whose streams may be held elsewhere: all that lie in the store that it shares with the other replicas."""

import asyncio
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

from infinitevl.engine.engine import Engine
from infinitevl.engine.store import Stored
from infinitevl.engine.types import View
from infinitevl.errors import NotFound, StorageError
from infinitevl.server.hub import Hub
from infinitevl.server.outbox import DOWN
from infinitevl.server.room import Room
from infinitevl.server.settings import Settings

READERS = 16  # of the store, at once
LOOK = 1.0  # seconds


class SharedHub(Hub):
    """Takes up streams when they are asked for here, and lets go of those that are asked for elsewhere.

    ask: has the other replicas let go of a stream. Raises StorageError, Conflict where one cannot.
    """

    def __init__(self, engine: Engine, settings: Settings, ask: Callable[[str], Awaitable[None]]) -> None:
        super().__init__(engine, settings)
        self._ask = ask
        self._coming: dict[str, asyncio.Future[None]] = {}

    async def start(self) -> None:
        await super().start()
        self.spawn(self._leave_what_others_took())

    async def adopt(self, id: str) -> None:
        """Hold a stream of the store, as it is now where another replica holds it, else as it was last saved.

        Raises NotFound, Overloaded, StorageError, Conflict.
        """
        if id in self.rooms:
            return
        if id not in self._coming:
            self._coming[id] = asyncio.ensure_future(self._adopt(id))
            self._coming[id].add_done_callback(lambda _: self._coming.pop(id))
        await asyncio.shield(self._coming[id])

    async def _adopt(self, id: str) -> None:
        if await self.call(self.store.holder, id):
            await self._ask(id)
        await self.call(self.engine.adopt, id)
        self.restore(id)

    async def let_go(self, id: str) -> None:
        """Write a stream that is held here, and let others have it. Raises StorageError, Conflict: held still."""
        if room := self.rooms.get(id):
            await self.keep(room)
            with suppress(NotFound):
                await self.call(self.engine.release, id)
            self.rooms.pop(id, None)
            room.close(DOWN)

    async def _leave_what_others_took(self) -> None:
        """The engine lets go of a stream that was taken unasked, because this replica could not be reached."""
        while True:
            await asyncio.sleep(LOOK)
            for id in set(self.rooms).difference(self.engine.streams()):
                self.rooms.pop(id).close(DOWN)

    async def views(self, owner: str) -> list[dict[str, Any]]:
        """All of the store, oldest first: as they are now where they are held here, else as they were last saved."""
        names = [name for name in await self.call(self.store.names, "streams") if name not in self.rooms]
        saved = [view for stored in await self.call(self._stored, names) if (view := self._saved(stored, owner))]
        return sorted(await super().views(owner) + saved, key=lambda view: view["created"])

    def _stored(self, names: list[str]) -> list[Stored]:
        def look(name: str) -> Stored | None:
            with suppress(NotFound, StorageError):  # deleted meanwhile, or damaged
                return self.store.look("streams", name)

        with ThreadPoolExecutor(READERS) as readers:
            return [stored for stored in readers.map(look, names) if stored]

    def _saved(self, stored: Stored, owner: str) -> dict[str, Any] | None:
        room, session, stats = Room.restored(stored.name, stored.about), stored.session, stored.session.stats
        if room.owner != owner:
            return None
        view = View(
            stored.name, stored.about, session.fps, session.max_pixels, "disk", stats.frames, stats.tokens,
            stats.dropped, 0, session.last or 0.0, 0.0, 0.0, self.engine.state_bytes, (stats.frames, stored.at),
        )  # fmt: skip
        return room.told(view)
