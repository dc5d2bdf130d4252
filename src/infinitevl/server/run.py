"""An engine, an app and uvicorn around them, until a signal."""

import socket
from functools import partial

import uvicorn

from infinitevl.engine.engine import Engine
from infinitevl.engine.store import Store
from infinitevl.engine.types import Budget
from infinitevl.model.modeling import InfiniteVLForConditionalGeneration
from infinitevl.server.app import create_app
from infinitevl.server.hub import Hub
from infinitevl.server.metrics import Metrics
from infinitevl.server.parting import Parting
from infinitevl.server.patience import Patient
from infinitevl.server.settings import Settings

GRACE = 10  # seconds for clients to take the end of what they get


class Running:
    """A server that is about to run."""

    def __init__(self, model: InfiniteVLForConditionalGeneration, budget: Budget, settings: Settings) -> None:
        metrics = Metrics()
        engine = Engine(model, budget, Store(str(settings.folder)), metrics.observe)
        self.app = create_app(engine, settings, metrics)
        self.uvicorn = Server(
            self.app.state.hub,
            uvicorn.Config(
                self.app, log_level="warning", access_log=False, loop="asyncio", lifespan="on",
                http=partial(Patient, settings.head_timeout), ws=Parting,  # pyright: ignore
                ws_max_size=settings.max_body, ws_per_message_deflate=False, server_header=False,
                timeout_graceful_shutdown=GRACE, proxy_headers=False,
            ),
        )  # fmt: skip

    def serve(self, listener: socket.socket, line: str) -> None:
        """Until a signal, or `uvicorn.should_exit`. line: printed when it is up. Raises StorageError where a stream
        could not be parked."""
        self.uvicorn.line = line
        self.uvicorn.run(sockets=[listener])
        if error := self.app.state.hub.unsaved:
            raise error


class Server(uvicorn.Server):
    """uvicorn, which tells the app that it goes down before it waits for the clients."""

    line = ""

    def __init__(self, hub: Hub, config: uvicorn.Config) -> None:
        super().__init__(config)
        self._hub = hub

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        print(self.line, flush=True)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._hub.halt()
        await super().shutdown(sockets)
