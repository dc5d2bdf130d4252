"""Replicas that share a store, without Ray between them: two hubs in one event loop."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, cast

import pytest
from engine_kit import alone, picture
from source_kit import film

from infinitevl.cluster.hub import SharedHub
from infinitevl.cluster.replica import Adopting
from infinitevl.engine.engine import Engine
from infinitevl.engine.store import Store
from infinitevl.engine.types import Asking, Budget
from infinitevl.errors import NotFound, StorageError
from infinitevl.model.modeling import InfiniteVLForConditionalGeneration as Model
from infinitevl.server.keys import EVERYBODY, Keys
from infinitevl.server.outbox import Finished, Outbox
from infinitevl.server.room import Source
from infinitevl.server.settings import Settings

RARELY = 1000.0  # seconds between saves


class Pair:
    """Two replicas; `cut` is a network that has failed."""

    def __init__(self, model: Model, folder: Path, save_every: float) -> None:
        self.cut = False
        self.store = Store(str(folder / "store"))
        self.hubs = [self._hub(model, folder / "store", save_every) for _ in range(2)]

    def _hub(self, model: Model, folder: Path, save_every: float) -> SharedHub:
        engine = Engine(model, Budget(slots=2, save_every=save_every), self.store, shared=True)

        async def ask(id: str) -> None:
            if not self.cut:
                for hub in self.hubs:
                    await hub.let_go(id)

        return SharedHub(engine, Settings("tiny", folder), ask)


@asynccontextmanager
async def pair(model: Model, folder: Path, save_every: float = RARELY) -> AsyncIterator[Pair]:
    made = Pair(model, folder, save_every)
    for hub in made.hubs:
        await hub.start()
    try:
        yield made
    finally:
        for hub in made.hubs:
            await hub.close()


def awaited(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Run a test that is a coroutine."""

    def run(model: Model, tmp_path: Path) -> None:
        asyncio.run(asyncio.wait_for(test(model, tmp_path), 120))

    run.__name__, run.__doc__ = test.__name__, test.__doc__
    return run


async def opened(hub: SharedHub, owner: str = EVERYBODY, name: str | None = None) -> str:
    return (await hub.open(owner, name, partial(hub.engine.open, fps=None))).id


async def see(hub: SharedHub, id: str, numbers: range) -> None:
    for number in numbers:
        told = asyncio.get_running_loop().create_future()
        await hub.call(hub.push, hub.rooms[id], picture(number), number / 2, told.set_result, 60.0)
        assert (await told)["result"] == "seen"


async def ask(hub: SharedHub, id: str) -> str:
    return (await (await hub.ask(hub.rooms[id], "What is it?", Asking(max_tokens=12))).end()).text


async def eventually(condition: Callable[[], Any]) -> None:
    while not condition():
        await asyncio.sleep(0.01)


@awaited
async def test_a_stream_moves_with_all_that_it_has_seen(model: Model, tmp_path: Path):
    async with pair(model, tmp_path) as both:
        first, second = both.hubs
        id, reader = await opened(first, name="gate"), Outbox()
        await see(first, id, range(3))
        await ask(first, id)
        first.rooms[id].listeners.add(reader)
        await asyncio.gather(second.adopt(id), second.adopt(id))
        assert id not in first.rooms and id not in first.engine.streams()
        with pytest.raises(Finished) as sent_away:
            await reader.take()
        assert sent_away.value.code == 1012
        assert second.rooms[id].name == "gate" and len(second.rooms[id].answers) == 1
        await see(second, id, range(3, 5))
        assert await ask(second, id) == alone(model, [picture(i) for i in range(5)])
        await first.adopt(id)  # and back
        assert await ask(first, id) == alone(model, [picture(i) for i in range(5)]) and not second.rooms


@awaited
async def test_one_that_cannot_be_reached_lets_go_by_itself(model: Model, tmp_path: Path):
    """The other goes on from the last save; what the first one sees from there on is lost, and it does not write."""
    async with pair(model, tmp_path, save_every=0.2) as both:
        first, second = both.hubs
        id, quiet = await opened(first), await opened(first)
        await see(first, id, range(2))
        await eventually(lambda: (saved := first.engine.look(id).saved) and saved[0] == 2)
        both.cut = True
        await second.adopt(id)
        await second.adopt(quiet)
        await see(first, id, range(7, 8))
        await eventually(lambda: not first.rooms)
        assert not first.engine.streams()
        await see(second, id, range(2, 3))
        await eventually(lambda: both.store.look("streams", id).frames == 3)
        assert await ask(second, id) == alone(model, [picture(i) for i in range(3)])


@awaited
async def test_all_streams_are_listed_everywhere(model: Model, tmp_path: Path):
    async with pair(model, tmp_path) as both:
        first, second = both.hubs
        mine, theirs = await opened(first, name="mine"), await opened(second, name="theirs")
        await opened(first, owner="somebody else")
        await see(second, theirs, range(2))
        await second.let_go(theirs)
        (tmp_path / "store" / "streams" / "broken.safetensors").write_bytes(b"nothing")
        here, there = [{view["name"]: view for view in await hub.views(EVERYBODY)} for hub in (first, second)]
        assert here.keys() == there.keys() == {"mine", "theirs"}
        assert here["theirs"]["id"] == theirs and here["theirs"]["place"] == "disk"
        assert here["theirs"]["stats"]["frames"] == 2 and here["theirs"]["saved"]["frames"] == 2
        assert here["mine"]["id"] == mine and set(here["mine"]) == set(here["theirs"])


@awaited
async def test_what_cannot_be_written_is_not_taken(model: Model, tmp_path: Path):
    async with pair(model, tmp_path) as both:
        first, second = both.hubs
        id = await opened(first)
        await see(first, id, range(2))
        put, first.engine.store.put = first.engine.store.put, full  # type: ignore[union-attr, method-assign]
        with pytest.raises(StorageError, match="full"):
            await second.adopt(id)
        first.engine.store.put = put  # type: ignore[union-attr, method-assign]
        assert id in first.rooms and not second.rooms
        assert await ask(first, id) == alone(model, [picture(i) for i in range(2)])
        for unknown in ("stream-0", "a/b"):
            with pytest.raises(NotFound):
                await second.adopt(unknown)


def full(*_: object) -> None:
    raise StorageError("the disk is full")


@awaited
async def test_a_source_goes_on_where_its_stream_goes(model: Model, tmp_path: Path):
    async with pair(model, tmp_path) as both:
        first, second = both.hubs
        id = await opened(first)
        first.watch(first.rooms[id], Source("rtsp://nowhere.invalid/1", status="playing"))
        await first.let_go(id)
        await second.adopt(id)
        assert second.rooms[id].source and second.rooms[id].source.url == "rtsp://nowhere.invalid/1"
        assert second.rooms[id].source.status == "failed"  # it is not allowed here


@awaited
async def test_an_upload_is_watched_to_its_end_on_the_other_one(model: Model, tmp_path: Path):
    async with pair(model, tmp_path) as both:
        first, second = both.hubs
        id = await opened(first)
        (first.settings.uploads / f"{id}-0.video").write_bytes(film(16, 4))
        first.watch(first.rooms[id], Source("upload", realtime=True, file=f"{id}-0.video"))
        await eventually(lambda: first.engine.look(id).frames > 3)
        await second.adopt(id)
        await eventually(lambda: second.rooms[id].source.status == "ended")  # type: ignore[union-attr]
        await eventually(lambda: second.engine.look(id).frames + second.engine.look(id).dropped == 16)
        assert not list(second.settings.uploads.iterdir())


@awaited
async def test_who_has_no_key_moves_no_stream(model: Model, tmp_path: Path):
    """The app answers all three; only the request with a key has the stream held here before."""
    answered: list[bool] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        answered.append(id in there.rooms)

    async with pair(model, tmp_path) as two:
        here, there = two.hubs
        there.keys = Keys(["key-of-the-first"])
        id = await opened(here)
        adopting = Adopting(app, there)
        keys = (b"Bearer wrong-key", b"Bearer key-of-the-first")
        for headers in ([], *([(b"authorization", key)] for key in keys)):
            for kind in ("http", "websocket"):
                scope = {"type": kind, "path": f"/v1/streams/{id}", "headers": headers, "subprotocols": []}
                await adopting(scope, cast(Any, None), cast(Any, None))
        assert answered == [False] * 4 + [True] * 2 and id not in here.rooms
