"""One replica: an engine and the server's app in a process that Ray Serve keeps alive."""

import logging
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from ray import serve
from ray.exceptions import RayActorError
from ray.serve.handle import DeploymentHandle
from starlette.types import ASGIApp, Receive, Scope, Send

from infinitevl.cluster.hub import SharedHub
from infinitevl.cluster.routing import stream_of
from infinitevl.engine.engine import Engine
from infinitevl.engine.store import Store
from infinitevl.engine.types import Budget
from infinitevl.errors import InfiniteVLError, NotFound
from infinitevl.model.loading import load
from infinitevl.server import lasting
from infinitevl.server.app import create_app
from infinitevl.server.faults import Unauthorized, answer
from infinitevl.server.keys import brought
from infinitevl.server.metrics import Metrics
from infinitevl.server.settings import Settings

log = logging.getLogger(__name__)
APP = DEPLOYMENT = "infinitevl"
TRY_AGAIN = 1013  # closes a WebSocket
PATIENCE = 30.0  # seconds for another replica to write a stream


@dataclass(frozen=True)
class Plan:
    """What all replicas have in common. store: where streams and snapshots lie, a folder or an address of fsspec."""

    model: str | None
    device: str | None
    dtype: str | None
    store: str
    budget: Budget
    settings: Settings


class Replica:
    """Its methods are called by other replicas and by the command, by way of a handle."""

    def __init__(self, plan: Plan) -> None:
        _quiet()
        lasting.share_heaps()
        self._scratch = TemporaryDirectory(prefix="infinitevl-")
        folder = Path(self._scratch.name if "://" in plan.store else plan.store)  # of uploads
        settings, metrics = replace(plan.settings, folder=folder), Metrics()
        model = load(plan.model, device=plan.device, dtype=plan.dtype)
        engine = Engine(model, plan.budget, Store(plan.store), metrics.observe, shared=True)
        self._hub = SharedHub(engine, settings, self._ask_others)
        self._app = create_app(engine, settings, metrics, self._hub)
        lasting.collect_often()

    def __serve_build_asgi_app__(self) -> "Adopting":
        return Adopting(self._app, self._hub)

    async def adopt(self, id: str) -> None:
        """Hold a stream; called on the replica that the router chooses for it."""
        await self._hub.adopt(id)

    async def let_go(self, id: str) -> None:
        await self._hub.let_go(id)

    async def held(self) -> list[str]:
        return list(self._hub.rooms)

    async def close(self) -> None:
        """Send all clients away, and write all streams. Raises StorageError where one could not be written."""
        await self._hub.close()
        if self._hub.unsaved:
            raise self._hub.unsaved

    async def _ask_others(self, id: str) -> None:
        """Have a stream let go of, by all that can be reached. Raises what keeps one of them from it."""
        try:
            told = await others().broadcast("let_go", id).results_async(timeout_s=PATIENCE, return_exceptions=True)
        except TimeoutError:
            told = []
        for each in told:
            if isinstance(each, InfiniteVLError):
                raise each
            if isinstance(each, Exception) and not isinstance(each, RayActorError):  # it is dead, and holds nothing
                log.warning("a replica could not be asked for a stream: %s", each)


def others() -> DeploymentHandle:
    """All replicas."""
    return serve.get_deployment_handle(DEPLOYMENT, APP)


def _quiet() -> None:
    """transformers' bars and reports say nothing here."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()


class Adopting:
    """ASGI: before a request for a stream is answered, the stream is held here. Who has no key moves none."""

    def __init__(self, app: ASGIApp, hub: SharedHub) -> None:
        self._app, self._hub = app, hub

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "lifespan" and (id := stream_of(scope["path"])):
            try:
                self._hub.keys.owner(brought(scope))
                await self._hub.adopt(id)
            except (Unauthorized, NotFound):  # the app says so, to those who may know
                pass
            except InfiniteVLError as error:
                if scope["type"] == "websocket":
                    return await send({"type": "websocket.close", "code": TRY_AGAIN})
                return await answer(error)(scope, receive, send)
        return await self._app(scope, receive, send)
