"""What the server tells: see docs/protocol.md. Seconds are of the stream's clock, but for `created` and `at`."""

from dataclasses import dataclass, field, fields, is_dataclass
from functools import cache
from typing import Any, Literal, TypeVar, get_args, get_type_hints

T = TypeVar("T")


@dataclass(frozen=True)
class Source:
    url: str
    realtime: bool
    status: Literal["connecting", "playing", "retrying", "ended", "failed"]
    error: str | None = None


@dataclass(frozen=True)
class Stats:
    frames: int
    tokens: int
    dropped: int
    waiting: int
    seconds: float
    fps: float
    lag_ms: float
    state_bytes: int


@dataclass(frozen=True)
class Saved:
    frames: int
    at: float


@dataclass(frozen=True)
class Stream:
    id: str
    name: str | None
    created: int
    fps: float | None
    max_pixels: int
    place: Literal["slot", "host", "disk"]
    source: Source | None
    stats: Stats
    saved: Saved | None


@dataclass(frozen=True)
class Usage:
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


@dataclass(frozen=True)
class Answer:
    id: str
    stream: str
    question: str
    answer: str
    created: int
    time: float | None
    frames: int
    finish_reason: Literal["stop", "length", "cancelled", "error"]
    usage: Usage
    first_token_ms: float | None
    ms: float
    error: str | None = None


@dataclass(frozen=True)
class Watch:
    id: str
    question: str
    every: float
    max_tokens: int
    answer: str | None
    time: float | None
    asked: int
    changed: int


@dataclass(frozen=True)
class Snapshot:
    name: str
    stream: str | None = None
    frames: int = 0
    bytes: int = 0
    created: int = 0


@dataclass(frozen=True)
class Acknowledgement:
    """What became of a frame. number: of this connection, from 1."""

    number: int
    result: Literal["seen", "skipped", "dropped", "refused"]
    time: float | None
    lag_ms: float
    message: str | None = None


@dataclass(frozen=True)
class WatchEvent:
    """The answer to a standing question is another than before."""

    watch: str
    question: str
    answer: str
    before: str | None
    time: float | None


@dataclass(frozen=True)
class SourceEvent:
    """The status of a source changed."""

    source: Source


@dataclass(frozen=True)
class Memory:
    """Norm of the memory of each Gated DeltaNet layer: norms[i][j] of layers[j] at times[i]."""

    layers: list[int]
    times: list[float]
    norms: list[list[float]]


@dataclass(frozen=True)
class Info:
    protocol: int
    version: str
    model: str
    limits: dict[str, Any] = field(default_factory=dict)


Event = WatchEvent | SourceEvent
EVENTS: dict[str, type[WatchEvent] | type[SourceEvent]] = {"watch": WatchEvent, "source": SourceEvent}


def build(kind: type[T], values: dict[str, Any]) -> T:
    """A dataclass out of JSON. What is not known is left out, so that a server may tell more than today.

    Raises TypeError where something is missing.
    """
    given = {}
    for name, inner in _fields(kind):
        if name in values:
            value = values[name]
            given[name] = build(inner, value) if inner and value is not None else value
    return kind(**given)


@cache
def _fields(kind: Any) -> list[tuple[str, Any]]:
    """Names, and the dataclass that a field holds, None where it holds none."""
    hints = get_type_hints(kind)
    return [
        (f.name, next(filter(is_dataclass, (hints[f.name], *get_args(hints[f.name]))), None)) for f in fields(kind)
    ]
