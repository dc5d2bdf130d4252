"""Every request of the protocol as a value: what is sent, and how the answer is read. No I/O."""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Generic, TypedDict, TypeVar, Unpack
from urllib.parse import quote, urlsplit

from infinitevl.client.faults import ClientError, refused, unexpected
from infinitevl.client.frames import Frame, picture
from infinitevl.client.types import Acknowledgement, Answer, Info, Memory, Snapshot, Stream, Watch, build

T = TypeVar("T")
KEY, PIECE = "INFINITEVL_API_KEY", 1 << 16


@dataclass(frozen=True)
class Request(Generic[T]):
    """read: makes the result of the decoded JSON (of the bytes, where `binary`; None of an empty answer).

    body: bytes, or the file that holds them.
    """

    method: str
    path: str
    read: Callable[[Any], T]
    json: dict[str, Any] | None = None
    params: dict[str, Any] = field(default_factory=dict)
    body: bytes | Path | None = None
    binary: bool = False

    @property
    def headers(self) -> dict[str, str]:
        """Those of a body. With its length the server can refuse at once what is too large."""
        if self.body is None:
            return {}
        size = len(self.body) if isinstance(self.body, bytes) else self.body.stat().st_size
        return {"Content-Type": "application/octet-stream", "Content-Length": str(size)}

    def result(self, status: int, content: bytes, headers: Mapping[str, str]) -> T:
        """Raises ClientError."""
        if not 200 <= status < 300:
            raise refused(status, content, headers)
        try:
            return self.read(content if self.binary else json.loads(content) if content else None)
        except (ValueError, KeyError, TypeError):
            raise unexpected(content[:200].decode(errors="replace")) from None


@dataclass(frozen=True)
class Server:
    """Where a server is, and who asks. Raises ClientError for what is no address, or no key."""

    url: str
    key: str | None

    @classmethod
    def at(cls, url: str, key: str | None) -> "Server":
        """key: from INFINITEVL_API_KEY where it is None."""
        url, key = url.rstrip("/"), key or os.environ.get(KEY) or None
        if not url.startswith(("http://", "https://")) or not _host(url):
            raise ClientError(f"{url}: not an http or https address", None, "invalid_request_error")
        if key and not (key.isascii() and key.isprintable()):
            raise ClientError("an API key has no such characters", None, "authentication_error")
        return cls(url, key)

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.key}"} if self.key else {}

    @property
    def local(self) -> bool:
        """Whether it is this machine, which is reached without the proxy of the environment."""
        try:
            return _host(self.url) == "localhost" or ip_address(_host(self.url)).is_loopback
        except ValueError:
            return False

    def socket(self, id: str) -> str:
        """The address of a live connection."""
        return f"ws{self.url.removeprefix('http')}{_stream(id, '/live')}"


def _host(url: str) -> str:
    try:
        return urlsplit(url).hostname or ""
    except ValueError:  # brackets without an address in them
        return ""


def _name(name: str) -> str:
    """A part of a path. One that is empty, or only dots, would make it another path."""
    if not name.strip("."):
        raise ClientError(f"{name!r} is no id and no name", None, "invalid_request_error")
    return quote(name, safe="")


def _stream(id: str, rest: str = "") -> str:
    return f"/v1/streams/{_name(id)}{rest}"


def _given(**values: Any) -> dict[str, Any]:
    """Those that are not None."""
    return {name: value for name, value in values.items() if value is not None}


def _one(kind: type[T]) -> Callable[[Any], T]:
    return lambda told: build(kind, told)


def _many(kind: type[T]) -> Callable[[Any], list[T]]:
    return lambda told: [build(kind, each) for each in told["data"]]


def _nothing(_: Any) -> None:
    return None


# Streams


def create_stream(
    name: str | None = None,
    *,
    fps: float | None = 2.0,
    max_pixels: int | None = None,
    source: str | None = None,
    realtime: bool = True,
    snapshot: str | None = None,
) -> Request[Stream]:
    """A new stream. fps: frames a second that it takes, None all; source: what the server itself shall watch;
    snapshot: where it begins, at that one's rate and size."""
    given = _given(name=name, max_pixels=max_pixels, snapshot=snapshot)
    if snapshot is None:
        given["fps"] = fps
    if source is not None:
        given["source"] = {"url": source, "realtime": realtime}
    return Request("POST", "/v1/streams", _one(Stream), given)


def list_streams() -> Request[list[Stream]]:
    """The key's streams, oldest first."""
    return Request("GET", "/v1/streams", _many(Stream))


def get_stream(id: str) -> Request[Stream]:
    return Request("GET", _stream(id), _one(Stream))


def delete_stream(id: str) -> Request[None]:
    return Request("DELETE", _stream(id), _nothing)


def fork(id: str, name: str | None = None) -> Request[Stream]:
    """A second stream with the same memory, and no source."""
    return Request("POST", _stream(id, "/fork"), _one(Stream), _given(name=name))


def set_source(id: str, url: str, *, realtime: bool = True) -> Request[Stream]:
    """Have the server watch an address or a file that it allows, instead of the source before."""
    return Request("PUT", _stream(id, "/source"), _one(Stream), {"url": url, "realtime": realtime})


def stop_source(id: str) -> Request[Stream]:
    return Request("DELETE", _stream(id, "/source"), _one(Stream))


def upload(id: str, video: str | Path | bytes, *, realtime: bool = False) -> Request[Stream]:
    """Send a video, a file or its bytes, which the stream watches from now on."""
    body = video if isinstance(video, bytes) else Path(video)
    if isinstance(body, Path) and not body.is_file():
        raise ClientError(f"{body}: no such file", None, "invalid_request_error")
    params = {"realtime": str(realtime).lower()}
    return Request("POST", _stream(id, "/video"), _one(Stream), params=params, body=body)


def push(id: str, frame: Frame, time: float | None = None) -> Request[Acknowledgement]:
    """Hand in one frame, an array [H, W, 3] or the bytes of a picture; returns when it is in memory, or not taken."""
    params = _given(time=time)
    return Request("POST", _stream(id, "/frames"), _one(Acknowledgement), params=params, body=picture(frame))


def newest_picture(id: str) -> Request[bytes]:
    """The newest frame as a JPEG."""
    return Request("GET", _stream(id, "/picture"), bytes, binary=True)


def memory(id: str) -> Request[Memory]:
    """The norm of the memory over the stream's time."""
    return Request("GET", _stream(id, "/memory"), _one(Memory))


def events(id: str) -> Request[None]:
    """Server-sent events, for `reading.of_events`."""
    return Request("GET", _stream(id, "/events"), _nothing)


# Questions


class Asking(TypedDict, total=False):
    """How an answer is written; what is not given is as the protocol has it. remember: question and answer become part
    of the stream."""

    remember: bool
    max_tokens: int
    temperature: float
    top_p: float
    stop: Sequence[str]
    seed: int | None


def ask(id: str, question: str, **options: Unpack[Asking]) -> Request[Answer]:
    """Ask about what is in memory now."""
    return Request("POST", _stream(id, "/ask"), _one(Answer), {"question": question, **options})


def ask_pieces(id: str, question: str, **options: Unpack[Asking]) -> Request[None]:
    """Server-sent events, for `reading.of_answer`."""
    return Request("POST", _stream(id, "/ask"), _nothing, {"question": question, **options, "stream": True})


def answers(id: str) -> Request[list[Answer]]:
    """The last 100, newest last."""
    return Request("GET", _stream(id, "/answers"), _many(Answer))


def create_watch(id: str, question: str, *, every: float = 10.0, max_tokens: int = 32) -> Request[Watch]:
    """A standing question, asked every so many seconds; `events` tells when its answer changes."""
    given = {"question": question, "every": every, "max_tokens": max_tokens}
    return Request("POST", _stream(id, "/watches"), _one(Watch), given)


def list_watches(id: str) -> Request[list[Watch]]:
    return Request("GET", _stream(id, "/watches"), _many(Watch))


def delete_watch(id: str, watch: str) -> Request[None]:
    return Request("DELETE", _stream(id, f"/watches/{_name(watch)}"), _nothing)


# Snapshots, and the server


def create_snapshot(id: str, name: str) -> Request[Snapshot]:
    """Write the stream's memory to the server's disk; it is there when this returns."""
    return Request("POST", _stream(id, "/snapshots"), _one(Snapshot), {"name": name})


def list_snapshots() -> Request[list[Snapshot]]:
    return Request("GET", "/v1/snapshots", _many(Snapshot))


def snapshot_file(name: str) -> Request[None]:
    """The file itself, for `reading.Download`."""
    return Request("GET", f"/v1/snapshots/{_name(name)}", _nothing)


def delete_snapshot(name: str) -> Request[None]:
    return Request("DELETE", f"/v1/snapshots/{_name(name)}", _nothing)


def info() -> Request[Info]:
    """The server's version, model and limits."""
    return Request("GET", "/v1/info", _one(Info))
