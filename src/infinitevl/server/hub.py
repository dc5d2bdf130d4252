"""The server behind its routes: rooms around the engine's streams, threads for what blocks, going down in order."""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import anyio.to_thread
import numpy as np
from anyio import CapacityLimiter

from infinitevl.engine.engine import Engine
from infinitevl.engine.store import Store
from infinitevl.engine.types import Answered, Asking, FrameResult
from infinitevl.errors import InfiniteVLError, NotFound, Overloaded, StorageError
from infinitevl.server.allowed import Allowed, opened_file
from infinitevl.server.faults import LimitReached
from infinitevl.server.keys import Keys
from infinitevl.server.outbox import DOWN
from infinitevl.server.pulling import Opened, Pull, Puller
from infinitevl.server.room import Room, Source, Watch, answer_told, milliseconds
from infinitevl.server.settings import Settings
from infinitevl.server.writing import Begin, Writing

log = logging.getLogger(__name__)
T = TypeVar("T")
THREADS, DECODERS = 64, 4  # that wait for the engine or the disk; that decode pictures and videos
Told = Callable[[dict[str, Any]], None]
"""Is told an acknowledgement, in the event loop."""


class Hub:
    """All rooms. Its methods belong to the event loop, but for `push`, which belongs to threads."""

    def __init__(self, engine: Engine, settings: Settings) -> None:
        self.engine, self.settings = engine, settings
        self.store = engine.store or Store(str(settings.folder))
        self.keys, self.allowed = Keys(settings.keys), Allowed(settings.sources)
        self.rooms: dict[str, Room] = {}
        self.stopping = False
        self.unsaved: StorageError | None = None  # what kept a stream from being parked
        self._questions: Counter[str] = Counter()  # of each key, being answered
        self._opening: Counter[str] = Counter()
        self._writings: set[Writing] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Take up what the engine found in the store. Sources and standing questions start again."""
        self._loop = asyncio.get_running_loop()
        self._threads, self._decoders = CapacityLimiter(THREADS), CapacityLimiter(DECODERS)
        self.settings.uploads.mkdir(parents=True, exist_ok=True)
        for id in self.engine.streams():
            self.restore(id)
        await self.call(self._sweep)

    def restore(self, id: str) -> None:
        """Take up a stream of the engine's. The sources of keys that are gone stay closed."""
        room = self.rooms[id] = Room.restored(id, self.engine.look(id).about)
        if room.source and room.source.running and room.owner in self.keys.owners():
            self._pull(room, room.source)

    def _sweep(self) -> None:
        """Uploads that a crash left behind, of streams that do not watch them or are not there any more."""
        used = {room.source.file for room in self.rooms.values() if room.source}
        elsewhere = {*self.store.names("streams")} - self.rooms.keys()
        for file in self.settings.uploads.iterdir():
            if file.name not in used and file.name.rpartition("-")[0] not in elsewhere:
                file.unlink(missing_ok=True)

    def halt(self) -> None:
        """Go down: no new work, answers end as cancelled, listeners are sent away. Any number of times."""
        self.stopping = True
        for room in self.rooms.values():
            room.close(DOWN)
        for writing in list(self._writings):
            writing.cancel()

    async def close(self) -> None:
        """After `halt`: park every stream."""
        self.halt()
        for task in list(self._tasks):
            task.cancel()
        try:
            await anyio.to_thread.run_sync(self._park)
        except StorageError as error:
            self.unsaved = error

    def _park(self) -> None:
        for room in list(self.rooms.values()):
            with suppress(NotFound):
                if self.engine.look(room.id).about != room.about:
                    self.engine.describe(room.id, room.about)
        self.engine.close()

    async def call(self, function: Callable[..., T], *args: Any, **options: Any) -> T:
        """Do what blocks in a thread. Errors of the disk do not tell where the folder is."""
        try:
            return await anyio.to_thread.run_sync(partial(function, *args, **options), limiter=self._threads)
        except StorageError as error:
            raise StorageError(str(error).replace(f"{self.settings.folder}/", "")) from None

    async def decode(self, function: Callable[..., T], *args: Any) -> T:
        """The same for what keeps a processor busy: few at once."""
        return await anyio.to_thread.run_sync(partial(function, *args), limiter=self._decoders)

    def soon(self, function: Callable[..., None], *args: Any) -> None:
        """From any thread: call in the event loop."""
        with suppress(RuntimeError):  # it has ended
            self._loop.call_soon_threadsafe(function, *args)

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Do in the background."""
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # Rooms

    def room(self, id: str, owner: str) -> Room:
        """Raises NotFound, also for those of others."""
        room = self.rooms.get(id)
        if room is None or room.owner != owner:
            raise NotFound(f"there is no stream {id[:80]}")
        return room

    def rooms_of(self, owner: str) -> list[Room]:
        """Oldest first."""
        return sorted((room for room in self.rooms.values() if room.owner == owner), key=lambda room: room.created)

    async def open(self, owner: str, name: str | None, make: Callable[[dict[str, Any]], str]) -> Room:
        """A new room around the stream that `make` makes of what is kept with it."""
        room = Room("", owner, name)
        with self._place_for(owner):
            room.id = await self.call(make, room.about)
            self.rooms[room.id] = room
        return room

    async def drop(self, room: Room) -> None:
        self.rooms.pop(room.id, None)
        room.close()
        await self.call(self.engine.drop, room.id)
        self._forget_file(room.source)

    async def views(self, owner: str) -> list[dict[str, Any]]:
        """All streams of an owner, oldest first."""
        return [self.view(room) for room in self.rooms_of(owner)]

    def view(self, room: Room) -> dict[str, Any]:
        """The stream, as clients see it."""
        return room.told(self.engine.look(room.id))

    async def keep(self, room: Room, now: bool = False) -> None:
        """Have what is known of a room written with its stream: with its next save, or `now`. Raises StorageError."""
        async with room.writing:
            with suppress(NotFound):
                await self.call(self.engine.describe, room.id, room.about)
                if now:
                    await self.call(self.engine.save, room.id)

    @contextmanager
    def _place_for(self, owner: str) -> Iterator[None]:
        limit = self.settings.streams_per_key
        if len(self.rooms_of(owner)) + self._opening[owner] >= limit:
            raise LimitReached(f"a key has at most {limit} streams")
        self._opening[owner] += 1
        try:
            yield
        finally:
            self._opening[owner] -= 1

    # Frames

    def push(self, room: Room, frame: np.ndarray, at: float | None, told: Told | None, wait: float = 0.0) -> None:
        """Hand a frame to the engine, from a thread. Raises InfiniteVLError for what is no frame."""
        arrived = time.monotonic()

        def back(result: FrameResult) -> None:
            self.soon(self._pushed, room, result, time.monotonic() - arrived, told)

        self.engine.push(room.id, frame, at, back, wait=wait)
        room.show(frame)

    def _pushed(self, room: Room, result: FrameResult, lag: float, told: Told | None) -> None:
        if result.result == "seen":
            self._ask_what_is_due(room, result.time)
        if told:
            lag_ms = milliseconds(lag)
            told({"result": result.result, "time": result.time, "lag_ms": lag_ms, "message": result.message})

    # Questions

    async def ask(self, room: Room, question: str, asking: Asking) -> Writing:
        """Begin an answer, counted for the room's owner, remembered at its end."""
        created = time.time()

        def ended(writing: Writing, answered: Answered) -> None:
            room.answers.append(self.told(writing, room, question, created))
            self.spawn(self.keep(room))

        return await self.write(room.owner, partial(self.engine.ask, room.id, question, asking), ended)

    @staticmethod
    def told(writing: Writing, room: Room, question: str, created: float) -> dict[str, Any]:
        assert writing.answered is not None
        return answer_told(writing.id or "", room.id, question, created, writing.answered)

    async def write(
        self, owner: str, begin: Begin, ended: Callable[[Writing, Answered], None] | None = None
    ) -> Writing:
        """Begin an answer. owner: whose limit it counts for."""
        self.check_questions(owner)

        def over(answered: Answered | None) -> None:
            self._writings.discard(writing)
            self._questions[owner] -= 1
            if answered and ended:
                ended(writing, answered)

        writing = Writing(self._cancel, over)
        self._writings.add(writing)
        self._questions[owner] += 1
        try:
            await self.call(writing.begin, begin)
        except BaseException:  # of the engine, or nobody is there to read it any more
            if writing.id is None:
                over(None)
            writing.cancel()
            raise
        return writing

    def check_questions(self, owner: str) -> None:
        """Raises LimitReached, Overloaded where a question more would be too much."""
        limit = self.settings.questions_per_key
        if self._questions[owner] >= limit:
            raise LimitReached(f"a key has at most {limit} questions at once")
        if self.stopping:
            raise Overloaded("the server is going down")

    def _cancel(self, answer: str) -> None:
        """From any thread; never waits for the engine."""
        with suppress(RuntimeError):
            self._loop.run_in_executor(None, self.engine.cancel, answer)

    # Standing questions

    def _ask_what_is_due(self, room: Room, now: float) -> None:
        for watch in room.watches.values():
            if not watch.busy and not self.stopping and (watch.due is None or now >= watch.due):
                watch.busy, watch.due = True, now + watch.every
                self.spawn(self._evaluate(room, watch))

    async def _evaluate(self, room: Room, watch: Watch) -> None:
        """Ask once. Where the engine, or the limit of the key, has no room for it, it is left for the next time."""
        try:
            begin = partial(self.engine.ask, room.id, watch.question, Asking(max_tokens=watch.max_tokens))
            answered = await (await self.write(f"{room.owner} standing", begin)).end()  # as many, but their own
        except InfiniteVLError:
            return
        finally:
            watch.busy = False
        if answered.reason in ("stop", "length") and watch.id in room.watches:
            self._compare(room, watch, answered)

    def _compare(self, room: Room, watch: Watch, answered: Answered) -> None:
        before, text = watch.answer, answered.text.strip()
        watch.answer, watch.time, watch.asked = text, answered.time, watch.asked + 1
        if text != before:
            watch.changed += before is not None
            room.say(
                {"type": "watch", "watch": watch.id, "question": watch.question, "answer": text, "before": before,
                 "time": answered.time}
            )  # fmt: skip
        self.spawn(self.keep(room))

    # Sources

    def watch(self, room: Room, source: Source | None) -> None:
        """Watch this instead of what was watched before."""
        if room.puller:
            room.puller.stop()
        self._forget_file(room.source)
        room.source, room.puller = source, None
        if source:
            self._pull(room, source)

    def _pull(self, room: Room, source: Source) -> None:
        """Start, or go on with, a source."""
        view = self.engine.look(room.id)
        try:
            again = source.file is None and not isinstance(self.allowed.find(source.url), Path) and source.realtime
        except InfiniteVLError as error:  # a restart may allow less
            source.status, source.error = "failed", str(error)
            return
        source.status, source.error = "connecting", None
        begin = -1.0 if source.shift is None else view.seconds - source.shift
        room.puller = Puller(
            Pull(
                partial(self._opened, source, None if view.fps_limit is None else 2 * view.fps_limit),
                again, source.realtime, begin,
                partial(self._pulled, room, source), partial(self.soon, self._fortune, room, source),
            ),
            self.settings.source_retry,
        )  # fmt: skip

    def _opened(self, source: Source, fps: float | None) -> AbstractContextManager[Opened]:
        """In the puller's thread. Twice the stream's rate is enough for its clock to choose from."""
        if source.file is not None:
            return opened_file(self.settings.uploads / source.file, "the upload", fps)
        return self.allowed.opened(source.url, fps=fps, timeout=self.settings.source_timeout)

    def _pulled(self, room: Room, source: Source, frame: np.ndarray, at: float, wait: float) -> None:
        def told(result: dict[str, Any]) -> None:
            if source.shift is None:
                source.shift = result["time"] - at
                self.spawn(self.keep(room))

        self.push(room, frame, at, told, wait)

    def _fortune(self, room: Room, source: Source, status: str, error: str | None) -> None:
        """A source's status changed."""
        if room.source is not source:
            return
        source.status, source.error = status, error
        room.say({"type": "source", "source": source.told})
        if not source.running:
            self._forget_file(source)
        self.spawn(self.keep(room))

    def _forget_file(self, source: Source | None) -> None:
        if source and source.file:
            (self.settings.uploads / source.file).unlink(missing_ok=True)
