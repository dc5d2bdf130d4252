"""A server to look at in a browser, which can go and come back, and pictures for its streams."""

import io
import json
import shutil
import socket
import threading
from pathlib import Path
from urllib.request import Request, urlopen

from PIL import Image

from infinitevl.data.streamworld.episodes import sample
from infinitevl.engine.types import Budget
from infinitevl.model.modeling import InfiniteVLForConditionalGeneration
from infinitevl.server.run import Running
from infinitevl.server.settings import Settings

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
ARGUMENTS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream",
)  # fmt: skip


def browser_path() -> str | None:
    return next(filter(None, map(shutil.which, BROWSERS)), None)


def pictures(count: int, seed: int = 7) -> list[bytes]:
    """Frames of a StreamWorld film as JPEGs."""
    files = []
    for frame in sample(seed, "test", frames=count).frames:
        files.append(file := io.BytesIO())
        Image.fromarray(frame).save(file, "JPEG")
    return [file.getvalue() for file in files]


class Site:
    """The server at an address of its own: `start` after `stop` takes up its streams at the same one."""

    def __init__(self, model: InfiniteVLForConditionalGeneration, folder: Path, key: str | None = None) -> None:
        self._model, self._key = model, key
        self._settings = Settings(model="infinitevl-box", folder=folder, keys=(key,) if key else ())
        self._port = 0
        self.start()
        self.url = f"http://127.0.0.1:{self._port}/"

    def start(self) -> None:
        listener = socket.create_server(("127.0.0.1", self._port))
        self._port = listener.getsockname()[1]
        self._running = Running(self._model, Budget(slots=4), self._settings)
        self._thread = threading.Thread(target=self._running.serve, args=(listener, "up"), daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._running.uvicorn.should_exit = True
        self._thread.join()

    def call(self, method: str, path: str, body: object = None) -> dict:
        """A request of the protocol. body: bytes as they are, others as JSON."""
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        headers = {"authorization": f"Bearer {self._key}"} if self._key else {}
        if data is not None:
            headers["content-type"] = "image/jpeg" if isinstance(body, bytes) else "application/json"
        with urlopen(Request(f"{self.url}v1/{path}", data, headers, method=method), timeout=20) as response:
            return json.loads(response.read() or b"{}")

    def stream(self, name: str, frames: list[bytes] = []) -> str:  # noqa: B006
        """A new stream that has seen these frames; its id."""
        id = self.call("POST", "streams", {"name": name, "fps": 10.0})["id"]
        for i, frame in enumerate(frames):
            self.call("POST", f"streams/{id}/frames?time={i / 10}", frame)
        return id
