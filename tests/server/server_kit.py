"""A server of its own for a test, on a port of this machine, and clients of it."""

import io
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from PIL import Image
from websockets.sync.client import ClientConnection, connect

from infinitevl.engine.types import Budget
from infinitevl.model.modeling import InfiniteVLForConditionalGeneration as Model
from infinitevl.server.run import Running
from infinitevl.server.settings import Settings

NAME = "tiny"
KEY, OTHER = "key-of-the-first", "key-of-another"
BUDGET = Budget(slots=4, host=8, streams=32, questions=16, prompt=2048, save_every=0.2)


class Served:
    """A running server. `http` is a client with the first key, where there are keys."""

    def __init__(self, model: Model, folder: Path, budget: Budget = BUDGET, **settings: Any) -> None:
        self.settings = Settings(NAME, folder, **settings)
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.place = f"127.0.0.1:{self.listener.getsockname()[1]}"
        self.url = f"http://{self.place}"
        self.running = Running(model, budget, self.settings)
        self.hub = self.running.app.state.hub
        self.http = self.client(self.settings.keys[0] if self.settings.keys else None)
        self._thread = threading.Thread(target=self.running.serve, args=(self.listener, ""), daemon=True)
        self._thread.start()
        assert eventually(lambda: self.running.uvicorn.started)

    def client(self, key: str | None) -> httpx.Client:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        return httpx.Client(base_url=self.url, headers=headers, timeout=20)

    def open(self, **given: Any) -> str:
        """The id of a new stream."""
        response = self.http.post("/v1/streams", json={"fps": None, **given})
        assert response.status_code == 201, response.text
        return response.json()["id"]

    def see(self, id: str, frame: np.ndarray, time: float | None = None) -> dict[str, Any]:
        """Hand in a frame without loss; its acknowledgement."""
        params = {} if time is None else {"time": time}
        response = self.http.post(f"/v1/streams/{id}/frames", params=params, content=encoded(frame))
        assert response.status_code == 200, response.text
        return response.json()

    def ask(self, id: str, question: str = "What is it?", **given: Any) -> dict[str, Any]:
        response = self.http.post(f"/v1/streams/{id}/ask", json={"question": question, "max_tokens": 12, **given})
        assert response.status_code == 200, response.text
        return response.json()

    def look(self, id: str) -> dict[str, Any]:
        return self.http.get(f"/v1/streams/{id}").json()

    def connect(self, id: str, key: str | None = None, **options: Any) -> ClientConnection:
        key = key or (self.settings.keys[0] if self.settings.keys else None)
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        return connect(f"ws://{self.place}/v1/streams/{id}/live", additional_headers=headers, legacy=False, **options)

    def stop(self) -> None:
        """As a signal does."""
        self.http.close()
        self.running.uvicorn.should_exit = True
        self._thread.join(timeout=20)
        assert not self._thread.is_alive()

    def __enter__(self) -> "Served":
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


@contextmanager
def live(served: Served, id: str, **options: Any) -> Iterator["Talk"]:
    """A WebSocket whose hello has been read."""
    with served.connect(id, **options) as socket:
        talk = Talk(socket)
        assert talk.get("hello")["stream"]["id"] == id
        yield talk


class Talk:
    """Messages of a WebSocket, kept until they are asked for."""

    def __init__(self, socket: ClientConnection) -> None:
        self.socket, self._kept = socket, list[dict[str, Any]]()

    def send(self, message: bytes | dict[str, Any]) -> None:
        self.socket.send(message if isinstance(message, bytes) else json.dumps(message))

    def get(self, kind: str, timeout: float = 10.0, **fields: Any) -> dict[str, Any]:
        """The next message of this type, with these fields."""

        def fits(message: dict[str, Any]) -> bool:
            return message["type"] == kind and all(message.get(name) == value for name, value in fields.items())

        for index, message in enumerate(self._kept):
            if fits(message):
                return self._kept.pop(index)
        while True:
            message = json.loads(self.socket.recv(timeout=timeout))
            if fits(message):
                return message
            self._kept.append(message)


def encoded(frame: np.ndarray, kind: str = "PNG") -> bytes:
    """PNG loses nothing."""
    file = io.BytesIO()
    Image.fromarray(frame).save(file, kind)
    return file.getvalue()


def picture(seed: int, height: int = 56, width: int = 84) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def eventually(condition: Callable[[], Any], seconds: float = 10.0) -> bool:
    """Whether `condition` comes true in time."""
    until = time.monotonic() + seconds
    while not (found := condition()) and time.monotonic() < until:
        time.sleep(0.01)
    return bool(found)


def fault(response: httpx.Response, status: int, kind: str) -> str:
    """The line of an error, which must have the documented form."""
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert error["type"] == f"{kind}_error" and set(error) == {"message", "type", "code"}
    assert error["message"] and "\n" not in error["message"] and "Traceback" not in error["message"]
    return error["message"]


def lines(response: httpx.Response) -> Iterator[Any]:
    """What server-sent events say; heartbeats are left out."""
    for line in response.iter_lines():
        if line.startswith("data: "):
            yield line[6:] if line == "data: [DONE]" else json.loads(line[6:])
