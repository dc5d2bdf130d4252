"""Routes as OpenAI has them: models and chat completions."""

import secrets
import time
from typing import Any

from fastapi import APIRouter, Request

from infinitevl.engine.types import Answered
from infinitevl.errors import InfiniteVLError, NotFound, Overloaded
from infinitevl.server.chat_bodies import ChatGiven, ChatTold, ModelList
from infinitevl.server.chat_media import conversation
from infinitevl.server.faults import body, fault_body, responses
from infinitevl.server.hub import Hub
from infinitevl.server.keys import Owner
from infinitevl.server.questions import check_length
from infinitevl.server.room import usage_of
from infinitevl.server.sse import DONE, EventStream, Lines, line, whole
from infinitevl.server.streams import EVENTS
from infinitevl.server.writing import Writing

STARTED = int(time.time())


def router(hub: Hub) -> APIRouter:
    routes = APIRouter(prefix="/v1", tags=["openai"])

    @routes.get("/models", response_model=ModelList, responses=responses())
    async def models(owner: Owner) -> dict[str, Any]:
        """The one model that is served."""
        served = {"id": hub.settings.model, "object": "model", "created": STARTED, "owned_by": "infinitevl"}
        return {"object": "list", "data": [served]}

    @routes.post(
        "/chat/completions", response_model=ChatTold, responses={**responses(404, 429), 200: {"content": EVENTS}}
    )
    async def complete(given: ChatGiven, owner: Owner, request: Request) -> Any:
        """Answer a conversation of text, pictures and videos. With `stream`, server-sent events."""
        if given.model != hub.settings.model:
            raise NotFound(f"there is no model {given.model[:80]}: it is {hub.settings.model}")
        check_length(hub, given.limit)
        hub.check_questions(owner)
        messages = await hub.decode(conversation, given.messages, hub.allowed, hub.settings.source_timeout)
        writing = await hub.write(owner, lambda told: hub.engine.chat(messages, given.asking(), told))
        chat = Chat(hub.settings.model, writing)
        if given.stream:
            wanted = bool(given.stream_options and given.stream_options.include_usage)
            return EventStream(chat.lines(wanted), hub.settings.heartbeat, writing.cancel)
        return chat.whole(await whole(request, writing))

    return routes


class Chat:
    """One completion, in OpenAI's form."""

    def __init__(self, model: str, writing: Writing) -> None:
        self._writing = writing
        self._head = {"id": f"chatcmpl-{secrets.token_hex(12)}", "created": int(time.time()), "model": model}

    def whole(self, answered: Answered) -> dict[str, Any]:
        if error := failed(answered):
            raise error
        message = {"role": "assistant", "content": answered.text}
        choice = {"index": 0, "message": message, "finish_reason": answered.reason, "logprobs": None}
        return {**self._head, "object": "chat.completion", "choices": [choice], "usage": usage_of(answered)}

    async def lines(self, usage: bool) -> Lines:
        """Server-sent events; with `usage`, the last one tells it."""
        yield self._chunk({"role": "assistant", "content": ""}, None)
        async for piece in self._writing.pieces():
            yield self._chunk({"content": piece}, None)
        answered = self._writing.answered
        assert answered is not None
        if error := failed(answered):
            yield line(fault_body(error) if isinstance(error, InfiniteVLError) else body(str(error), 500))
            return
        yield self._chunk({}, answered.reason)
        if usage:
            yield line({**self._head, "object": "chat.completion.chunk", "choices": [], "usage": usage_of(answered)})
        yield DONE

    def _chunk(self, delta: dict[str, str], reason: str | None) -> str:
        choice = {"index": 0, "delta": delta, "finish_reason": reason, "logprobs": None}
        return line({**self._head, "object": "chat.completion.chunk", "choices": [choice]})


def failed(answered: Answered) -> Exception | None:
    """What kept an answer from its end."""
    if answered.reason == "cancelled":
        return Overloaded("the answer was cancelled: the server is going down")
    return RuntimeError("the model failed") if answered.reason == "error" else None
