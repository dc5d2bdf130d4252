"""What the video tests share: test pictures that tell their index, and a server that misbehaves."""

import time
from collections.abc import Callable
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Thread

import numpy as np

MakeVideo = Callable[..., Path]


def scene(index: int, height: int, width: int) -> np.ndarray:
    """Frame `index` of a test video: its grey level tells the index, and a bar of noise makes it heavy."""
    picture = np.full((height, width, 3), 20 + 5 * index % 200, np.uint8)
    bar = np.random.default_rng(index).integers(0, 256, (height, width // 4, 3), np.uint8)
    picture[:, width // 2 : width // 2 + width // 4] = bar
    return picture


def level(frame: np.ndarray) -> int:
    """The index that `scene` wrote."""
    return round((float(frame[:, : frame.shape[1] // 4].mean()) - 20) / 5)


class Server:
    """An HTTP server on this machine whose answer to every address is `body`, given as `mode` says.

    `ok` all of it, `ranges` what is asked for, `drop` half and hang up, `stall` half and then nothing,
    `silent` nothing at all, or a status number.
    """

    def __init__(self) -> None:
        self.body, self.mode, self.over = b"", "ok", Event()
        server = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_: object) -> None:
                pass

            def do_GET(self) -> None:
                with suppress(OSError):  # the client may hang up
                    server.answer(self)

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self._http.server_port}/video"
        Thread(target=self._http.serve_forever, args=(0.02,), daemon=True).start()

    def answer(self, to: BaseHTTPRequestHandler) -> None:
        if self.mode.isdigit():
            return to.send_error(int(self.mode))
        if self.mode == "silent":
            self.over.wait(10)
            return None
        asked = to.headers.get("Range", "bytes=0-")[6:].split("-")[0] if self.mode == "ranges" else "0"
        to.send_response(206 if self.mode == "ranges" else 200)
        if self.mode == "ranges":
            to.send_header("Content-Range", f"bytes {asked}-{len(self.body) - 1}/{len(self.body)}")
        to.send_header("Content-Length", str(len(self.body) - int(asked)))
        to.end_headers()
        half = self.mode in ("drop", "stall")
        to.wfile.write(self.body[int(asked) : len(self.body) // 2 if half else None])
        if self.mode == "stall":
            self.over.wait(10)
        return None

    def close(self) -> None:
        self.over.set()
        self._http.shutdown()
        self._http.server_close()


def eventually(condition: Callable[[], bool], seconds: float = 5.0) -> bool:
    """Whether `condition` comes true in time."""
    until = time.monotonic() + seconds
    while not condition() and time.monotonic() < until:
        time.sleep(0.005)
    return condition()
