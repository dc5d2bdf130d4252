"""HTTP without surprises: to the address that was checked, and no redirect that leads elsewhere."""

import base64
import http.client
import socket
import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING
from urllib.parse import unquote, urljoin

from infinitevl.errors import VideoError

if TYPE_CHECKING:
    from infinitevl.server.allowed import Address

REDIRECTS = (301, 302, 303, 307, 308)
MOST_REDIRECTS = 5


@contextmanager
def fetched(
    address: "Address", allowed: Callable[[str], "Address"], reach: Callable[["Address"], str], timeout: float
) -> Iterator[http.client.HTTPResponse]:
    """The body of an address, as it comes. Every redirect is looked up in the list again. Raises VideoError."""
    for _ in range(MOST_REDIRECTS):
        connection, response = _get(address, reach(address), timeout)
        try:
            if response.status not in REDIRECTS:
                if response.status != 200:
                    raise VideoError(f"{address.host}: answers {response.status} {response.reason[:80]}")
                yield response
                return
        finally:
            response.close()
            connection.close()
        address = allowed(urljoin(address.parts.geturl(), response.headers.get("Location", "")))
    raise VideoError(f"{address.host}: too many redirects")


def _get(address: "Address", ip: str, timeout: float) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
    parts = address.parts
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    try:
        connection = http.client.HTTPConnection(address.host, address.port, timeout=timeout)
        connection.sock = connected(ip, address, timeout)
        connection.request("GET", target, headers=_headers(address))
        return connection, connection.getresponse()
    except (OSError, http.client.HTTPException) as error:
        raise VideoError(f"{address.host}: {str(error)[:200] or type(error).__name__}") from None


def connected(ip: str, address: "Address", timeout: float) -> socket.socket:
    """A connection to an address at this IP address, with TLS where its scheme says so."""
    plain = socket.create_connection((ip, address.port), timeout)
    if address.parts.scheme not in ("https", "rtsps"):
        return plain
    return ssl.create_default_context().wrap_socket(plain, server_hostname=address.host)


def _headers(address: "Address") -> dict[str, str]:
    parts = address.parts
    headers = {"User-Agent": "infinitevl", "Host": parts.netloc.rpartition("@")[2]}
    if parts.username:
        who = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        headers["Authorization"] = f"Basic {base64.b64encode(who.encode()).decode()}"
    return headers
