"""The WebSocket of a stream: frames, questions and events in one connection."""

import asyncio
import json
import time
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, WebSocket
from pydantic import Field, TypeAdapter, ValidationError

from infinitevl.errors import InfiniteVLError, NotFound
from infinitevl.server.bodies import AskMessage, CancelMessage, FrameMessage
from infinitevl.server.faults import Unauthorized, fault_body
from infinitevl.server.frames import picture, raw
from infinitevl.server.hub import Hub
from infinitevl.server.keys import PROTOCOL, brought
from infinitevl.server.metrics import Metrics
from infinitevl.server.outbox import GONE, SLOW, Finished, Outbox
from infinitevl.server.questions import check_length
from infinitevl.server.room import Room
from infinitevl.server.settings import PROTOCOL as VERSION
from infinitevl.server.writing import Writing

WAITING = 2  # frames that came, but are not decoded yet
PARTING = 5.0  # seconds for a reader to take what waits, when the connection is closed
MESSAGES: TypeAdapter[FrameMessage | AskMessage | CancelMessage] = TypeAdapter(
    Annotated[FrameMessage | AskMessage | CancelMessage, Field(discriminator="type")]
)


def router(hub: Hub, metrics: Metrics) -> APIRouter:
    routes = APIRouter()

    @routes.websocket("/v1/streams/{id}/live")
    async def live(socket: WebSocket, id: str) -> None:
        protocols = socket.scope["subprotocols"]
        await socket.accept(PROTOCOL if PROTOCOL in protocols else None)
        try:
            room = hub.room(id, hub.keys.owner(brought(socket.scope)))
        except (Unauthorized, NotFound) as error:
            return await socket.close(4401 if isinstance(error, Unauthorized) else GONE, str(error))
        with metrics.sockets.track_inprogress():
            return await Connection(hub, room, socket).run()

    return routes


@dataclass(frozen=True)
class Arrived:
    """A binary message and what was said of it."""

    number: int
    data: bytes
    header: FrameMessage | None
    at: float  # of the monotonic clock


class Connection:
    """Three tasks: one receives, one decodes the newest frames, one sends what waits in the outbox."""

    def __init__(self, hub: Hub, room: Room, socket: WebSocket) -> None:
        self._hub, self._room, self._socket, self._outbox = hub, room, socket, Outbox()
        self._frames, self._came, self._number = deque[Arrived](), asyncio.Event(), 0
        self._answers: dict[str, Writing | None] = {}  # None: not begun yet
        self._unwanted: set[str] = set()

    async def run(self) -> None:
        """Until one of both sides has enough."""
        self._outbox.put({"type": "hello", "protocol": VERSION, "stream": self._hub.view(self._room)})
        self._room.listeners.add(self._outbox)
        tasks: set[asyncio.Future[Any]] = {asyncio.ensure_future(work) for work in (self._receive(), self._decode())}
        tasks.add(asyncio.ensure_future(self._outbox.over.wait()))
        sending = asyncio.ensure_future(self._send())
        try:
            await asyncio.wait({*tasks, sending}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._room.listeners.discard(self._outbox)
            for writing in self._answers.values():
                if writing:
                    writing.cancel()
            self._unwanted.update(self._answers)
            for task in tasks:
                task.cancel()
            await self._part(sending)

    async def _part(self, sending: "asyncio.Future[None]") -> None:
        """Close the connection, where it is open, for the reason that the outbox has."""
        if self._outbox.code not in (None, SLOW):
            await asyncio.wait({sending}, timeout=PARTING)
        sending.cancel()
        with suppress(Exception):  # it is closed already, or does not move
            await asyncio.wait_for(self._socket.close(self._outbox.code or 1000), PARTING)

    async def _send(self) -> None:
        with suppress(Finished):
            while True:
                await self._socket.send_text(json.dumps(await self._outbox.take(), ensure_ascii=False))

    async def _receive(self) -> None:
        header: FrameMessage | None = None
        while (message := await self._socket.receive())["type"] == "websocket.receive":
            if message.get("bytes") is not None:
                self._frame(message["bytes"], header)
                header = None
            else:
                header = self._read(message["text"])

    def _read(self, text: str) -> FrameMessage | None:
        """Do what a text message says; what it says of the next frame."""
        try:
            message = MESSAGES.validate_json(text)
            if isinstance(message, FrameMessage):
                return message
            if isinstance(message, CancelMessage):
                self._cancel(message.id)
            else:
                self._begin(message)
        except (ValidationError, InfiniteVLError) as error:
            self._complain(error, _id_of(text))
        return None

    def _complain(self, error: Exception, id: str | None) -> None:
        fault = fault_body(error)["error"]
        named = {} if id is None else {"id": id}
        self._outbox.put({"type": "error", **named, "message": fault["message"], "code": fault["code"]})

    # Frames

    def _frame(self, data: bytes, header: FrameMessage | None) -> None:
        self._number += 1
        self._frames.append(Arrived(self._number, data, header, time.monotonic()))
        self._came.set()
        if len(self._frames) > WAITING:
            lost = self._frames.popleft()
            self._room.dropped += 1
            self._acknowledge(lost, {"result": "dropped"})

    async def _decode(self) -> None:
        while True:
            await self._came.wait()
            if self._frames:
                await self._hub.decode(self._hand_in, self._frames.popleft())
            else:
                self._came.clear()

    def _hand_in(self, arrived: Arrived) -> None:
        """In a thread: decode a frame and give it to the engine."""
        told = partial(self._acknowledge, arrived)
        try:
            self._hub.push(self._room, _decoded(arrived), arrived.header and arrived.header.time, told)
        except InfiniteVLError as error:
            self._hub.soon(told, {"result": "refused", "message": str(error)})

    def _acknowledge(self, arrived: Arrived, result: dict[str, Any]) -> None:
        lag = round((time.monotonic() - arrived.at) * 1000, 3)
        told = {"type": "frame", "number": arrived.number, "time": None, "message": None, **result, "lag_ms": lag}
        self._outbox.put(told)

    # Questions

    def _begin(self, message: AskMessage) -> None:
        check_length(self._hub, message.max_tokens)
        if message.id in self._answers:
            raise InfiniteVLError("a question of this id is being answered")
        self._answers[message.id] = None
        self._hub.spawn(self._answer(message))

    async def _answer(self, message: AskMessage) -> None:
        created = time.time()
        try:
            writing = await self._hub.ask(self._room, message.question, message.asking())
            self._answers[message.id] = writing
            if message.id in self._unwanted:
                writing.cancel()
            async for piece in writing.pieces():
                self._outbox.put({"type": "delta", "id": message.id, "text": piece})
            answer = self._hub.told(writing, self._room, message.question, created)
            self._outbox.put({"type": "answer", "id": message.id, "answer": answer})
        except InfiniteVLError as error:
            self._complain(error, message.id)
        finally:
            self._answers.pop(message.id, None)
            self._unwanted.discard(message.id)

    def _cancel(self, id: str) -> None:
        if id in self._answers:
            self._unwanted.add(id)
            if writing := self._answers[id]:
                writing.cancel()


def _decoded(arrived: Arrived) -> np.ndarray:
    header = arrived.header
    if header is None or header.format is None:
        return picture(arrived.data)
    if header.width is None or header.height is None:
        raise InfiniteVLError("a frame in rgb24 needs its width and height")
    return raw(arrived.data, header.width, header.height)


def _id_of(text: str) -> str | None:
    """The id of a message that could not be used."""
    try:
        id = json.loads(text)["id"]
        return id[:100] if isinstance(id, str) else None
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
