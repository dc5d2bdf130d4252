"""The client for ordinary code: every call waits for its answer."""

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import wraps
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar, Unpack

import httpx
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from infinitevl.client import calls
from infinitevl.client.calls import Asking, Request, Server
from infinitevl.client.faults import ClientError, closed, reaching
from infinitevl.client.frames import Frame, messages
from infinitevl.client.reading import Download, broken_off, of_answer, of_events
from infinitevl.client.talk import AHEAD, Asked, Talk, Told
from infinitevl.client.types import Answer, Event, Stream

P = ParamSpec("P")
T = TypeVar("T")
URL, TIMEOUT, LARGEST = "http://127.0.0.1:8000", 60.0, 16 * 2**20


def sent(call: Callable[P, Request[T]]) -> Callable[Concatenate[Any, P], T]:
    """A method that sends what `call` makes of its arguments."""

    @wraps(call)
    def method(self: Any, *args: P.args, **options: P.kwargs) -> T:
        return self._send(call(*args, **options))

    return method


class Part:
    """Some of the methods of a client."""

    def __init__(self, client: "Client") -> None:
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

    def download(self, name: str, path: str | Path) -> Path:
        """Write the file, which `infinitevl stream --load-state` reads, to `path`."""
        request = calls.snapshot_file(name)
        with self._client._reading(request) as response, Download(path) as file:
            for piece in response.iter_bytes(calls.PIECE):
                file.write(piece)
        return Path(path)


class Client:
    """A server's streams. May be shared by threads. Every method raises ClientError.

    key: from INFINITEVL_API_KEY where it is not given; timeout: seconds in which the server must say something.
    """

    def __init__(self, url: str = URL, key: str | None = None, *, timeout: float = TIMEOUT) -> None:
        self._server = Server.at(url, key)
        self._http = httpx.Client(
            base_url=self._server.url, headers=self._server.headers, timeout=timeout, trust_env=not self._server.local
        )
        self.streams, self.watches, self.source, self.snapshots = (
            Streams(self), Watches(self), SourceOf(self), Snapshots(self)
        )  # fmt: skip

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    fork = sent(calls.fork)
    upload = sent(calls.upload)
    push = sent(calls.push)
    picture = sent(calls.newest_picture)
    memory = sent(calls.memory)
    answers = sent(calls.answers)
    info = sent(calls.info)
    ask = sent(calls.ask)

    def ask_pieces(self, id: str, question: str, **options: Unpack[Asking]) -> "Pieces":
        """The same as `ask`, piece by piece as it is written."""
        return Pieces(self._pieces(calls.ask_pieces(id, question, **options)))

    def events(self, id: str) -> Iterator[Event]:
        """Standing questions that changed, and the source's fortune, as they come, until the stream is deleted."""
        with self._reading(calls.events(id)) as response:
            for line in response.iter_lines():
                yield from of_events(line)

    def live(self, id: str, *, ahead: int = AHEAD, raw: bool = False, told: Told = lambda _: None) -> "Live":
        """A connection for frames and questions. ahead: frames on the way, at most; raw: arrays are not sent as JPEG.

        told: gets every acknowledgement and event, in the reader's thread; it must not use the connection.
        """
        return Live(self._server, id, Talk(ahead, told), raw)

    def _send(self, request: Request[T]) -> T:
        with reaching(self._server.url):
            response = self._http.request(
                request.method, request.path, json=request.json, params=request.params, headers=request.headers,
                content=_chunks(request.body) if isinstance(request.body, Path) else request.body,
            )  # fmt: skip
        return request.result(response.status_code, response.content, response.headers)

    @contextmanager
    def _reading(self, request: Request[Any]) -> Iterator[httpx.Response]:
        """A response whose body is read as it comes."""
        with (
            reaching(self._server.url),
            self._http.stream(request.method, request.path, json=request.json) as response,
        ):
            if response.status_code != 200:
                request.result(response.status_code, response.read(), response.headers)
            yield response

    def _pieces(self, request: Request[Any]) -> Iterator[str | Answer]:
        with self._reading(request) as response:
            for line in response.iter_lines():
                yield from of_answer(line)


def _chunks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while piece := file.read(calls.PIECE):
            yield piece


class Pieces:
    """The text of an answer as it is written; at its end `answer` is there."""

    def __init__(self, coming: Iterator[str | Answer], cancel: Callable[[], None] | None = None) -> None:
        self.answer: Answer | None = None
        self._coming, self._cancel = coming, cancel

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        if self.answer:
            raise StopIteration
        piece = next(self._coming, None)
        if piece is None:
            raise broken_off()
        if isinstance(piece, str):
            return piece
        self.answer = piece
        self.close()
        raise StopIteration

    def whole(self) -> Answer:
        """Read to the end."""
        for _ in self:
            pass
        assert self.answer
        return self.answer

    def close(self) -> None:
        """Cancel it, if it has not ended."""
        if self._cancel:
            self._cancel()
        self._coming.close()  # pyright: ignore[reportAttributeAccessIssue]


class Live:
    """A live connection, of `Client.live`. May be shared by threads; use it as a context manager.

    Where the connection is lost, everything raises ClientError from then on; making another one is up to the caller.
    """

    def __init__(self, server: Server, id: str, talk: Talk, raw: bool) -> None:
        self._url, self._talk, self._raw = server.url, talk, raw
        self._ready, self._sending = threading.Condition(), threading.Lock()
        options: dict[str, Any] = {"compression": None, "max_size": LARGEST, "proxy": None if server.local else True}
        with reaching(server.url), ExitStack() as stack:
            opening = connect(server.socket(id), additional_headers=server.headers, **options)
            self._socket = stack.enter_context(opening)
            talk.begin(self._socket.recv(TIMEOUT))
            self._open = stack.pop_all()
        self._reader = threading.Thread(target=self._read, name="infinitevl live", daemon=True)
        self._reader.start()

    def __enter__(self) -> "Live":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self.drain()
        finally:
            self.close()

    @property
    def stream(self) -> Stream:
        """As it was when the connection began."""
        assert self._talk.stream
        return self._talk.stream

    @property
    def counts(self) -> dict[str, int]:
        """Acknowledgements by their result."""
        return dict(self._talk.counts)

    def send(self, frame: Frame, time: float | None = None) -> int:
        """Hand in a frame; its number. Waits while `ahead` frames are not acknowledged. FrameError for no frame."""
        parts = messages(frame, time, self._raw)
        with self._sending:
            with self._ready:
                self._ready.wait_for(lambda: self._talk.room)
                number = self._talk.frame()
            self._transmit(*parts)
        return number

    def drain(self) -> None:
        """Wait until every frame is acknowledged."""
        with self._ready:
            self._ready.wait_for(lambda: self._talk.quiet)
            self._talk.settled()

    def ask(self, question: str, **options: Unpack[Asking]) -> Pieces:
        """Ask about what is in memory now; `drain` before, where the last frames matter."""
        with self._sending:
            with self._ready:
                asked, message = self._talk.ask(question, **options)
            self._transmit(message)
        return Pieces(self._coming(asked), lambda: self._cancel(asked))

    def close(self) -> None:
        """Hang up. Frames that are not acknowledged may be lost."""
        self._open.close()
        self._reader.join()

    def _coming(self, asked: Asked) -> Iterator[str | Answer]:
        while True:
            with self._ready:
                self._ready.wait_for(lambda: asked.waiting)
                piece = asked.take()
            yield piece

    def _cancel(self, asked: Asked) -> None:
        with self._ready:
            message = self._talk.cancel(asked)
        if message:
            with self._sending, suppress(ClientError):
                self._transmit(message)

    def _transmit(self, *parts: str | bytes) -> None:
        try:
            with reaching(self._url):
                for part in parts:
                    self._socket.send(part)
        except ClientError as error:
            raise self._end(error) from None
        except BaseException:  # also Ctrl-C and the like: what was sent in part cannot be gone on with
            self._end(ClientError("a message was sent in part"))
            raise

    def _read(self) -> None:
        try:
            while True:
                message = self._socket.recv()
                with self._ready:
                    self._talk.receive(message)
                    self._ready.notify_all()
        except ConnectionClosed as error:
            self._end(closed(error))
        except Exception as error:  # of `told`, or of a server that is none
            self._end(error)
            self._socket.close()

    def _end(self, fault: Exception) -> Exception:
        with self._ready:
            self._ready.notify_all()
            return self._talk.end(fault)
