"""Both clients against the real server: everything of the protocol, and every error as one exception."""

import http.server
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import av
import pytest
from client_kit import KEY, OTHER, Client, Served, both, encoded, eventually, picture

from infinitevl.client import ClientError, SourceEvent, WatchEvent
from infinitevl.client.calls import Server
from infinitevl.client.types import Stream as Told
from infinitevl.client.types import build
from infinitevl.model.modeling import InfiniteVLForConditionalGeneration as Model
from infinitevl.streaming.stream import Stream

QUESTION, SHORT = "What is it?", {"max_tokens": 8}


def expected(model: Model, count: int, **options: Any) -> str:
    stream = Stream(model, fps=None)
    for index in range(count):
        stream.see(picture(index), index / 2)
    return "".join(stream.ask(QUESTION, max_new_tokens=8, **options))


def show(client: Any, id: str, count: int) -> None:
    for index in range(count):
        assert client.push(id, encoded(picture(index)), index / 2).result == "seen"


def refused(status: int | None, kind: str, call: Callable[..., Any], *args: Any, **options: Any) -> ClientError:
    with pytest.raises(ClientError) as caught:
        call(*args, **options)
    error = caught.value
    assert (error.status, error.type) == (status, f"{kind}_error"), str(error)
    assert str(error) == error.message and "\n" not in error.message
    return error


def test_it_needs_no_torch():
    code = "import sys, infinitevl.client; print({'torch', 'transformers', 'av'} & sys.modules.keys())"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "set()"


def test_the_life_of_a_stream(client: Any):
    made = client.streams.create("gate", fps=None, max_pixels=1568)
    assert (made.name, made.fps, made.max_pixels, made.source, made.stats.frames) == ("gate", None, 1568, None, 0)
    show(client, made.id, 2)
    found = client.streams.get(made.id)
    assert (found.stats.frames, found.stats.seconds, found.place) == (2, 0.5, "slot")
    branch = client.fork(made.id, "branch")
    assert branch.name == "branch" and branch.stats.frames == 2
    assert [each.id for each in client.streams.list()] == [made.id, branch.id]
    client.streams.delete(made.id)
    assert [each.id for each in client.streams.list()] == [branch.id]
    assert "no stream" in refused(404, "not_found", client.streams.get, made.id).message


def test_questions(client: Any, model: Model):
    id = client.streams.create(fps=None).id
    show(client, id, 3)
    answer = client.ask(id, QUESTION, **SHORT)
    assert answer.answer == expected(model, 3) != expected(model, 2)
    assert (answer.stream, answer.question, answer.frames, answer.finish_reason) == (id, QUESTION, 3, "length")
    assert answer.usage.completion_tokens == 8
    pieces = client.ask_pieces(id, QUESTION, **SHORT)
    text = list(pieces)
    assert len(text) > 1 and "".join(text) == answer.answer == pieces.answer.answer
    warm = client.ask_pieces(id, QUESTION, temperature=2.0, seed=3, **SHORT).whole()
    assert warm.answer == expected(model, 3, temperature=2.0, seed=3) != answer.answer
    assert [each.id for each in client.answers(id)] == [answer.id, pieces.answer.id, warm.id]
    refused(422, "invalid_request", client.ask, id, "")
    refused(413, "too_large", client.ask, id, QUESTION, max_tokens=10**6)
    refused(404, "not_found", client.ask_pieces("stream-0", QUESTION).whole)


def test_an_answer_that_nobody_reads_is_cancelled(client: Any):
    id = client.streams.create().id
    pieces = client.ask_pieces(id, QUESTION, max_tokens=4000)
    assert next(pieces)
    pieces.close()
    assert eventually(lambda: client.answers(id))
    assert client.answers(id)[0].finish_reason == "cancelled"


def test_frames_over_http(client: Any):
    id = client.streams.create(fps=2.0).id
    assert client.push(id, picture(0), 0.0).result == "seen"
    assert client.push(id, picture(1), 0.1).result == "skipped"
    told = client.push(id, b"no picture", 1.0)
    assert told.result == "refused" and told.message
    assert client.picture(id)[:2] == b"\xff\xd8"
    assert len(client.memory(id).norms) == len(client.memory(id).times) == 1


def test_standing_questions_and_events(client: Any):
    id = client.streams.create(fps=None).id
    watch = client.watches.create(id, QUESTION, every=1.0, max_tokens=4)
    assert (watch.every, watch.max_tokens, watch.asked) == (1.0, 4, 0)
    events = Background(client.events(id))
    assert eventually(lambda: client.push(id, picture(0)).result == "seen" and events.came)
    event = events.came[0]
    assert isinstance(event, WatchEvent) and event.watch == watch.id and event.before is None
    assert client.watches.list(id)[0].answer == event.answer
    client.watches.delete(id, watch.id)
    assert client.watches.list(id) == []
    client.streams.delete(id)
    events.end()


class Background:
    """What an iterator gives, read in a thread."""

    def __init__(self, coming: Iterator[Any]) -> None:
        self.came: list[Any] = []
        self._thread = threading.Thread(target=lambda: [self.came.append(each) for each in coming], daemon=True)
        self._thread.start()

    def end(self) -> None:
        self._thread.join(10)
        assert not self._thread.is_alive()


def test_a_video_is_uploaded_and_watched(client: Any, tmp_path: Path):
    path = tmp_path / "clip.mp4"
    with av.open(str(path), "w") as file:
        stream = file.add_stream("mpeg4", rate=4)
        stream.width, stream.height = 84, 56
        for index in range(8):
            file.mux(stream.encode(av.VideoFrame.from_ndarray(picture(index), "rgb24")))
        file.mux(stream.encode())
    id = client.streams.create(fps=None).id
    events = Background(client.events(id))
    assert client.upload(id, path).source.url == "upload"
    assert eventually(lambda: client.streams.get(id).source.status == "ended")
    assert eventually(lambda: client.streams.get(id).stats.frames == 8)  # the last ones may still wait
    assert eventually(lambda: events.came and events.came[-1].source.status == "ended")
    assert all(isinstance(each, SourceEvent) for each in events.came)
    assert client.upload(id, path.read_bytes(), realtime=True).source.realtime
    assert client.source.stop(id).source is None
    refused(403, "permission", client.source.set, id, "rtsp://127.0.0.1/1")
    refused(None, "invalid_request", client.upload, id, tmp_path / "none.mp4")


def test_snapshots(client: Any, kind: str, model: Model, tmp_path: Path):
    id = client.streams.create(fps=None).id
    show(client, id, 3)
    made = client.snapshots.create(id, kind)
    assert (made.name, made.stream, made.frames) == (kind, id, 3)
    assert client.snapshots.list() == [made]
    refused(409, "conflict", client.snapshots.create, id, kind)
    again = client.streams.create(snapshot=kind)
    assert client.ask(again.id, QUESTION, **SHORT).answer == expected(model, 3)
    refused(None, "storage", client.snapshots.download, kind, tmp_path / "no" / "folder")
    path = client.snapshots.download(kind, tmp_path / "a.state")
    assert path.stat().st_size == made.bytes
    assert "".join(Stream.load(model, path).ask(QUESTION, max_new_tokens=8)) == expected(model, 3)
    client.snapshots.delete(kind)
    refused(404, "not_found", client.snapshots.download, kind, path)
    assert path.stat().st_size == made.bytes and list(tmp_path.iterdir()) == [path]


def test_what_the_server_is(client: Any):
    assert (client.info().protocol, client.info().model) == (1, "tiny")


def test_keys(kind: str, model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with Served(model, tmp_path, keys=(KEY, OTHER)) as served:
        monkeypatch.delenv("INFINITEVL_API_KEY", raising=False)
        with both(kind, served.url) as nobody, both(kind, served.url, OTHER) as other:
            refused(401, "authentication", nobody.streams.list)
            refused(401, "authentication", nobody.ask_pieces("x", QUESTION).whole)
            refused(401, "authentication", lambda: nobody.live("stream-1").__enter__())
            monkeypatch.setenv("INFINITEVL_API_KEY", KEY)
            with both(kind, served.url) as owner:
                id = owner.streams.create().id
                refused(404, "not_found", other.streams.get, id)
                refused(404, "not_found", lambda: other.live(id).__enter__())
                with owner.live(id) as live:
                    assert live.stream.id == id


def test_a_server_that_is_not_there(kind: str):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    with both(kind, url) as client:
        assert url in refused(None, "connection", client.streams.list).message
        assert url in refused(None, "connection", lambda: client.live("stream-1").__enter__()).message


def test_one_that_is_another(kind: str, tmp_path: Path):
    class Proxy(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            page = b"<html>\nBad Gateway\n</html>"
            self.send_response(502 if "/v1/info" in self.path else 200)
            self.send_header("Content-Length", str(len(page) + ("/v1/snapshots" in self.path)))
            self.end_headers()
            self.wfile.write(page)
            self.close_connection = "/v1/snapshots" in self.path  # before its last byte

        def log_message(self, *_: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Proxy) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with both(kind, f"http://127.0.0.1:{server.server_port}") as client:
            refused(502, "protocol", client.info)
            refused(None, "protocol", client.streams.list)
            refused(None, "connection", client.snapshots.download, "one", tmp_path / "one.state")
            assert list(tmp_path.iterdir()) == []
            refused(200, "protocol", lambda: client.live("stream-1").__enter__())
        server.shutdown()


@pytest.mark.parametrize("url", ["", "127.0.0.1:8000", "ftp://a", "http://", "http://[::1"])
def test_what_is_no_address(url: str):
    refused(None, "invalid_request", Client, url)


def test_what_can_never_be_sent(client: Any):
    refused(None, "authentication", Client, "http://a", "kéy")
    refused(None, "authentication", Client, "http://a", "a\nb")
    for id in ("", ".", ".."):
        refused(None, "invalid_request", client.streams.delete, id)
    refused(404, "not_found", client.streams.get, "../streams?x=/é")


def test_this_machine_is_reached_without_a_proxy():
    assert Server.at("http://127.0.0.1:1/", None).local and Server.at("http://[::1]:1", None).local
    assert not Server.at("https://example.org", None).local
    assert Server.at("https://a/b/", None).socket("é/") == "wss://a/b/v1/streams/%C3%A9%2F/live"


def test_a_server_may_tell_more_but_not_less():
    from client_kit import STREAM

    assert build(Told, STREAM).stats.state_bytes == 1
    with pytest.raises(TypeError, match="id"):
        build(Told, {name: value for name, value in STREAM.items() if name != "id"})
