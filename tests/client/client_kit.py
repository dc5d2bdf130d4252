"""Both clients behind one face, servers that do as a test says, and pictures."""

import asyncio
import inspect
import json
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from websockets.sync.server import ServerConnection, serve

sys.path.append(str(Path(__file__).parents[1] / "server"))

from server_kit import KEY, OTHER, Served, encoded, eventually, picture

from infinitevl.client import AsyncClient, Client

__all__ = ["KEY", "OTHER", "Awaited", "Client", "Fake", "Served", "both", "encoded", "eventually", "fake", "picture"]

STREAM = {
    "id": "stream-1", "object": "stream", "name": None, "created": 1, "fps": 2.0, "max_pixels": 784, "place": "slot",
    "source": None, "saved": None, "news": "of a later version",
    "stats": {
        "frames": 0, "tokens": 0, "dropped": 0, "waiting": 0, "seconds": 0.0, "fps": 0.0, "lag_ms": 0.0,
        "state_bytes": 1, "more": 1,
    },
}  # fmt: skip
PLAIN = (str, bytes, int, float, list, dict, tuple, Path, type(None))


class Awaited:
    """Something to be awaited, as if it were not: every call waits for what an event loop in a thread makes of it."""

    def __init__(self, what: Any, loop: asyncio.AbstractEventLoop) -> None:
        self._what, self._loop = what, loop

    def __getattr__(self, name: str) -> Any:
        return self._plain(getattr(self._what, name))

    def __call__(self, *args: Any, **options: Any) -> Any:
        return self._plain(self._what(*args, **options))

    def __enter__(self) -> "Awaited":
        return self._plain(self._what.__aenter__())

    def __exit__(self, *error: Any) -> None:
        self._plain(self._what.__aexit__(*error))

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        try:
            return self._plain(self._what.__anext__())
        except StopAsyncIteration:
            raise StopIteration from None

    def _plain(self, value: Any) -> Any:
        if inspect.isawaitable(value):
            value = asyncio.run_coroutine_threadsafe(_waited(value), self._loop).result(20)
        told = isinstance(value, PLAIN) or type(value).__module__ == "infinitevl.client.types"
        return value if told else Awaited(value, self._loop)


async def _waited(value: Any) -> Any:
    return await value


@contextmanager
def both(kind: str, url: str, key: str | None = None) -> Iterator[Any]:
    """A Client, or an AsyncClient that looks like one."""
    if kind == "blocking":
        with Client(url, key, timeout=20) as client:
            yield client
        return
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    try:
        with Awaited(AsyncClient(url, key, timeout=20), loop) as client:
            yield client
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()


@contextmanager
def fake(talk: Callable[["Fake"], None]) -> Iterator[str]:
    """The address of a server of live connections that does what `talk` does after the hello."""

    def handle(connection: ServerConnection) -> None:
        connection.send(json.dumps({"type": "hello", "protocol": 1, "stream": STREAM}))
        talk(Fake(connection))

    with serve(handle, "127.0.0.1", 0, compression=None) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.socket.getsockname()[1]}"
        server.shutdown()
        thread.join()


class Fake:
    """The server's side of a connection."""

    def __init__(self, connection: ServerConnection) -> None:
        self.connection = connection

    def frame(self) -> bytes:
        while isinstance(message := self.connection.recv(10), str):
            pass
        return message

    def asked(self) -> dict[str, Any]:
        while isinstance(message := self.connection.recv(10), bytes) or "question" not in message:
            pass
        return json.loads(message)

    def say(self, **message: Any) -> None:
        self.connection.send(json.dumps(message))

    def acknowledge(self, number: int, result: str = "seen") -> None:
        self.say(type="frame", number=number, result=result, time=0.5, lag_ms=1.0, message=None)

    def vanish(self) -> None:
        """As a server whose power went out."""
        self.connection.socket.shutdown(socket.SHUT_RDWR)
