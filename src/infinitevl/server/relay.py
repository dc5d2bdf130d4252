"""RTSP through this process: FFmpeg talks to an address that was checked, and is not sent elsewhere."""

import re
import socket
import threading
from contextlib import suppress
from typing import TYPE_CHECKING

from infinitevl.errors import VideoError
from infinitevl.server.fetching import connected

if TYPE_CHECKING:
    from infinitevl.server.allowed import Address

REDIRECT = re.compile(rb"RTSP/\d\.\d 3\d\d")
LONGEST = 12  # bytes of what REDIRECT finds
PIECE = 65_536


class Relay:
    """A port of this machine, for one connection, behind which is `address` at `ip`. `url` is what FFmpeg opens,
    `name` the same without a password.

    FFmpeg follows redirects of RTSP: a server that sends one is hung up on.
    """

    def __init__(self, address: "Address", ip: str, timeout: float) -> None:
        self._timeout = timeout
        try:
            self._there = connected(ip, address, timeout)
        except OSError as error:
            raise VideoError(f"{address.host}: cannot be reached ({error.strerror or type(error).__name__})") from None
        self._there.settimeout(None)
        self._port = socket.create_server(("127.0.0.1", 0))
        self._here: socket.socket | None = None
        who, at, _ = address.parts.netloc.rpartition("@")
        place = f"127.0.0.1:{self._port.getsockname()[1]}"
        self.name = address.parts._replace(scheme="rtsp", netloc=place).geturl()
        self.url = address.parts._replace(scheme="rtsp", netloc=f"{who}{at}{place}").geturl()

    def __enter__(self) -> "Relay":
        threading.Thread(target=self._serve, name="infinitevl relay", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        for each in (self._port, self._there, self._here):
            if each:
                with suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)
                each.close()

    def _serve(self) -> None:
        with suppress(OSError):
            self._port.settimeout(self._timeout)
            self._here, _ = self._port.accept()
            self._port.close()
            threading.Thread(target=self._carry, args=(self._here, self._there), daemon=True).start()
            self._carry(self._there, self._here, REDIRECT)

    def _carry(self, source: socket.socket, sink: socket.socket, forbidden: re.Pattern[bytes] | None = None) -> None:
        """Until one of both hangs up; then the other one is hung up on too."""
        before = b""
        with suppress(OSError):
            while piece := source.recv(PIECE):
                before = before[-LONGEST:] + piece
                if forbidden and forbidden.search(before):
                    break
                sink.sendall(piece)
        for each in (source, sink):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
