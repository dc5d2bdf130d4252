"""Sources that behave and misbehave: films, an HTTP site, an RTSP camera."""

import io
import re
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import av
import numpy as np
from PIL import Image

Answer = Callable[[BaseHTTPRequestHandler], None]


def film(count: int = 6, fps: int = 4, kind: str = "mp4", late_index: bool = True) -> bytes:
    """A video whose frames differ. An mp4 has its index at its end, unless told otherwise."""
    file = io.BytesIO()
    options = {} if late_index or kind != "mp4" else {"movflags": "frag_keyframe+empty_moov"}
    with av.open(file, "w", format=kind, options=options) as box:
        stream = box.add_stream("mpeg4", rate=fps)
        stream.width, stream.height, stream.pix_fmt = 84, 56, "yuv420p"
        for index in range(count):
            box.mux(stream.encode(av.VideoFrame.from_ndarray(grey(index))))
        box.mux(stream.encode())
    return file.getvalue()


def grey(index: int) -> np.ndarray:
    return np.full((56, 88, 3), 37 * index % 256, np.uint8)[:, :84]


def jpeg(index: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.full((64, 96, 3), 37 * index % 256, np.uint8)).save(file, "JPEG", subsampling=2)
    return file.getvalue()


class Site:
    """HTTP on this machine: `pages` maps paths to bytes, or to what answers; `asked` are the paths that came."""

    def __init__(self) -> None:
        self.pages: dict[str, bytes | Answer] = {}
        self.asked: list[str] = []
        self.over = threading.Event()
        site = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_: object) -> None:
                pass

            def do_GET(self) -> None:
                site.asked.append(self.path)
                with suppress(OSError):  # the client may hang up
                    site.answer(self)

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._http.server_port}"
        threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True).start()

    def answer(self, to: BaseHTTPRequestHandler) -> None:
        page = self.pages.get(to.path)
        if callable(page):
            return page(to)
        if page is None:
            return to.send_error(404)
        to.send_response(200)
        to.send_header("Content-Length", str(len(page)))
        to.end_headers()
        to.wfile.write(page)
        return None

    def close(self) -> None:
        self.over.set()
        self._http.shutdown()
        self._http.server_close()


def redirect(url: str) -> Answer:
    def answer(to: BaseHTTPRequestHandler) -> None:
        to.send_response(302)
        to.send_header("Location", url)
        to.end_headers()

    return answer


def camera(count: int, fps: float = 50.0, after: threading.Event | None = None) -> Answer:
    """Pictures one after the other, as cameras send them over HTTP, then the end; or a stall until `after`."""

    def answer(to: BaseHTTPRequestHandler) -> None:
        to.send_response(200)
        to.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
        to.end_headers()
        for index in range(count):
            data = jpeg(index)
            head = f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {len(data)}\r\n\r\n"
            to.wfile.write(head.encode() + data + b"\r\n")
            time.sleep(1 / fps)
        if after:
            after.wait(30)

    return answer


class RtspCamera:
    """A camera on this machine: Motion JPEG over RTP inside of the RTSP connection (RFC 2326, 2435).

    mode: "play"; "stall" sends `count` pictures and nothing more; "drop" hangs up after them; "refuse" hangs up at
    once; an address is where it redirects to.
    """

    def __init__(self) -> None:
        self.mode, self.count, self.connections, self.over = "play", 10, 0, threading.Event()
        self._port = socket.create_server(("127.0.0.1", 0))
        self.host = f"127.0.0.1:{self._port.getsockname()[1]}"
        self.url = f"rtsp://{self.host}/camera"
        threading.Thread(target=self._serve, daemon=True).start()

    def close(self) -> None:
        self.over.set()
        self._port.close()

    def _serve(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._port.accept()
                self.connections += 1
                threading.Thread(target=self._talk, args=(client,), daemon=True).start()

    def _talk(self, client: socket.socket) -> None:
        with client, suppress(OSError, ValueError):
            file = client.makefile("rb")
            while self.mode != "refuse" and (request := self._request(file)):
                method, number = request
                client.sendall(self._response(method, number))
                if method == "PLAY":
                    self._play(client)
                    return

    @staticmethod
    def _request(file: io.BufferedIOBase) -> tuple[str, str] | None:
        lines = []
        while (line := file.readline().decode()) not in ("\r\n", ""):
            lines.append(line)
        number = re.search(r"CSeq: (\d+)", "".join(lines))
        return (lines[0].split()[0], number[1]) if number else None

    def _response(self, method: str, number: str) -> bytes:
        if "://" in self.mode:
            return f"RTSP/1.0 302 Moved\r\nCSeq: {number}\r\nLocation: {self.mode}\r\n\r\n".encode()
        more, body = "", ""
        if method == "DESCRIBE":
            body = "v=0\r\no=- 0 0 IN IP4 0.0.0.0\r\ns=-\r\nt=0 0\r\nm=video 0 RTP/AVP 26\r\na=control:track\r\n"
            more = f"Content-Type: application/sdp\r\nContent-Length: {len(body)}\r\n"
        elif method == "SETUP":
            more = "Transport: RTP/AVP/TCP;unicast;interleaved=0-1\r\nSession: 1\r\n"
        elif method == "PLAY":
            more = "Session: 1\r\nRange: npt=0-\r\n"
        return f"RTSP/1.0 200 OK\r\nCSeq: {number}\r\n{more}\r\n{body}".encode()

    def _play(self, client: socket.socket) -> None:
        sequence = 0
        for index in range(self.count if self.mode != "play" else 10**6):
            if self.over.is_set() or (self.mode == "drop" and index >= self.count):
                return
            header, scan = _rfc2435(jpeg(index))
            stamp = int(index * 90_000 / 20)
            packet = bytes([0x80, 0x80 | 26]) + sequence.to_bytes(2, "big") + stamp.to_bytes(4, "big") + bytes(4)
            packet += header + scan
            client.sendall(b"$\0" + len(packet).to_bytes(2, "big") + packet)
            sequence = (sequence + 1) % 65_536
            time.sleep(0.05)
        if self.mode == "stall":
            self.over.wait(30)


def _rfc2435(data: bytes) -> tuple[bytes, bytes]:
    """The RTP payload header, with quantisation tables, of a small JPEG of 64x96, 4:2:0; and its scan."""
    tables, at = b"", 2
    while True:
        marker, length = data[at + 1], int.from_bytes(data[at + 2 : at + 4], "big")
        segment = data[at + 4 : at + 2 + length]
        if marker == 0xDB:
            for start in range(0, len(segment), 65):
                tables += segment[start + 1 : start + 65]
        at += 2 + length
        if marker == 0xDA:
            break
    header = bytes([0, 0, 0, 0, 1, 255, 96 // 8, 64 // 8]) + bytes([0, 0]) + len(tables).to_bytes(2, "big") + tables
    return header, data[at:-2]


def write_films(folder: Path) -> None:
    folder.mkdir()
    (folder / "film.mp4").write_bytes(film())
    (folder / "long.mp4").write_bytes(film(48))
