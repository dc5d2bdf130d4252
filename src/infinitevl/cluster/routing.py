"""Which replica a request goes to: Ray Serve asks this in its proxy, and wherever a replica is called."""

import hashlib
import pickle
import random
import re
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

from ray.serve.request_router import PendingRequest, ReplicaID, RequestRouter, RunningReplica

STREAM = re.compile(r"/v1/streams/([^/]+)")
REMEMBERED = 100_000  # streams


def stream_of(path: str) -> str | None:
    """The id in a request's path."""
    found = STREAM.match(path)
    return found[1] if found else None


def home(id: str, replicas: Sequence[str]) -> str:
    """Rendezvous hashing: everybody who knows the same replicas chooses the same one, and one that goes moves only
    its own streams."""
    return max(replicas, key=lambda replica: hashlib.sha256(f"{replica} {id}".encode()).digest())


class StreamRouter(RequestRouter):
    """A stream's requests go to the replica that was chosen for it before, while that lives; the first one to the
    stream's home. Whatever names no stream goes to the replica that has the least to do."""

    def initialize_state(self, **_: Any) -> None:
        self._chosen: OrderedDict[str, ReplicaID] = OrderedDict()

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        if pending_request:
            pending_request.routing_context.should_backoff = True  # where the chosen one is full, try it again later
        id = pending_request and _stream(pending_request)
        if not id:
            return [random.sample(candidate_replicas, len(candidate_replicas))]  # Serve takes the least busy of them
        return [[self._choose(id, {replica.replica_id: replica for replica in candidate_replicas})]]

    def _choose(self, id: str, replicas: dict[ReplicaID, RunningReplica]) -> RunningReplica:
        if self._chosen.get(id) not in replicas:
            names = {replica.unique_id: replica for replica in replicas}
            self._chosen[id] = names[home(id, list(names))]
        self._chosen.move_to_end(id)
        if len(self._chosen) > REMEMBERED:
            self._chosen.popitem(last=False)
        return replicas[self._chosen[id]]


def _stream(request: PendingRequest) -> str | None:
    """The stream that a request, or a call of a replica's `adopt`, is about."""
    if request.metadata.is_http_request:
        return stream_of(pickle.loads(request.args[0]).asgi_scope["path"])  # of Serve's own proxy
    return request.args[0] if request.metadata.call_method == "adopt" else None
