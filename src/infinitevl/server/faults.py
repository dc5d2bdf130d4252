"""Every error in OpenAI's form, with the status that the protocol gives it."""

from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from infinitevl.errors import Conflict, InfiniteVLError, NotFound, Overloaded, StorageError, TooLarge


class Unauthorized(InfiniteVLError):
    """No key, or a wrong one."""


class NotAllowed(InfiniteVLError):
    """It is not for this client: a source outside of what may be opened, a page of another site."""


class LimitReached(InfiniteVLError):
    """The key has as much as it may have."""


class TooSlow(InfiniteVLError):
    """A body that does not come."""


STATUSES: dict[type[Exception], int] = {
    Unauthorized: 401, NotAllowed: 403, NotFound: 404, TooSlow: 408, Conflict: 409, TooLarge: 413, LimitReached: 429,
    Overloaded: 503, StorageError: 507, InfiniteVLError: 400, RequestValidationError: 422, ValidationError: 422,
    ClientDisconnect: 400,
}  # fmt: skip
TYPES = {
    400: "invalid_request", 401: "authentication", 403: "permission", 404: "not_found", 405: "invalid_request",
    408: "timeout", 409: "conflict", 413: "too_large", 422: "invalid_request", 429: "rate_limit", 500: "server",
    503: "overloaded", 507: "storage",
}  # fmt: skip
FAULT = "#/components/schemas/FaultBody"
HEADERS = {401: {"WWW-Authenticate": "Bearer"}, 429: {"Retry-After": "1"}, 503: {"Retry-After": "5"}}


class Fault(BaseModel):
    message: str
    type: str
    code: str


class FaultBody(BaseModel):
    """An error, in OpenAI's form."""

    error: Fault


def responses(*statuses: int, json: bool = True) -> dict[int | str, dict[str, Any]]:
    """What OpenAPI says of these errors, and of those that every path can end with. json: the path answers in JSON."""
    every = {400, 401, 403, 408, 413, 422, 500, 503, *statuses}
    form = {"model": FaultBody} if json else {"content": {"application/json": {"schema": {"$ref": FAULT}}}}
    return {status: {"description": f"{TYPES[status]}_error", **form} for status in sorted(every)}


def status_of(error: Exception) -> int:
    return next((STATUSES[kind] for kind in type(error).__mro__ if kind in STATUSES), 500)


def line_of(error: Exception) -> str:
    """What a client is told: one line, without what it sent."""
    if isinstance(error, (RequestValidationError, ValidationError)):
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"] if part not in ("body", "query", "path"))
        return f"{place}: {first['msg']}" if place else str(first["msg"])
    return " ".join(str(error).split()) if isinstance(error, InfiniteVLError) else "a fault of the server"


def body(message: str, status: int) -> dict[str, Any]:
    kind = TYPES.get(status, "invalid_request")
    return {"error": {"message": message, "type": f"{kind}_error", "code": kind}}


def fault_body(error: Exception) -> dict[str, Any]:
    """The documented form of an error."""
    return body(line_of(error), status_of(error))


def answer(error: Exception) -> JSONResponse:
    """The documented response to an error."""
    status = status_of(error)
    return JSONResponse(fault_body(error), status, HEADERS.get(status))


def install(app: FastAPI) -> None:
    """Give every error of the app its documented response. What nobody thought of is 500, and uvicorn logs it."""

    async def told(_: Request, error: Exception) -> JSONResponse:
        return answer(error)

    async def http(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        return JSONResponse(body(str(error.detail), error.status_code), error.status_code, error.headers)

    for kind in (InfiniteVLError, RequestValidationError, ClientDisconnect, Exception):
        app.add_exception_handler(kind, told)
    app.add_exception_handler(HTTPException, http)
