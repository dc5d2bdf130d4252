"""What the server knows of one stream besides its memory."""

import asyncio
import json
import secrets
import time
from collections import deque
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import numpy as np

from infinitevl.engine.types import Answered, View
from infinitevl.server.outbox import GONE, Outbox
from infinitevl.server.pulling import Puller

ANSWERS, KEPT_BYTES = 100, 32_768  # remembered while the server runs; and of them, kept on disk
SHOWN_SIDE = 1280


@dataclass
class Watch:
    """A standing question. due: the stream's time of its next evaluation, None at once."""

    question: str
    every: float
    max_tokens: int
    id: str = field(default_factory=lambda: f"watch-{secrets.token_hex(8)}")
    answer: str | None = None
    time: float | None = None
    asked: int = 0
    changed: int = 0
    due: float | None = None
    busy: bool = False

    @property
    def told(self) -> dict[str, Any]:
        return {name: value for name, value in asdict(self).items() if name not in ("due", "busy")}


@dataclass
class Source:
    """What a stream watches. file: of an upload, in the folder of uploads; shift: the stream's time at its time 0."""

    url: str
    realtime: bool = True
    status: str = "connecting"
    error: str | None = None
    file: str | None = None
    shift: float | None = None

    @property
    def running(self) -> bool:
        return self.status in ("connecting", "playing", "retrying")

    @property
    def told(self) -> dict[str, Any]:
        return {
            "url": (self.file and "upload") or shown(self.url), "realtime": self.realtime, "status": self.status,
            "error": self.error,
        }  # fmt: skip


def shown(url: str) -> str:
    """An address without its user and password."""
    scheme, mark, rest = url.partition("://")
    place, slash, path = rest.partition("/")
    return f"{scheme}{mark}{place.rpartition('@')[2]}{slash}{path}" if mark else url


@dataclass
class Room:
    """One stream's owner, name, source, questions, answers and listeners. Belongs to the event loop."""

    id: str
    owner: str
    name: str | None = None
    created: float = field(default_factory=time.time)
    source: Source | None = None
    watches: dict[str, Watch] = field(default_factory=dict)
    answers: deque[dict[str, Any]] = field(default_factory=lambda: deque(maxlen=ANSWERS))
    puller: Puller | None = None
    newest: np.ndarray | None = None
    dropped: int = 0  # before the engine saw them
    listeners: set[Outbox] = field(default_factory=set)
    writing: asyncio.Lock = field(default_factory=asyncio.Lock)

    @classmethod
    def restored(cls, id: str, about: dict[str, Any]) -> "Room":
        """As `about` kept it."""
        room = cls(id, about.get("owner", ""), about.get("name"), about.get("created", 0.0))
        room.source = Source(**known(Source, about["source"])) if about.get("source") else None
        watches = [Watch(**known(Watch, values)) for values in about.get("watches", ())]
        room.watches = {watch.id: watch for watch in watches}
        room.answers.extend(about.get("answers", ()))
        return room

    @property
    def about(self) -> dict[str, Any]:
        """What is kept with the stream on disk."""
        watches = [watch.told | {"due": watch.due} for watch in self.watches.values()]
        return {
            "owner": self.owner, "name": self.name, "created": self.created, "watches": watches,
            "source": self.source and asdict(self.source), "answers": newest_of(self.answers),
        }  # fmt: skip

    def told(self, view: View) -> dict[str, Any]:
        """The stream, as clients see it."""
        return {
            "id": self.id, "object": "stream", "name": self.name, "created": int(self.created),
            "fps": view.fps_limit, "max_pixels": view.max_pixels, "place": view.place,
            "source": self.source and self.source.told,
            "stats": {
                "frames": view.frames, "tokens": view.tokens, "dropped": view.dropped + self.dropped,
                "waiting": view.waiting, "seconds": view.seconds, "fps": round(view.fps, 3),
                "lag_ms": milliseconds(view.lag), "state_bytes": view.state_bytes,
            },
            "saved": view.saved and {"frames": view.saved[0], "at": view.saved[1]},
        }  # fmt: skip

    def say(self, event: dict[str, Any]) -> None:
        """Tell everybody who listens."""
        for outbox in list(self.listeners):
            outbox.put(event)

    def close(self, code: int = GONE) -> None:
        """Stop the source and send the listeners away."""
        if self.puller:
            self.puller.stop()
        for outbox in list(self.listeners):
            outbox.finish(code)

    def show(self, frame: np.ndarray) -> None:
        """Keep the newest frame to look at, made smaller by leaving pixels out."""
        step = -(-max(frame.shape[:2]) // SHOWN_SIDE)
        self.newest = frame[::step, ::step].copy()


def known(kind: type, values: dict[str, Any]) -> dict[str, Any]:
    """Those values that are fields of a dataclass."""
    names = {each.name for each in fields(kind)}
    return {name: value for name, value in values.items() if name in names}


def newest_of(answers: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """As many of the newest answers as are small enough to keep with every save."""
    kept: deque[dict[str, Any]] = deque()
    room = KEPT_BYTES
    for answer in reversed(list(answers)):
        room -= len(json.dumps(answer))
        if room < 0:
            break
        kept.appendleft(answer)
    return list(kept)


def milliseconds(seconds: float) -> float:
    return round(seconds * 1000, 3)


def answer_told(id: str, stream: str, question: str, created: float, ended: Answered) -> dict[str, Any]:
    """An answer, as clients see it."""
    return {
        "id": id, "object": "answer", "stream": stream, "question": question, "answer": ended.text,
        "created": int(created), "time": ended.time, "frames": ended.frames, "finish_reason": ended.reason,
        "error": ended.error, "usage": usage_of(ended),
        "first_token_ms": None if ended.first is None else milliseconds(ended.first),
        "ms": milliseconds(ended.seconds),
    }  # fmt: skip


def usage_of(ended: Answered) -> dict[str, int]:
    written = ended.completion_tokens
    return {
        "prompt_tokens": ended.prompt_tokens, "completion_tokens": written,
        "total_tokens": ended.prompt_tokens + written,
    }  # fmt: skip
