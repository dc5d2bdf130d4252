"""Server-sent events, and answers whose client may go away."""

import asyncio
import json
from collections.abc import AsyncGenerator, Callable
from typing import Any

from fastapi import Request
from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from infinitevl.engine.types import Answered
from infinitevl.server.writing import Writing

DONE = "data: [DONE]\n\n"
Lines = AsyncGenerator[str, None]


def line(event: dict[str, Any]) -> str:
    return f"data: {json.dumps(event, ensure_ascii=False)}\n\n"


class EventStream(StreamingResponse):
    """Lines as they come, and a comment where none came for `beat` seconds. `over` is called at the end, any end."""

    media_type = "text/event-stream"

    def __init__(self, lines: Lines, beat: float, over: Callable[[], None]) -> None:
        self._lines, self._over = beating(lines, beat), over
        super().__init__(self._lines, headers={"X-Accel-Buffering": "no"})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._over()
            await self._lines.aclose()


async def beating(lines: Lines, seconds: float) -> Lines:
    """The lines, and heartbeats between them."""
    following: asyncio.Future[str | None] | None = None
    try:
        while True:
            following = following or asyncio.ensure_future(anext(lines, None))
            done, _ = await asyncio.wait({following}, timeout=seconds)
            if not done:
                yield ": \n\n"
                continue
            text, following = following.result(), None
            if text is None:
                return
            yield text
    finally:
        if following:
            following.cancel()


async def whole(request: Request, writing: Writing) -> Answered:
    """The end of an answer, which is cancelled when the client goes away."""
    end, gone = asyncio.ensure_future(writing.end()), asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait({end, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not end.done():
            writing.cancel()
        return await end
    finally:
        gone.cancel()
        end.cancel()


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
