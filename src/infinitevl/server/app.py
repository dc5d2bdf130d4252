"""The whole server as one ASGI app."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version
from pathlib import Path

from fastapi import FastAPI
from fastapi.responses import JSONResponse, Response
from fastapi.staticfiles import StaticFiles
from prometheus_client import CONTENT_TYPE_LATEST

from infinitevl.engine.engine import Engine
from infinitevl.server import chat, faults, live, questions, snapshots, streams
from infinitevl.server.bodies import Health, Info
from infinitevl.server.guard import Guard
from infinitevl.server.hub import Hub
from infinitevl.server.keys import Owner
from infinitevl.server.metrics import Metrics
from infinitevl.server.settings import PROTOCOL, Settings

PAGE = Path(__file__).parent / "page"


def create_app(engine: Engine, settings: Settings, metrics: Metrics | None = None, hub: Hub | None = None) -> FastAPI:
    """The protocol over an engine, which the app closes when it ends. `app.state.hub.halt()` begins the end early.

    metrics: what the engine's `observe` tells; hub: another one than the plain one.
    """
    hub, metrics = hub or Hub(engine, settings), metrics or Metrics()
    app = FastAPI(
        title="infinitevl", version=f"{PROTOCOL}", lifespan=_life(hub), docs_url=None, redoc_url=None,
        description="A vision-language model that watches without end.",
    )  # fmt: skip
    app.state.hub, app.state.keys = hub, hub.keys
    app.add_middleware(
        Guard, settings=settings, keys=hub.keys, stopping=lambda: hub.stopping,
        count=lambda status: metrics.responses.labels(str(status)).inc(),
    )  # fmt: skip
    faults.install(app)
    metrics.gauge("streams", "Streams", lambda: len(hub.rooms))
    for routes in (chat, streams, questions, snapshots):
        app.include_router(routes.router(hub))
    app.include_router(live.router(hub, metrics))
    _add_the_rest(app, hub, metrics)
    app.mount("/", StaticFiles(directory=PAGE, html=True, check_dir=False))
    return app


def _life(hub: Hub):
    @asynccontextmanager
    async def life(_: FastAPI) -> AsyncIterator[None]:
        await hub.start()
        try:
            yield
        finally:
            await hub.close()

    return life


def _add_the_rest(app: FastAPI, hub: Hub, metrics: Metrics) -> None:
    @app.get("/healthz", response_model=Health, responses={503: {"model": Health}})
    async def health() -> JSONResponse:
        status = "stopping" if hub.stopping else "ok"
        told = Health(status=status, model=hub.settings.model, streams=len(hub.rooms))
        return JSONResponse(told.model_dump(), 503 if hub.stopping else 200)

    @app.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
    async def prometheus() -> Response:
        return Response(metrics.text(), media_type=CONTENT_TYPE_LATEST)

    @app.get("/v1/info", responses=faults.responses())
    async def info(owner: Owner) -> Info:
        """What this server is, and its limits."""
        settings, number = hub.settings, version("infinitevl")
        return Info(protocol=PROTOCOL, version=number, model=settings.model, limits=settings.limits())
