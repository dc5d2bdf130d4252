"""Who a client is."""

import hashlib
import hmac
from collections.abc import Iterable, Mapping
from typing import Annotated

from fastapi import Depends, Request
from fastapi.security import HTTPBearer
from starlette.datastructures import Headers
from starlette.types import Scope

from infinitevl.server.faults import Unauthorized

EVERYBODY = "everybody"
PROTOCOL, BEARER = "infinitevl.v1", "bearer."


class Keys:
    """The API keys. Owners are named by a hash of their key; without keys all clients are one owner."""

    def __init__(self, keys: Iterable[str]) -> None:
        self._keys = [key.encode() for key in keys]

    def __bool__(self) -> bool:
        return bool(self._keys)

    def owner(self, given: str | None) -> str:
        """Whose key this is. Raises Unauthorized."""
        if not self._keys:
            return EVERYBODY
        key = (given or "").encode()
        if not sum([hmac.compare_digest(key, known) for known in self._keys]):  # all are compared, always
            raise Unauthorized("no API key: send Authorization: Bearer KEY" if given is None else "a wrong API key")
        return self._named(key)

    def owners(self) -> set[str]:
        """All that can come."""
        return {self._named(key) for key in self._keys} or {EVERYBODY}

    @staticmethod
    def _named(key: bytes) -> str:
        return hashlib.sha256(key).hexdigest()[:16]


def bearer(headers: Mapping[str, str]) -> str | None:
    """The key of an Authorization header."""
    scheme, _, key = headers.get("authorization", "").partition(" ")
    return key.strip() if scheme.lower() == "bearer" else None


def brought(scope: Scope) -> str | None:
    """The key of a request, or of a WebSocket: in its header, or, from a browser, in a protocol that it asks for."""
    if key := bearer(Headers(scope=scope)):
        return key
    protocols = scope.get("subprotocols", ())
    return next((given.removeprefix(BEARER) for given in protocols if given.startswith(BEARER)), None)


_described = HTTPBearer(auto_error=False, description="An API key; none where the server has none.")


async def _owner(request: Request, _: Annotated[object, Depends(_described)]) -> str:
    return request.app.state.keys.owner(brought(request.scope))


Owner = Annotated[str, Depends(_owner)]
