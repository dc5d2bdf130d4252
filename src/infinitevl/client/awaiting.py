"""The client for asyncio: the methods of `blocking`, to be awaited."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from functools import wraps
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar, Unpack

import httpx
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from infinitevl.client import calls
from infinitevl.client.blocking import LARGEST, TIMEOUT, URL
from infinitevl.client.calls import Asking, Request, Server
from infinitevl.client.faults import ClientError, closed, reaching
from infinitevl.client.frames import Frame, messages
from infinitevl.client.reading import Download, broken_off, of_answer, of_events
from infinitevl.client.talk import AHEAD, Asked, Talk, Told
from infinitevl.client.types import Answer, Event, Stream

P = ParamSpec("P")
T = TypeVar("T")


def sent(call: Callable[P, Request[T]]) -> Callable[Concatenate[Any, P], Awaitable[T]]:
    """A method that sends what `call` makes of its arguments."""

    @wraps(call)
    async def method(self: Any, *args: P.args, **options: P.kwargs) -> T:
        return await self._send(call(*args, **options))

    return method


class Part:
    """Some of the methods of a client."""

    def __init__(self, client: "AsyncClient") -> None:
        self._client, self._send = client, client._send


class Streams(Part):
    create = sent(calls.create_stream)
    list = sent(calls.list_streams)
    get = sent(calls.get_stream)
    delete = sent(calls.delete_stream)


class Watches(Part):
    create = sent(calls.create_watch)
    list = sent(calls.list_watches)
    delete = sent(calls.delete_watch)


class SourceOf(Part):
    set = sent(calls.set_source)
    stop = sent(calls.stop_source)


class Snapshots(Part):
    create = sent(calls.create_snapshot)
    list = sent(calls.list_snapshots)
    delete = sent(calls.delete_snapshot)

    async def download(self, name: str, path: str | Path) -> Path:
        """Write the file, which `infinitevl stream --load-state` reads, to `path`."""
        request = calls.snapshot_file(name)
        async with self._client._reading(request) as response:
            with Download(path) as file:
                async for piece in response.aiter_bytes(calls.PIECE):
                    await asyncio.to_thread(file.write, piece)
        return Path(path)


class AsyncClient:
    """A server's streams, for one event loop. Every method raises ClientError.

    key: from INFINITEVL_API_KEY where it is not given; timeout: seconds in which the server must say something.
    """

    def __init__(self, url: str = URL, key: str | None = None, *, timeout: float = TIMEOUT) -> None:
        self._server = Server.at(url, key)
        self._http = httpx.AsyncClient(
            base_url=self._server.url, headers=self._server.headers, timeout=timeout, trust_env=not self._server.local
        )
        self.streams, self.watches, self.source, self.snapshots = (
            Streams(self), Watches(self), SourceOf(self), Snapshots(self)
        )  # fmt: skip

    async def __aenter__(self) -> "AsyncClient":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        await self._http.aclose()

    fork = sent(calls.fork)
    upload = sent(calls.upload)
    push = sent(calls.push)
    picture = sent(calls.newest_picture)
    memory = sent(calls.memory)
    answers = sent(calls.answers)
    info = sent(calls.info)
    ask = sent(calls.ask)

    def ask_pieces(self, id: str, question: str, **options: Unpack[Asking]) -> "AsyncPieces":
        """The same as `ask`, piece by piece as it is written."""
        return AsyncPieces(self._pieces(calls.ask_pieces(id, question, **options)))

    async def events(self, id: str) -> AsyncIterator[Event]:
        """Standing questions that changed, and the source's fortune, as they come, until the stream is deleted."""
        async with self._reading(calls.events(id)) as response:
            async for line in response.aiter_lines():
                for event in of_events(line):
                    yield event

    def live(self, id: str, *, ahead: int = AHEAD, raw: bool = False, told: Told = lambda _: None) -> "AsyncLive":
        """A connection for frames and questions, to be entered by `async with`. ahead: frames on the way, at most;
        raw: arrays are not sent as JPEG; told: gets every acknowledgement and event, and must return at once."""
        return AsyncLive(self._server, id, Talk(ahead, told), raw)

    async def _send(self, request: Request[T]) -> T:
        with reaching(self._server.url):
            response = await self._http.request(
                request.method, request.path, json=request.json, params=request.params, headers=request.headers,
                content=_chunks(request.body) if isinstance(request.body, Path) else request.body,
            )  # fmt: skip
        return request.result(response.status_code, response.content, response.headers)

    @asynccontextmanager
    async def _reading(self, request: Request[Any]) -> AsyncIterator[httpx.Response]:
        """A response whose body is read as it comes."""
        with reaching(self._server.url):
            async with self._http.stream(request.method, request.path, json=request.json) as response:
                if response.status_code != 200:
                    request.result(response.status_code, await response.aread(), response.headers)
                yield response

    async def _pieces(self, request: Request[Any]) -> AsyncIterator[str | Answer]:
        async with self._reading(request) as response:
            async for line in response.aiter_lines():
                for piece in of_answer(line):
                    yield piece


async def _chunks(path: Path) -> AsyncIterator[bytes]:
    with path.open("rb") as file:
        while piece := await asyncio.to_thread(file.read, calls.PIECE):
            yield piece


class AsyncPieces:
    """The text of an answer as it is written; at its end `answer` is there."""

    def __init__(
        self, coming: AsyncIterator[str | Answer], cancel: Callable[[], Awaitable[None]] | None = None
    ) -> None:
        self.answer: Answer | None = None
        self._coming, self._cancel = coming, cancel

    def __aiter__(self) -> AsyncIterator[str]:
        return self

    async def __anext__(self) -> str:
        if self.answer:
            raise StopAsyncIteration
        piece = await anext(self._coming, None)
        if piece is None:
            raise broken_off()
        if isinstance(piece, str):
            return piece
        self.answer = piece
        await self.close()
        raise StopAsyncIteration

    async def whole(self) -> Answer:
        """Read to the end."""
        async for _ in self:
            pass
        assert self.answer
        return self.answer

    async def close(self) -> None:
        """Cancel it, if it has not ended."""
        if self._cancel:
            await self._cancel()
        await self._coming.aclose()  # pyright: ignore[reportAttributeAccessIssue]


class AsyncLive:
    """A live connection, of `AsyncClient.live`; use it as a context manager.

    Where the connection is lost, everything raises ClientError from then on; making another one is up to the caller.
    """

    _socket: ClientConnection
    _reader: asyncio.Task[None]

    def __init__(self, server: Server, id: str, talk: Talk, raw: bool) -> None:
        self._server, self._id, self._talk, self._raw = server, id, talk, raw
        self._ready, self._sending = asyncio.Condition(), asyncio.Lock()

    async def __aenter__(self) -> "AsyncLive":
        server = self._server
        with reaching(server.url):
            self._socket = await connect(
                server.socket(self._id), additional_headers=server.headers, compression=None, max_size=LARGEST,
                proxy=None if server.local else True,
            )  # fmt: skip
            try:
                self._talk.begin(await asyncio.wait_for(self._socket.recv(), TIMEOUT))
            except BaseException:
                await self._socket.close()
                raise
        self._reader = asyncio.create_task(self._read())
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                await self.drain()
        finally:
            await self.close()

    @property
    def stream(self) -> Stream:
        """As it was when the connection began."""
        assert self._talk.stream
        return self._talk.stream

    @property
    def counts(self) -> dict[str, int]:
        """Acknowledgements by their result."""
        return dict(self._talk.counts)

    async def send(self, frame: Frame, time: float | None = None) -> int:
        """Hand in a frame; its number. Waits while `ahead` frames are not acknowledged. FrameError for no frame."""
        parts = messages(frame, time, self._raw)
        async with self._sending:
            async with self._ready:
                await self._ready.wait_for(lambda: self._talk.room)
                number = self._talk.frame()
            await self._transmit(*parts)
        return number

    async def drain(self) -> None:
        """Wait until every frame is acknowledged."""
        async with self._ready:
            await self._ready.wait_for(lambda: self._talk.quiet)
            self._talk.settled()

    async def ask(self, question: str, **options: Unpack[Asking]) -> AsyncPieces:
        """Ask about what is in memory now; `drain` before, where the last frames matter."""
        async with self._sending:
            asked, message = self._talk.ask(question, **options)
            await self._transmit(message)
        return AsyncPieces(self._coming(asked), lambda: self._cancel(asked))

    async def close(self) -> None:
        """Hang up. Frames that are not acknowledged may be lost."""
        await self._socket.close()
        await self._reader

    async def _coming(self, asked: Asked) -> AsyncIterator[str | Answer]:
        while True:
            async with self._ready:
                await self._ready.wait_for(lambda: asked.waiting)
                piece = asked.take()
            yield piece

    async def _cancel(self, asked: Asked) -> None:
        if message := self._talk.cancel(asked):
            async with self._sending:
                with suppress(ClientError):
                    await self._transmit(message)

    async def _transmit(self, *parts: str | bytes) -> None:
        try:
            with reaching(self._server.url):
                for part in parts:
                    await self._socket.send(part)
        except ClientError as error:
            raise await self._end(error) from None
        except BaseException:  # also Ctrl-C and the like: what was sent in part cannot be gone on with
            await self._end(ClientError("a message was sent in part"))
            raise

    async def _read(self) -> None:
        try:
            while True:
                message = await self._socket.recv()
                async with self._ready:
                    self._talk.receive(message)
                    self._ready.notify_all()
        except ConnectionClosed as error:
            await self._end(closed(error))
        except Exception as error:  # of `told`, or of a server that is none
            await self._end(error)
            await self._socket.close()

    async def _end(self, fault: Exception) -> Exception:
        async with self._ready:
            self._ready.notify_all()
            return self._talk.end(fault)
