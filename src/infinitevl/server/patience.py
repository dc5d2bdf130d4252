"""HTTP whose clients do not keep a connection without asking anything: uvicorn would wait for a request for ever."""

import asyncio
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol


class Patient(H11Protocol):
    """Hangs up where the head of a request is not there within `patience` seconds of its beginning, or of the
    connection's."""

    def __init__(self, patience: float, **given: Any) -> None:
        super().__init__(**given)
        self._patience = patience
        self._until: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._forget()

    def _watch(self) -> None:
        """Bytes that come do not put it off: only a whole head does."""
        if self.conn.their_state is not h11.IDLE:
            self._forget()
        elif self._until is None:
            self._until = self.loop.call_later(self._patience, self.transport.close)

    def _forget(self) -> None:
        if self._until:
            self._until.cancel()
            self._until = None
