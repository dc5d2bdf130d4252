"""One side of a live connection: what is to be sent, and what came of it. No I/O, no threads."""

import json
from collections import Counter, deque
from collections.abc import Callable
from itertools import count
from typing import Any, Unpack

from infinitevl.client.calls import Asking
from infinitevl.client.faults import ClientError, unexpected
from infinitevl.client.reading import event
from infinitevl.client.types import Acknowledgement, Answer, Event, Stream, build

Told = Callable[[Acknowledgement | Event], None]
AHEAD = 2  # what a stream keeps waiting: with no more on the way the server drops none


class Asked:
    """A question on its way: what came and was not read yet, at the end an Answer or an error."""

    def __init__(self, id: str) -> None:
        self.id = id
        self.waiting: deque[str | Answer | ClientError] = deque()

    def take(self) -> str | Answer:
        """Raises ClientError."""
        what = self.waiting.popleft()
        if isinstance(what, ClientError):
            raise what
        return what


class Talk:
    """counts: acknowledgements by result; stream: as it was at the beginning; fault: what ended the connection."""

    def __init__(self, ahead: int, told: Told) -> None:
        if ahead < 1:
            raise ClientError("ahead must be 1 or more", None, "invalid_request_error")
        self.counts: Counter[str] = Counter()
        self.stream: Stream | None = None
        self.fault: Exception | None = None
        self.sent = self.acknowledged = 0
        self._ahead, self._told = ahead, told
        self._asked: dict[str, Asked] = {}
        self._names = count(1)
        self._complaint: ClientError | None = None

    @property
    def room(self) -> bool:
        """Whether a frame may be sent, or never can be any more."""
        return self.sent - self.acknowledged < self._ahead or self.fault is not None

    @property
    def quiet(self) -> bool:
        """Whether all frames are acknowledged, or never can be any more."""
        return self.sent == self.acknowledged or self.fault is not None

    def check(self) -> None:
        """Raises what ended the connection, or, once, what the server complained of."""
        complaint, self._complaint = self._complaint, None
        if self.fault or complaint:
            raise self.fault or complaint  # pyright: ignore[reportGeneralTypeIssues]

    def settled(self) -> None:
        """The same after `quiet`: a connection that ended when all was acknowledged has lost nothing."""
        if self.sent != self.acknowledged or not isinstance(self.fault, ClientError):
            self.check()

    def frame(self) -> int:
        """Count a frame that is going to be sent; its number."""
        self.check()
        self.sent += 1
        return self.sent

    def ask(self, question: str, **options: Unpack[Asking]) -> tuple[Asked, str]:
        """A question, and the message that asks it."""
        self.check()
        asked = Asked(f"q{next(self._names)}")
        self._asked[asked.id] = asked
        return asked, json.dumps({"type": "ask", "id": asked.id, "question": question, **options})

    def cancel(self, asked: Asked) -> str | None:
        """The message that ends a question; None where it has ended."""
        return json.dumps({"type": "cancel", "id": asked.id}) if asked.id in self._asked else None

    def begin(self, message: str | bytes) -> None:
        """Take in the server's first message. Raises ClientError where it is another than `hello`."""
        self.receive(message)
        if self.stream is None:
            raise unexpected(message)

    def receive(self, message: str | bytes) -> None:
        """Take in a message of the server's. Raises ClientError for what is none, and whatever `told` raises."""
        try:
            self._receive(json.loads(message))
        except (ValueError, KeyError, TypeError, AttributeError):
            raise unexpected(message) from None

    def end(self, fault: Exception) -> Exception:
        """The connection has ended: everything that waits gets to know. What ended it first."""
        self.fault = self.fault or fault
        lost = fault if isinstance(fault, ClientError) else ClientError(f"the connection ended: {fault}")
        while self._asked:
            self._asked.popitem()[1].waiting.append(lost)
        return self.fault

    def _receive(self, message: dict[str, Any]) -> None:
        kind = message["type"]
        if kind == "frame":
            told = build(Acknowledgement, message)
            self.acknowledged += 1
            self.counts[told.result] += 1
            self._told(told)
        elif kind == "hello":
            self.stream = build(Stream, message["stream"])
        elif kind in ("delta", "answer", "error"):
            self._answer(kind, message)
        elif happened := event(message):
            self._told(happened)

    def _answer(self, kind: str, message: dict[str, Any]) -> None:
        asked = self._asked.get(message.get("id") or "")
        if kind == "error":
            error = _complaint(message)
            if asked is None:
                self._complaint = error
        if asked is None:
            return
        if kind == "delta":
            asked.waiting.append(message["text"])
        else:
            asked.waiting.append(error if kind == "error" else build(Answer, message["answer"]))
            del self._asked[asked.id]


def _complaint(message: dict[str, Any]) -> ClientError:
    code = str(message.get("code") or "invalid_request")
    status = STATUSES.get(code.removesuffix("_error"))
    return ClientError(str(message["message"]), status, f"{code.removesuffix('_error')}_error")


STATUSES = {
    "invalid_request": 400, "authentication": 401, "permission": 403, "not_found": 404, "conflict": 409,
    "too_large": 413, "rate_limit": 429, "server": 500, "overloaded": 503, "storage": 507,
}  # fmt: skip
