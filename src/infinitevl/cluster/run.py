"""All replicas on Ray Serve, and what looks after the streams that nobody asks for."""

import logging
import os
import signal
import threading
from collections.abc import Iterable

import ray
from ray import serve
from ray.serve.config import HTTPOptions, RequestRouterConfig
from ray.serve.handle import DeploymentHandle

from infinitevl.cluster.replica import APP, DEPLOYMENT, Plan, Replica
from infinitevl.cluster.routing import StreamRouter
from infinitevl.engine.store import Store
from infinitevl.errors import InfiniteVLError, NotFound, StorageError
from infinitevl.server.room import Room

log = logging.getLogger(__name__)
OPEN = 10_000  # requests and connections of a replica: what it takes is limited by the server's own limits
GRACE = 60.0  # seconds for a replica to write its streams
LOOK = 5.0  # seconds between two looks for streams whose source nobody watches
LOGS = {"log_level": "WARNING", "enable_access_log": False}


def run(plan: Plan, replicas: int, host: str, port: int, line: str) -> None:
    """Serve until a signal. line: printed when all is up.

    On the Ray cluster that RAY_ADDRESS names, else on one of its own, on this machine. Raises InfiniteVLError.
    """
    store, stop = Store(plan.store), threading.Event()
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S", "20")  # Ray's 5 are too few on a busy machine
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    ray.init(logging_level=logging.WARNING)
    for number in (signal.SIGINT, signal.SIGTERM):  # only now: Ray has handlers of its own
        signal.signal(number, lambda *_: stop.set())
    try:
        serve.start(proxy_location="HeadOnly", http_options=HTTPOptions(host=host, port=port), logging_config=LOGS)
        handle = _deploy(plan, replicas)
        print(line, flush=True)
        guardian = Guardian(handle, store)
        while not stop.wait(LOOK):
            guardian.look()
        _end(handle)
    finally:
        ray.shutdown()


def _end(handle: DeploymentHandle) -> None:
    """Raises StorageError where a stream could not be written."""
    told = handle.broadcast("close").results(timeout_s=GRACE, return_exceptions=True)
    if "RAY_ADDRESS" in os.environ:  # else all of Ray ends
        serve.delete(APP)
    for each in told:
        if isinstance(each, StorageError):
            raise each


def _deploy(plan: Plan, replicas: int) -> DeploymentHandle:
    deployment = serve.deployment(
        serve.ingress()(Replica), name=DEPLOYMENT, num_replicas=replicas, max_ongoing_requests=OPEN,
        ray_actor_options=_share(plan, replicas), graceful_shutdown_wait_loop_s=0.5,
        graceful_shutdown_timeout_s=GRACE,
        request_router_config=RequestRouterConfig(request_router_class=StreamRouter),  # pyright: ignore
        max_constructor_retry_count=1, logging_config=LOGS,
    )  # fmt: skip
    try:
        return serve.run(deployment.bind(plan), name=APP, route_prefix="/")
    except RuntimeError:
        told = serve.status().applications[APP].deployments[DEPLOYMENT].message.split()
        raise InfiniteVLError(f"the replicas do not start: {' '.join(told)[-300:]}") from None


def _share(plan: Plan, replicas: int) -> dict[str, float]:
    """What of the cluster a replica takes: a GPU where there are as many, else a part of one."""
    there = ray.cluster_resources()
    gpus = 0.0 if plan.device == "cpu" else there.get("GPU", 0.0)
    return {"num_cpus": min(1.0, there.get("CPU", 1.0) / replicas), "num_gpus": min(1.0, gpus / replicas)}


class Guardian:
    """Has the streams adopted whose source should be watched, but whose replica is gone."""

    def __init__(self, handle: DeploymentHandle, store: Store) -> None:
        self._handle, self._store = handle, store
        self._idle: set[str] = set()  # they lie in the store, and have no source

    def look(self) -> None:
        """Once. What fails is left for the next time."""
        try:
            held = self._handle.broadcast("held").results(timeout_s=GRACE)
            alone = set(self._store.names("streams")).difference(*held)
            self._idle &= alone
            self._adopt(alone - self._idle)
        except Exception as error:  # of a replica that has just died, or of the store
            log.warning("streams could not be looked after: %s", error)

    def _adopt(self, names: Iterable[str]) -> None:
        for name in names:
            try:
                source = Room.restored(name, self._store.look("streams", name).about).source
            except (NotFound, StorageError):  # deleted meanwhile, or damaged
                continue
            if source and source.running:
                self._handle.adopt.remote(name).result(timeout_s=GRACE)
            else:
                self._idle.add(name)
