"""What stands before every request: bounds of bodies and of each key's requests, foreign pages, a server that goes
down, safe headers."""

import asyncio
from collections import Counter
from collections.abc import Callable
from ipaddress import ip_address
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from infinitevl.errors import InfiniteVLError, Overloaded, TooLarge
from infinitevl.server.faults import LimitReached, NotAllowed, TooSlow, Unauthorized, answer, line_of, status_of
from infinitevl.server.keys import Keys, brought
from infinitevl.server.settings import Settings

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' blob: data:; "
    "media-src 'self' blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
}
UPLOAD, NOBODY = "/video", ""
STARTS = ("http.response.start", "websocket.http.response.start")


class Guard:
    """ASGI middleware. `stopping` tells whether the server goes down; `count` is told the status of every response."""

    def __init__(
        self, app: ASGIApp, settings: Settings, keys: Keys, stopping: Callable[[], bool], count: Callable[[int], None]
    ) -> None:
        self.app, self.settings, self.keys, self.stopping, self.count = app, settings, keys, stopping, count
        self._going: Counter[str] = Counter()  # requests and connections of each owner

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return await self.app(scope, receive, send)
        try:
            owner = self._check(scope)
        except InfiniteVLError as error:
            return await self._refuse(error, scope, receive, send)
        self._going[owner] += 1
        try:
            await self._pass(scope, receive, send)
        finally:
            self._going[owner] -= 1

    async def _pass(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            return await self.app(scope, receive, send)
        bounded = Body(receive, self._limit(scope), self.settings.body_timeout)
        return await self.app(scope, bounded, self._dressed(scope, send))

    def _check(self, scope: Scope) -> str:
        """Whose request it is, before any of its body is read; nobody's where it needs no key."""
        headers = Headers(scope=scope)
        if not self.settings.keys:
            _check_same_site(headers)
        if self.stopping() and scope["path"].startswith("/v1"):
            raise Overloaded("the server is going down")
        owner = self._owner(scope) if scope["path"].startswith("/v1") else NOBODY
        if owner != NOBODY and self._going[owner] >= (limit := self.settings.requests_per_key):
            raise LimitReached(f"a key has at most {limit} requests and connections at once")
        length = headers.get("content-length", "")
        if length.isdecimal() and int(length[:20]) > self._limit(scope):
            raise _too_large(self._limit(scope))
        return owner

    def _owner(self, scope: Scope) -> str:
        """Raises Unauthorized; not for a WebSocket, which is told so when it is open: browsers hear no sooner."""
        try:
            return self.keys.owner(brought(scope))
        except Unauthorized:
            if scope["type"] == "http":
                raise
            return NOBODY

    def _limit(self, scope: Scope) -> int:
        upload = scope["type"] == "http" and scope["method"] == "POST" and scope["path"].endswith(UPLOAD)
        return self.settings.max_upload if upload else self.settings.max_body

    async def _refuse(self, error: InfiniteVLError, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket" and "websocket.http.response" not in scope.get("extensions", {}):
            return await send({"type": "websocket.close", "code": 1012 if self.stopping() else 1008})
        return await answer(error)(scope, receive, self._dressed(scope, send))

    def _dressed(self, scope: Scope, send: Send) -> Send:
        """Responses with the headers that keep a browser safe."""

        async def dressed(message: Message) -> None:
            if message["type"] in STARTS:
                self.count(message["status"])
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
                api = scope["path"].startswith("/v1")
                headers.setdefault("Cache-Control", "no-store" if api else "no-cache")  # no-cache: ask again each time
            await send(message)

        return dressed


class Body:
    """`receive` of a request whose body is counted and must keep coming."""

    def __init__(self, receive: Receive, limit: int, timeout: float) -> None:
        self._receive, self._limit, self._timeout = receive, limit, timeout
        self._taken, self._more = 0, True

    async def __call__(self) -> Message:
        if not self._more:
            return await self._receive()  # waits for the client to go
        try:
            message = await asyncio.wait_for(self._receive(), self._timeout)
        except TimeoutError:
            raise _http(TooSlow(f"no more of the body came for {self._timeout:g} s")) from None
        self._taken += len(message.get("body", b""))
        self._more = message.get("more_body", False)
        if self._taken > self._limit:
            raise _http(_too_large(self._limit))
        return message


def _http(error: InfiniteVLError) -> HTTPException:
    """FastAPI lets only these pass while it reads a body."""
    return HTTPException(status_of(error), line_of(error))


def _too_large(limit: int) -> TooLarge:
    return TooLarge(f"the body is larger than the limit of {limit} bytes")


def _check_same_site(headers: Headers) -> None:
    """Without keys only this machine is served: not names that lead here, nor pages of other sites in its browser."""
    host = headers.get("host", "")
    origin = headers.get("origin")
    try:
        name, site = urlsplit(f"//{host}").hostname, urlsplit(origin or f"//{host}").netloc
    except ValueError:  # brackets without an address in them
        name = site = None
    if not is_loopback(name or ""):
        raise NotAllowed("without API keys only this machine's own address is served")
    if site is None or site.lower() != host.lower():
        raise NotAllowed("a page of another site")


def is_loopback(host: str) -> bool:
    """Whether a name or an address is this machine's own."""
    try:
        return host.lower() == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False
