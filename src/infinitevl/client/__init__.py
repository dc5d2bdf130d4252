"""A client of `infinitevl serve`: `Client`, and `AsyncClient` with the same methods. Needs neither torch nor a model.

    with Client("http://127.0.0.1:8000") as client:
        stream = client.streams.create("gate")
        with client.live(stream.id) as live:
            live.send(frame, time=0.0)  # uint8 RGB [H, W, 3], or the bytes of a JPEG
            for piece in live.ask("What is on the sign?"):
                print(piece, end="")

`calls`, `reading` and `talk` know the protocol (docs/protocol.md) and do no I/O; `blocking` and `awaiting` carry it.
"""

try:
    import httpx  # noqa: F401
    import websockets  # noqa: F401
except ModuleNotFoundError as missing:
    from infinitevl.errors import InfiniteVLError

    raise InfiniteVLError(f"the client needs {missing.name}: pip install 'infinitevl[client]'") from None

from infinitevl.client.awaiting import AsyncClient, AsyncLive, AsyncPieces
from infinitevl.client.blocking import Client, Live, Pieces
from infinitevl.client.faults import ClientError
from infinitevl.client.types import (
    Acknowledgement,
    Answer,
    Event,
    Info,
    Memory,
    Snapshot,
    Source,
    SourceEvent,
    Stream,
    Watch,
    WatchEvent,
)

__all__ = [
    "Acknowledgement",
    "Answer",
    "AsyncClient",
    "AsyncLive",
    "AsyncPieces",
    "Client",
    "ClientError",
    "Event",
    "Info",
    "Live",
    "Memory",
    "Pieces",
    "Snapshot",
    "Source",
    "SourceEvent",
    "Stream",
    "Watch",
    "WatchEvent",
]
