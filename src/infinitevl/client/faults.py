"""What goes wrong between a client and its server, as one exception."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from socket import gaierror

import httpx
from websockets.exceptions import ConnectionClosed, InvalidStatus, WebSocketException

from infinitevl.errors import InfiniteVLError

CLOSED = {
    1009: (413, "too_large_error", "a message is above the server's limit"),
    1012: (503, "overloaded_error", "the server went down"),
    1013: (None, "connection_error", "the server hung up: its messages were not read"),
    4401: (401, "authentication_error", "no API key, or a wrong one"),
    4404: (404, "not_found_error", "there is no such stream, or it was deleted"),
}
LOST = "connection_error"


class ClientError(InfiniteVLError):
    """The server refused, or could not be reached.

    status: of HTTP, None where nothing was answered; type: as docs/protocol.md names it, "connection_error" where the
    server is not reached or the connection broke, "protocol_error" for an answer that is none of this protocol;
    message: one line; retry_after: seconds after which the server asks to try again.
    """

    def __init__(
        self, message: str, status: int | None = None, type: str = LOST, retry_after: float | None = None
    ) -> None:
        self.message, self.status, self.type, self.retry_after = " ".join(message.split()), status, type, retry_after
        super().__init__(self.message)


def refused(status: int, content: bytes, headers: Mapping[str, str]) -> ClientError:
    """The error of a response that is not 2xx; of a proxy's too, which does not speak the protocol."""
    message, kind = f"the server answered with status {status}", "protocol_error"
    try:
        told = json.loads(content)["error"]
        message, kind = str(told["message"]), str(told["type"])
    except (ValueError, KeyError, TypeError):
        pass
    after = headers.get("retry-after", "")
    return ClientError(message, status, kind, float(after) if after.isdecimal() else None)


def closed(error: ConnectionClosed) -> ClientError:
    """Why a live connection ended."""
    if error.rcvd is None:
        return ClientError("the connection to the server was lost")
    if not error.rcvd_then_sent:
        return ClientError("the connection is closed")
    code, reason = error.rcvd.code, error.rcvd.reason
    status, kind, message = CLOSED.get(code, (None, LOST, f"the server closed the connection: {code} {reason}"))
    return ClientError(message, status, kind)


def unexpected(what: object) -> ClientError:
    """Something that this protocol does not have."""
    return ClientError(f"the server sent what is no answer of this protocol: {what!s:.200}", None, "protocol_error")


@contextmanager
def reaching(url: str) -> Iterator[None]:
    """Whatever the network and its libraries raise inside becomes a ClientError."""
    try:
        yield
    except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError) as error:
        raise ClientError(f"{url}: {_why(error)}") from None
    except ConnectionClosed as error:
        raise closed(error) from None
    except InvalidStatus as error:
        raise refused(error.response.status_code, bytes(error.response.body or b""), error.response.headers) from None
    except (OSError, WebSocketException) as error:
        raise ClientError(f"{url}: {_why(error)}") from None


def _why(error: Exception) -> str:
    if isinstance(error, (httpx.ConnectError, ConnectionRefusedError, gaierror)):
        return "no server can be reached there"
    if isinstance(error, (TimeoutError, httpx.TimeoutException)):
        return "no answer in time"
    return str(error) or type(error).__name__
