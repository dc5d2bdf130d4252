"""Routes of snapshots: a stream's memory as a file."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

from fastapi import APIRouter
from fastapi import Path as PathPart
from fastapi.responses import StreamingResponse

from infinitevl.engine.store import Store, Stored
from infinitevl.errors import Conflict, InfiniteVLError, NotFound, StorageError
from infinitevl.server.bodies import NAME, SnapshotGiven, SnapshotList, SnapshotTold
from infinitevl.server.faults import LimitReached, responses
from infinitevl.server.hub import Hub
from infinitevl.server.keys import Owner

KIND = "snapshots"
Name = Annotated[str, PathPart(pattern=NAME)]
FILE = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}


def full_name(owner: str, name: str) -> str:
    """The name in the store, where the keys' snapshots lie side by side."""
    return f"{owner}.{name}"


@contextmanager
def renamed(owner: str) -> Iterator[None]:
    """Errors speak of the name that the client knows."""
    try:
        yield
    except InfiniteVLError as error:
        raise type(error)(str(error).replace(f"{owner}.", "")) from None


def router(hub: Hub) -> APIRouter:
    routes = APIRouter(prefix="/v1", tags=["snapshots"])
    busy: set[str] = set()

    @routes.post("/streams/{id}/snapshots", status_code=201, responses=responses(404, 409, 429, 507))
    async def take(id: str, given: SnapshotGiven, owner: Owner) -> SnapshotTold:
        """Write the stream's memory to the disk under a new name. It is there when this returns."""
        room, name = hub.room(id, owner), full_name(owner, given.name)
        if name in busy:
            raise Conflict(f"there is a snapshot {given.name} already")
        busy.add(name)
        try:
            with renamed(owner):
                await hub.call(_check_number, hub, owner)
                await hub.call(hub.engine.snapshot, room.id, name, {"owner": owner, "stream": room.id})
                return _told(await hub.call(hub.store.look, KIND, name))
        finally:
            busy.discard(name)

    @routes.get("/snapshots", responses=responses(507))
    async def snapshots(owner: Owner) -> SnapshotList:
        """The key's snapshots by name. Damaged ones are left out."""
        return SnapshotList(data=[_told(stored) for stored in await hub.call(_all, hub.store, owner)])

    @routes.get(
        "/snapshots/{name}", responses={**responses(404, 507, json=False), 200: {"content": FILE}},
        response_class=StreamingResponse,
    )  # fmt: skip
    async def snapshot(name: Name, owner: Owner) -> StreamingResponse:
        """The file, which `infinitevl stream --load-state` reads too."""
        with renamed(owner):
            pieces = await hub.call(hub.store.read, KIND, full_name(owner, name))
        headers = {"Content-Disposition": f'attachment; filename="{name}.safetensors"'}
        return StreamingResponse(pieces, media_type="application/octet-stream", headers=headers)

    @routes.delete("/snapshots/{name}", status_code=204, responses=responses(404, 507))
    async def delete(name: Name, owner: Owner) -> None:
        with renamed(owner):
            if not await hub.call(hub.store.holds, KIND, full_name(owner, name)):
                raise NotFound(f"there is no snapshot {name}")
            await hub.call(hub.store.delete, KIND, full_name(owner, name))

    return routes


def _names(store: Store, owner: str) -> list[str]:
    return [name for name in store.names(KIND) if name.startswith(f"{owner}.")]


def _check_number(hub: Hub, owner: str) -> None:
    if len(_names(hub.store, owner)) >= hub.settings.snapshots_per_key:
        raise LimitReached(f"a key has at most {hub.settings.snapshots_per_key} snapshots")


def _all(store: Store, owner: str) -> list[Stored]:
    found = []
    for name in _names(store, owner):
        try:
            found.append(store.look(KIND, name))
        except (NotFound, StorageError):  # deleted meanwhile, or damaged
            continue
    return found


def _told(stored: Stored) -> SnapshotTold:
    made: dict[str, Any] = stored.about
    return SnapshotTold(
        name=stored.name.partition(".")[2], stream=made.get("stream"), frames=stored.frames, bytes=stored.bytes,
        created=int(stored.at),
    )  # fmt: skip
