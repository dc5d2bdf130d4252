"""Streams to the store, behind the engine's back: copies are made by its thread, written by another."""

import logging
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from functools import partial
from time import monotonic
from typing import TypeVar

from infinitevl.engine.pool import Pool
from infinitevl.engine.records import Watched
from infinitevl.engine.store import Store
from infinitevl.engine.types import Budget, Observe
from infinitevl.errors import StorageError
from infinitevl.model.state import State
from infinitevl.streaming.session import Session

log = logging.getLogger(__name__)
T = TypeVar("T")


class Saver:
    """Writes streams that changed every `save_every` seconds, and moves those at rest out of the host's memory.

    `wake` is called from the writing thread when a save has ended. name: of the engine, where others share the store:
    a stream that another has claimed is marked as taken, and not written.
    """

    def __init__(
        self,
        store: Store,
        pool: Pool,
        budget: Budget,
        observe: Observe,
        wake: Callable[[], None],
        name: str | None,
    ) -> None:
        self._store, self._pool, self._budget, self._observe, self._wake = store, pool, budget, observe, wake
        self._name, self._look_after = name, 0.0
        self._thread = ThreadPoolExecutor(1, "infinitevl store")

    def submit(self, function: Callable[..., T], *args: object) -> Future[T]:
        """Do something with the store after the saves that are on their way."""
        return self._thread.submit(function, *args)

    def seconds(self, streams: Iterable[Watched]) -> float | None:
        """Until something is due; None: there is nothing to do."""
        due = [watched.save_after for watched in streams if watched.dirty and not watched.saving]
        due += [self._look_after] if self._name else []
        return max(0.0, min(due) - monotonic()) if due else None

    def work(self, streams: list[Watched]) -> None:
        """Begin the saves that are due, and make room in the host's memory. From the engine's thread."""
        now = monotonic()
        for watched in streams:
            if watched.dirty and not watched.saving and now >= watched.save_after:
                self.begin(watched)
        if self._name and now >= self._look_after:
            self._look_after = now + self._budget.save_every
            self.submit(self._look_at_claims, streams)
        resting = [watched for watched in streams if watched.place == "host" and watched.resting]
        for watched in sorted(resting, key=lambda w: w.seat.used)[: max(0, len(resting) - self._budget.host)]:
            if watched.dirty or watched.saved is None:
                self.begin(watched)  # it leaves when that is done
            else:
                watched.seat.host, watched.seat.fetch = None, partial(self._store.get, "streams", watched.id)

    def close(self, streams: Iterable[Watched]) -> list[StorageError]:
        """Write all that changed; what could not be written. The engine's thread has ended."""
        self._thread.shutdown(wait=True)
        return [error for watched in streams if watched.dirty and (error := self._last(watched))]

    def begin(self, watched: Watched) -> Future[None]:
        """Copy a stream, and have the copy written. From the engine's thread."""
        watched.saving, watched.dirty = True, False
        return self.submit(self._write, watched, *copied(self._pool, watched))

    def _write(self, watched: Watched, state: State, session: Session) -> None:
        try:
            watched.taken = self._claimed_by_another(watched.id)
            if not watched.taken:
                self._store.put("streams", watched.id, state, session, watched.about)
                watched.saved = (session.stats.frames, time.time())
                self._observe("saves", 1)
        except Exception as error:  # whatever it is, the stream goes on, and is written later
            log.warning("a stream could not be saved: %s", error)
            self._observe("saves_failed", 1)
            watched.dirty = True
            raise
        finally:
            watched.save_after = monotonic() + self._budget.save_every
            watched.saving = False
            self._wake()

    def _look_at_claims(self, streams: list[Watched]) -> None:
        for watched in streams:
            with suppress(StorageError):  # it is looked at again
                watched.taken = watched.taken or self._claimed_by_another(watched.id)
        self._wake()

    def _claimed_by_another(self, id: str) -> bool:
        return self._name is not None and self._store.holder(id) != self._name

    def _last(self, watched: Watched) -> StorageError | None:
        try:
            if not self._claimed_by_another(watched.id):
                self._store.put("streams", watched.id, *copied(self._pool, watched), watched.about)
        except StorageError as error:
            log.error("a stream could not be saved: %s", error)
            return error
        return None


def copied(pool: Pool, watched: Watched) -> tuple[State, Session]:
    """A stream's state in the host's memory, and its session, as of the newest frame in memory."""
    session = replace(watched.session, last=watched.seen, stats=replace(watched.session.stats))
    return pool.read(watched.seat), session
