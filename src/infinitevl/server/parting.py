"""WebSockets that part in order when the server goes down."""

from typing import Any

from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from infinitevl.server.live import PARTING


class Parting(WebSocketsSansIOProtocol):
    """Leaves it to the app to close what is open, and waits until the client has answered that, for PARTING seconds.

    uvicorn would hang up as soon as it has said why, and a client that is just sending would not get to read it.
    """

    def __init__(self, *given: Any, **options: Any) -> None:
        super().__init__(*given, **options)
        self.close_timeout = PARTING

    def shutdown(self) -> None:
        if not self.handshake_complete:
            super().shutdown()
