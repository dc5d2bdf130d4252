"""What is read as it comes: server-sent events and files. No network."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from infinitevl.client.faults import ClientError, unexpected
from infinitevl.client.types import EVENTS, Answer, Event, build

DATA = "data:"


def event(told: dict[str, Any]) -> Event | None:
    """None for a type that is not known: a server may tell more than today."""
    kind = EVENTS.get(told.get("type", ""))
    return build(kind, told) if kind else None


def of_events(line: str) -> Iterator[Event]:
    """The event in a line of `GET events`, if there is one. Raises ClientError."""
    if (told := _data(line)) is not None and (found := _read(event, told)) is not None:
        yield found


def of_answer(line: str) -> Iterator[str | Answer]:
    """The piece, or the whole answer, in a line of a streamed answer, if there is one. Raises ClientError."""
    told = _data(line)
    if told is not None:
        yield _read(lambda t: t["delta"] if "delta" in t else build(Answer, t["answer"]), told)


def broken_off() -> ClientError:
    return ClientError("the connection was lost before the answer ended")


def _data(line: str) -> Any:
    """What a line carries; None for heartbeats and empty lines. Nobody reads as far as `[DONE]`."""
    return _read(json.loads, line.removeprefix(DATA)) if line.startswith(DATA) else None


def _read(read: Any, what: Any) -> Any:
    try:
        return read(what)
    except (ValueError, KeyError, TypeError, AttributeError):
        raise unexpected(what) from None


class Download:
    """A file that appears whole, or not at all. Raises ClientError where it cannot be written."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._part = self.path.with_name(f".{self.path.name}.{os.getpid()}.part")

    def __enter__(self) -> IO[bytes]:
        try:
            self._file = self._part.open("wb")
        except OSError as error:
            raise ClientError(f"{self.path}: {error.strerror}", None, "storage_error") from None
        return self._file

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._file.close()
        if error is None:
            self._part.replace(self.path)
            return
        self._part.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise ClientError(f"{self.path}: {error.strerror}", None, "storage_error") from None
