"""Routes of questions: asked once, and standing."""

import time
from functools import partial
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from infinitevl.errors import NotFound, StorageError, TooLarge
from infinitevl.server.bodies import AnswerList, AnswerTold, QuestionGiven, WatchGiven, WatchList, WatchTold
from infinitevl.server.faults import LimitReached, responses
from infinitevl.server.hub import Hub
from infinitevl.server.keys import Owner
from infinitevl.server.room import Watch
from infinitevl.server.sse import DONE, EventStream, Lines, line, whole
from infinitevl.server.streams import EVENTS
from infinitevl.server.writing import Writing


def check_length(hub: Hub, tokens: int) -> None:
    if tokens > hub.settings.max_tokens:
        raise TooLarge(f"max_tokens is at most {hub.settings.max_tokens} here")


def router(hub: Hub) -> APIRouter:
    routes = APIRouter(prefix="/v1/streams/{id}", tags=["questions"])

    @routes.post(
        "/ask", response_model=AnswerTold, responses={**responses(404, 409, 429), 200: {"content": EVENTS}},
    )  # fmt: skip
    async def ask(id: str, given: QuestionGiven, owner: Owner, request: Request) -> Any:
        """A question about what is in memory now. With `stream`, server-sent events."""
        room, created = hub.room(id, owner), time.time()
        check_length(hub, given.max_tokens)
        writing = await hub.ask(room, given.question, given.asking())
        told = partial(hub.told, writing, room, given.question, created)
        if given.stream:
            return EventStream(_lines(writing, told), hub.settings.heartbeat, writing.cancel)
        await whole(request, writing)
        return told()

    @routes.get("/answers", response_model=AnswerList, responses=responses(404))
    async def answers(id: str, owner: Owner) -> dict[str, Any]:
        """The last 100, newest last."""
        return {"object": "list", "data": list(hub.room(id, owner).answers)}

    @routes.get("/watches", response_model=WatchList, responses=responses(404))
    async def watches(id: str, owner: Owner) -> dict[str, Any]:
        return {"object": "list", "data": [watch.told for watch in hub.room(id, owner).watches.values()]}

    @routes.post("/watches", status_code=201, response_model=WatchTold, responses=responses(404, 429, 507))
    async def watch(id: str, given: WatchGiven, owner: Owner) -> dict[str, Any]:
        """A question that is asked again and again, and told of when its answer changes."""
        room = hub.room(id, owner)
        check_length(hub, given.max_tokens)
        if len(room.watches) >= hub.settings.watches:
            raise LimitReached(f"a stream has at most {hub.settings.watches} standing questions")
        made = Watch(given.question, given.every, given.max_tokens)
        room.watches[made.id] = made
        try:
            await hub.keep(room, now=True)
        except StorageError:  # what a restart would not know of is not begun
            room.watches.pop(made.id, None)
            raise
        return made.told

    @routes.delete("/watches/{watch}", status_code=204, responses=responses(404, 507))
    async def unwatch(id: str, watch: str, owner: Owner) -> Response:
        room = hub.room(id, owner)
        if room.watches.pop(watch, None) is None:
            raise NotFound(f"there is no standing question {watch[:80]}")
        await hub.keep(room, now=True)
        return Response(status_code=204)

    return routes


async def _lines(writing: Writing, told: partial[dict[str, Any]]) -> Lines:
    async for piece in writing.pieces():
        yield line({"delta": piece})
    yield line({"answer": told()})
    yield DONE
