"""`infinitevl serve --replicas 2`: streams on two processes, one of which is killed."""

import importlib.util
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import psutil
import pytest
from engine_kit import alone, picture
from server_kit import Talk, encoded, lines
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from infinitevl.engine.engine import Engine
from infinitevl.engine.store import Store
from infinitevl.model.modeling import InfiniteVLForConditionalGeneration as Model

PATIENCE = 120.0  # seconds
FRAMES, MORE = 4, 2
ASK = {"question": "What is it?", "max_tokens": 12}

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="pip install 'infinitevl[cluster]'"),
    pytest.mark.skipif(sys.platform != "linux", reason="replicas are found by their names in /proc"),
]


class Cluster:
    """The command, and a client of it."""

    def __init__(self, command: "subprocess.Popen[str]", store: Store) -> None:
        assert command.stdout
        self.command, self.store = command, store
        self.url = command.stdout.readline().split()[-1]
        self.http = httpx.Client(base_url=self.url, timeout=PATIENCE)

    def replicas(self) -> list[psutil.Process]:
        children = psutil.Process(self.command.pid).children(recursive=True)
        return [child for child in children if "".join(child.cmdline()[:1]).startswith("ray::ServeReplica")]

    def holders(self, ids: list[str]) -> dict[str, str | None]:
        return {id: self.store.holder(id) for id in ids}

    def spread(self) -> list[str]:
        """New streams, until there are some on both replicas."""
        ids: list[str] = []
        while len(set(self.holders(ids).values())) < 2:
            ids.append(self.http.post("/v1/streams", json={"fps": None}).json()["id"])
            assert self.look(ids[-1])["stats"]["frames"] == 0
            assert len(ids) < 40
        return ids

    def look(self, id: str) -> dict[str, Any]:
        return self.http.get(f"/v1/streams/{id}").json()

    def ask(self, id: str) -> str:
        return self.http.post(f"/v1/streams/{id}/ask", json=ASK).json()["answer"]

    def live(self, id: str) -> ClientConnection:
        url = f"{self.url.replace('http', 'ws')}/v1/streams/{id}/live"
        return connect(url, legacy=True, open_timeout=PATIENCE, ping_timeout=PATIENCE)


@contextmanager
def serving(model: Model, folder: Path) -> Iterator[Cluster]:
    model.save_pretrained(folder / "model")
    model.processor.save_pretrained(folder / "model")
    command = [sys.executable, "-c", "from infinitevl.cli import main; main()", "serve", "--replicas", "2"]
    options = ["--model", f"{folder}/model", "--state-dir", f"file://{folder}/state", "--port", "0"]
    started = subprocess.Popen(
        [*command, *options, "--save-every", "1"], stdout=subprocess.PIPE, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
    )  # fmt: skip
    try:
        yield Cluster(started, Store(f"{folder}/state"))
    finally:
        started.kill()  # and with it all of Ray
        started.wait()


def push(talk: Talk, numbers: range) -> None:
    for number in numbers:
        talk.send({"type": "frame", "time": number / 2})
        talk.send(encoded(picture(number)))
        assert talk.get("frame", PATIENCE)["result"] == "seen"


def closed(socket: ClientConnection, seconds: float) -> bool:
    """Whether the server ends it in time."""
    try:
        socket.recv(timeout=seconds)
    except ConnectionClosed:
        return True
    except TimeoutError:
        return False
    raise AssertionError("nothing was to come")


def eventually(condition: Callable[[], Any]) -> None:
    until = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.05)


def test_a_replica_is_killed(model: Model, tmp_path: Path):
    """Its streams go on from their last save on the other one, and all the others as if nothing had happened."""
    with serving(model, tmp_path) as cluster:
        ids = cluster.spread()
        before, talks = cluster.holders(ids), {id: Talk(cluster.live(id)) for id in ids}
        for talk in talks.values():
            assert talk.get("hello", PATIENCE)
            push(talk, range(FRAMES))
        eventually(lambda: all((saved := cluster.look(id)["saved"]) and saved["frames"] == FRAMES for id in ids))
        assert cluster.holders(ids) == before  # they stick
        for talk in talks.values():
            push(talk, range(FRAMES, FRAMES + MORE))  # maybe not saved any more

        os.kill(cluster.replicas()[0].pid, signal.SIGKILL)
        eventually(lambda: any(closed(talk.socket, 0.1) for talk in talks.values()))
        gone = {before[id] for id, talk in talks.items() if closed(talk.socket, 0.1)}
        lost = [id for id in ids if before[id] in gone]
        assert len(gone) == 1 and 0 < len(lost) < len(ids)
        assert {stream["id"] for stream in cluster.http.get("/v1/streams").json()["data"]} == set(ids)

        for id in lost:
            with cluster.live(id) as socket:
                talk = Talk(socket)
                frames = talk.get("hello", PATIENCE)["stream"]["stats"]["frames"]
                assert FRAMES <= frames <= FRAMES + MORE
                assert cluster.ask(id) == alone(model, [picture(i) for i in range(frames)])
                push(talk, range(frames, FRAMES + MORE))
        whole = alone(model, [picture(i) for i in range(FRAMES + MORE)])
        for id in ids:
            assert cluster.ask(id) == whole and streamed(cluster, id) == whole
        assert len(set(cluster.holders(ids).values())) == 1

        cluster.command.terminate()
        assert cluster.command.wait(PATIENCE) == 0
        assert {cluster.store.look("streams", id).frames for id in ids} == {FRAMES + MORE}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Ray's own
def test_streams_that_nobody_asks_for(model: Model, tmp_path: Path):
    """Those with a source that should be watched are adopted; the others are looked at once."""
    from infinitevl.cluster.run import Guardian

    store = Store(str(tmp_path))
    engine = Engine(model, store=store)
    about = {"owner": "everybody", "source": {"url": "rtsp://camera/1", "status": "playing"}}
    watching, _, held = engine.open(about), engine.open({"owner": "everybody"}), engine.open(about)
    ended = engine.open({**about, "source": {"url": "a.mp4", "status": "ended"}})
    engine.close()
    (tmp_path / "streams" / "broken.safetensors").write_bytes(b"nothing")
    handle = Handle([held])
    guardian = Guardian(handle, store)  # type: ignore[arg-type]
    guardian.look()
    assert handle.adopted == [watching]
    handle.held.append(ended)
    guardian.look()
    handle.held.remove(ended)  # it was held meanwhile, and may have a source now
    engine = Engine(model, store=store)
    engine.describe(ended, about)
    engine.close()
    guardian.look()
    assert handle.adopted == [watching, ended]
    handle.broken = True
    guardian.look()
    assert handle.adopted == [watching, ended]


class Handle:
    """Of replicas that adopt what they are asked to."""

    def __init__(self, held: list[str]) -> None:
        self.held, self.adopted, self.broken = held, list[str](), False
        self.adopt = SimpleNamespace(remote=self._adopt)

    def broadcast(self, name: str) -> Any:
        assert name == "held"
        return SimpleNamespace(results=self._results)

    def _results(self, timeout_s: float) -> list[list[str]]:
        if self.broken:
            raise OSError("a replica has just died")
        return [list(self.held), []]

    def _adopt(self, id: str) -> Any:
        self.adopted.append(id)
        self.held.append(id)
        return SimpleNamespace(result=lambda timeout_s: None)


def streamed(cluster: Cluster, id: str) -> str:
    with cluster.http.stream("POST", f"/v1/streams/{id}/ask", json={**ASK, "stream": True}) as response:
        *told, done = list(lines(response))
    assert done == "[DONE]"
    return "".join(each.get("delta", "") for each in told)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Ray's own
def test_the_choice_of_a_replica():
    """Equal everywhere, even, and kept while the replica lives."""
    from infinitevl.cluster.routing import StreamRouter, home, stream_of

    ids, names = [f"stream-{number:016x}" for number in range(600)], ["a", "b", "c"]
    homes = {id: home(id, names) for id in ids}
    assert homes == {id: home(id, names[::-1]) for id in ids}
    assert min(list(homes.values()).count(name) for name in names) > 150
    assert all(homes[id] == "c" for id in ids if home(id, ["a", "b"]) != homes[id])

    router = object.__new__(StreamRouter)
    router.initialize_state()

    def chosen(*names: str) -> dict[str, str]:
        replicas: Any = {Id(name): name for name in names}
        return {id: router._choose(id, replicas) for id in ids}

    assert chosen("a", "b") == chosen("a", "b", "c")  # a third one takes nothing
    assert set(chosen("a", "c").values()) == {"a", "c"}
    assert chosen("a", "b", "c") == chosen("a", "c")
    assert stream_of("/v1/streams") is None and stream_of("/v1/streams/x/live") == "x"


@dataclass(frozen=True)
class Id:
    """Of a replica."""

    unique_id: str
