"""Routes of streams: their life, their frames, their memory."""

import asyncio
import errno
import secrets
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import IO, Annotated, Any

from fastapi import APIRouter, Query, Request
from fastapi.responses import Response

from infinitevl.errors import InfiniteVLError, NotFound, StorageError, VideoError
from infinitevl.server.bodies import (
    Acknowledgement,
    ForkGiven,
    MemoryTold,
    SourceGiven,
    StreamGiven,
    StreamList,
    StreamTold,
)
from infinitevl.server.faults import responses
from infinitevl.server.frames import jpeg, picture
from infinitevl.server.hub import Hub
from infinitevl.server.keys import Owner
from infinitevl.server.outbox import Finished, Outbox
from infinitevl.server.room import Room, Source
from infinitevl.server.snapshots import full_name, renamed
from infinitevl.server.sse import EventStream, Lines, line

PIECE = 1 << 20
Time = Annotated[float | None, Query(allow_inf_nan=False, description="Seconds of the source.")]
BINARY = {"schema": {"type": "string", "format": "binary"}}
EVENTS = {"text/event-stream": {"schema": {"type": "string"}}}


def body_of(*types: str) -> dict[str, Any]:
    """What OpenAPI says of a body that is not JSON."""
    return {"requestBody": {"required": True, "content": dict.fromkeys(types, BINARY)}}


def router(hub: Hub) -> APIRouter:
    routes = APIRouter(prefix="/v1/streams", tags=["streams"])
    there, other = responses(404), responses(404, json=False)

    @routes.post("", status_code=201, response_model=StreamTold, responses=responses(404, 429, 507))
    async def create(given: StreamGiven, owner: Owner) -> dict[str, Any]:
        """A new stream, or one that begins from a snapshot. It survives a crash of the server from here on."""
        if given.source:
            hub.allowed.find(given.source.url)
        snapshot = given.snapshot and full_name(owner, given.snapshot)
        make = partial(hub.engine.open, fps=given.fps, max_pixels=given.max_pixels, snapshot=snapshot)
        with renamed(owner):
            room = await hub.open(owner, given.name, make)
        if given.source:
            await _watch(hub, room, Source(given.source.url, given.source.realtime))
        return hub.view(room)

    @routes.get("", response_model=StreamList, responses=responses())
    async def streams(owner: Owner) -> dict[str, Any]:
        """The key's streams, oldest first."""
        return {"object": "list", "data": await hub.views(owner)}

    @routes.get("/{id}", response_model=StreamTold, responses=there)
    async def stream(id: str, owner: Owner) -> dict[str, Any]:
        return hub.view(hub.room(id, owner))

    @routes.delete("/{id}", status_code=204, responses=responses(404, 507))
    async def drop(id: str, owner: Owner) -> None:
        """Forget a stream. Who listens to it is sent away."""
        await hub.drop(hub.room(id, owner))

    @routes.post("/{id}/fork", status_code=201, response_model=StreamTold, responses=responses(404, 429, 507))
    async def fork(id: str, owner: Owner, given: ForkGiven | None = None) -> dict[str, Any]:
        """A second stream with the same memory, and no source."""
        room = hub.room(id, owner)
        name = given.name if given else None
        return hub.view(await hub.open(owner, name, partial(hub.engine.fork, room.id)))

    @routes.put("/{id}/source", response_model=StreamTold, responses=responses(404, 507))
    async def watch(id: str, given: SourceGiven, owner: Owner) -> dict[str, Any]:
        """Watch a source, instead of the one before."""
        room = hub.room(id, owner)
        hub.allowed.find(given.url)
        await _watch(hub, room, Source(given.url, given.realtime))
        return hub.view(room)

    @routes.delete("/{id}/source", response_model=StreamTold, responses=responses(404, 507))
    async def leave(id: str, owner: Owner) -> dict[str, Any]:
        """Stop the source."""
        room = hub.room(id, owner)
        await _watch(hub, room, None)
        return hub.view(room)

    @routes.post(
        "/{id}/video", status_code=202, response_model=StreamTold, responses=responses(404, 507),
        openapi_extra=body_of("video/*", "application/octet-stream"),
    )  # fmt: skip
    async def video(id: str, owner: Owner, request: Request, realtime: bool = False) -> dict[str, Any]:
        """Watch a video file, the body of the request."""
        room = hub.room(id, owner)
        path = hub.settings.uploads / f"{room.id}-{secrets.token_hex(8)}.video"
        try:
            await _written(hub, path, request.stream())
            hub.room(id, owner)
        except BaseException:
            path.unlink(missing_ok=True)
            raise
        await _watch(hub, room, Source("upload", realtime, file=path.name))
        return hub.view(room)

    @routes.post(
        "/{id}/frames", response_model=Acknowledgement, responses=there,
        openapi_extra=body_of("image/jpeg", "image/png", "image/webp"),
    )  # fmt: skip
    async def frame(id: str, owner: Owner, request: Request, time: Time = None) -> dict[str, Any]:
        """Hand in one frame, and wait until it is in memory, or is not taken."""
        room = hub.room(id, owner)
        data = await request.body()
        return {"number": 1, **await _shown(hub, room, data, time)}

    @routes.get(
        "/{id}/events", status_code=200, responses={**other, 200: {"content": EVENTS}}, response_class=EventStream
    )
    async def events(id: str, owner: Owner) -> EventStream:
        """Standing questions that changed, and the source's fortune, as they come."""
        room, outbox = hub.room(id, owner), Outbox()
        room.listeners.add(outbox)
        return EventStream(_lines(outbox), hub.settings.heartbeat, lambda: room.listeners.discard(outbox))

    @routes.get(
        "/{id}/picture", responses={**other, 200: {"content": {"image/jpeg": BINARY}}}, response_class=Response
    )
    async def newest(id: str, owner: Owner) -> Response:
        """The newest frame."""
        frame = hub.room(id, owner).newest
        if frame is None:
            raise NotFound("no frame has come since the server started")
        return Response(await hub.decode(jpeg, frame), media_type="image/jpeg")

    @routes.get("/{id}/memory", responses=there)
    async def memory(id: str, owner: Owner) -> MemoryTold:
        """The norm of each Gated DeltaNet layer's memory, over the stream's time."""
        return MemoryTold.of(await hub.call(hub.engine.norms, hub.room(id, owner).id))

    return routes


async def _watch(hub: Hub, room: Room, source: Source | None) -> None:
    hub.watch(room, source)
    try:
        await hub.keep(room, now=True)
    except StorageError:  # what a restart would not know of is not begun
        hub.watch(room, None)
        raise


async def _lines(outbox: Outbox) -> Lines:
    try:
        while True:
            yield line(await outbox.take())
    except Finished:
        return


async def _shown(hub: Hub, room: Room, data: bytes, at: float | None) -> dict[str, Any]:
    """The acknowledgement of one frame."""
    told = asyncio.get_running_loop().create_future()
    try:
        frame = await hub.decode(picture, data)
        await hub.call(hub.push, room, frame, at, told.set_result)
    except (VideoError, InfiniteVLError) as error:
        if isinstance(error, NotFound):
            raise
        return {"result": "refused", "time": None, "lag_ms": 0.0, "message": str(error)}
    return await told


async def _written(hub: Hub, path: Path, pieces: AsyncIterator[bytes]) -> None:
    """Write a body to a file without ever holding more than a piece of it."""
    waiting = bytearray()
    try:
        with path.open("xb") as file:
            async for piece in pieces:
                waiting += piece
                if len(waiting) >= PIECE:
                    await hub.call(_append, file, bytes(waiting))
                    waiting.clear()
            await hub.call(_append, file, bytes(waiting))
            if not file.tell():
                raise InfiniteVLError("the body is empty: it is the video file")
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        raise StorageError("the disk is full" if full else f"the video cannot be kept: {error.strerror}") from None


def _append(file: IO[bytes], data: bytes) -> None:
    file.write(data)
    file.flush()
