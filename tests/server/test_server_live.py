"""The WebSocket: frames are acknowledged once each, questions are answered meanwhile, ends are as documented."""

import json
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from server_kit import KEY, OTHER, Served, encoded, eventually, live, picture
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from infinitevl.model.modeling import InfiniteVLForConditionalGeneration as Model
from infinitevl.streaming.stream import Stream

CLOSED_1013 = bytes([0x88, 2]) + (1013).to_bytes(2, "big")  # a frame of RFC 6455


def closed(connection: Any) -> int:
    """The code with which the server closes."""
    with pytest.raises(ConnectionClosed) as caught:
        while True:
            connection.recv(timeout=15)
    assert caught.value.rcvd is not None
    return caught.value.rcvd.code


def test_every_frame_is_acknowledged_and_seen_as_given(served: Served, stream: str, model: Model):
    mine = Stream(model, fps=None)
    with live(served, stream) as talk:
        for index in range(6):
            frame = picture(index)
            mine.see(frame, index / 4)
            talk.send({"type": "frame", "time": index / 4})
            talk.send(encoded(frame))
            told = talk.get("frame", number=index + 1)
            assert (told["result"], told["time"], told["message"]) == ("seen", index / 4, None) and told["lag_ms"] > 0
        talk.send({"type": "ask", "id": "q", "question": "What is it?", "max_tokens": 12})
        answer = talk.get("answer", id="q")["answer"]
    assert answer["answer"] == "".join(mine.ask("What is it?", max_new_tokens=12))
    assert answer["frames"] == 6 and served.http.get(f"/v1/streams/{stream}/answers").json()["data"] == [answer]


def test_raw_frames(served: Served, stream: str, model: Model):
    mine, frame = Stream(model, fps=None), picture(1)
    mine.see(frame, 0.0)
    with live(served, stream) as talk:
        talk.send({"type": "frame", "time": 0.0, "format": "rgb24", "width": 84, "height": 56})
        talk.send(frame.tobytes())
        assert talk.get("frame")["result"] == "seen"
        talk.send({"type": "ask", "id": "q", "question": "What is it?", "max_tokens": 12})
        assert talk.get("answer")["answer"]["answer"] == "".join(mine.ask("What is it?", max_new_tokens=12))


def test_more_frames_than_can_be_taken_are_dropped_and_each_is_told(served: Served, stream: str):
    data = encoded(picture(0, 400, 600))
    with live(served, stream) as talk:
        for index in range(60):
            talk.send({"type": "frame", "time": index / 30})
            talk.send(data)
        told = [talk.get("frame", number=number) for number in range(1, 61)]
    results = [each["result"] for each in told]
    assert set(results) == {"seen", "dropped"} and results[-1] == "seen", "the newest is kept"
    stats = served.look(stream)["stats"]
    assert (stats["frames"], stats["dropped"]) == (results.count("seen"), results.count("dropped"))


@pytest.mark.parametrize(
    ("header", "data", "why"),
    [
        (None, b"not a picture", "not a JPEG, PNG or WebP"),
        (None, encoded(picture(0), "JPEG")[:2000], "truncated"),
        (None, encoded(picture(0), "BMP"), "not a JPEG, PNG or WebP"),
        (None, b"", "not a JPEG, PNG or WebP"),
        (None, encoded(np.zeros((1, 16_385, 3), np.uint8)), "larger than the limit"),
        (None, encoded(np.zeros((2, 2000, 3), np.uint8)), "200"),
        ({"format": "rgb24", "width": 84, "height": 56}, b"123", "14112 bytes, not 3"),
        ({"format": "rgb24", "width": 10**6, "height": 10**6}, b"123", "larger than the limit"),
        ({"format": "rgb24"}, b"123", "width and height"),
    ],
)  # fmt: skip
def test_what_is_no_frame_is_refused_and_the_connection_goes_on(
    served: Served, stream: str, header: Any, data: bytes, why: str
):
    with live(served, stream) as talk:
        if header:
            talk.send({"type": "frame", **header})
        talk.send(data)
        told = talk.get("frame", number=1)
        assert told["result"] == "refused" and why in told["message"] and "\n" not in told["message"]
        talk.send(encoded(picture(0)))
        assert talk.get("frame", number=2)["result"] == "seen"
    posted = served.http.post(f"/v1/streams/{stream}/frames", content=data).json()
    assert posted["result"] == "refused" and posted["message"]


@pytest.mark.parametrize(
    "text",
    [
        "{", "[]", "5", '{"type": "nothing"}', '{"type": "ask", "id": "q"}', '{"type": "ask", "question": "?"}',
        '{"type": "frame", "time": NaN}', '{"type": "frame", "format": "yuv"}', "[" * 100_000,
        '{"type": "ask", "id": "q", "question": "?", "max_tokens": 1000000}',
        '{"type": "ask", "id": "q", "question": "\\ud800"}',
    ],
)  # fmt: skip
def test_messages_that_cannot_be_used(served: Served, stream: str, text: str):
    with live(served, stream) as talk:
        talk.socket.send(text)
        error = talk.get("error")
        assert error["message"] and error["code"] in ("invalid_request", "too_large")
        assert error.get("id") == ("q" if '"id": "q"' in text else None)
        talk.send(encoded(picture(0)))
        assert talk.get("frame")["result"] == "seen"


def test_frames_go_on_while_an_answer_is_written_and_it_can_be_cancelled(served: Served, stream: str):
    with live(served, stream) as talk:
        talk.send({"type": "ask", "id": "long", "question": "?", "max_tokens": 4000})
        talk.get("delta", id="long")
        talk.send({"type": "ask", "id": "long", "question": "again?"})
        assert "id" in talk.get("error", id="long")["message"]
        for index in range(5):
            talk.send(encoded(picture(index)))
            assert talk.get("frame", number=index + 1)["result"] == "seen"
        talk.send({"type": "cancel", "id": "nobody's"})
        talk.send({"type": "cancel", "id": "long"})
        answer = talk.get("answer", id="long")["answer"]
    assert answer["finish_reason"] == "cancelled" and answer["answer"] and answer["frames"] == 0
    assert 0 < answer["usage"]["completion_tokens"] < 4000


def test_a_client_that_goes_leaves_nothing_behind(served: Served, stream: str):
    with live(served, stream) as talk:
        talk.send({"type": "ask", "id": "long", "question": "?", "max_tokens": 4000})
        talk.get("delta")
        talk.send(encoded(picture(0)))
    assert eventually(lambda: not served.hub.engine.load()["answers"], 5)
    assert not served.hub.rooms[stream].listeners
    assert served.http.get(f"/v1/streams/{stream}/answers").json()["data"][-1]["finish_reason"] == "cancelled"
    assert served.ask(stream)["finish_reason"] == "length"


def test_a_client_that_vanishes_in_the_middle_of_a_frame(served: Served, stream: str):
    data = encoded(picture(0, 600, 600))
    header = bytes([0x82, 0x80 | 127]) + len(data).to_bytes(8, "big") + bytes(4)
    with live(served, stream) as talk:
        talk.socket.socket.sendall(header + data[: len(data) // 2])
        talk.socket.socket.close()
    assert eventually(lambda: not served.hub.rooms[stream].listeners)
    assert served.look(stream)["stats"]["frames"] == 0
    assert served.see(stream, picture(0))["result"] == "seen"


def test_a_deleted_stream_sends_its_clients_away(served: Served):
    id = served.open()
    with live(served, id) as talk:
        served.http.delete(f"/v1/streams/{id}")
        assert closed(talk.socket) == 4404


def test_messages_above_the_limit(serve):
    served = serve(max_body=10_000)
    id = served.open()
    with live(served, id) as talk:
        talk.send(bytes(10_001))
        assert closed(talk.socket) == 1009
    with live(served, id) as talk:
        talk.send(encoded(picture(0, 28, 28)))
        assert talk.get("frame")["result"] == "seen"


@contextmanager
def silent_reader(served: Served, id: str) -> Iterator[socket.socket]:
    """A WebSocket that is not read by anybody."""
    host, port = served.place.split(":")
    with socket.create_connection((host, int(port)), timeout=10) as client:
        client.sendall(
            f"GET /v1/streams/{id}/live HTTP/1.1\r\nHost: {served.place}\r\nConnection: Upgrade\r\nUpgrade: websocket"
            "\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n".encode()
        )
        yield client


def test_a_slow_reader_is_sent_away_and_others_do_not_wait(served: Served, stream: str):
    room = served.hub.rooms[stream]
    with live(served, stream) as good, silent_reader(served, stream) as slow:
        assert eventually(lambda: len(room.listeners) == 2)
        until = time.monotonic() + 15
        while len(room.listeners) > 1 and time.monotonic() < until:
            served.hub.soon(lambda: [room.say({"type": "watch", "text": "x" * 20_000}) for _ in range(50)])
            for _ in range(50):
                good.get("watch")
        assert len(room.listeners) == 1
        good.send(encoded(picture(0)))
        assert good.get("frame")["result"] == "seen"
        end = b""
        while not end.endswith(CLOSED_1013) and (piece := slow.recv(65_536)):
            end = end[-10:] + piece
        assert end.endswith(CLOSED_1013)


def test_who_may_connect(serve):
    served = serve(keys=(KEY, OTHER))
    id = served.open()
    with served.connect(id, key="wrong-key-wrong") as connection:
        assert closed(connection) == 4401
    with connect(f"ws://{served.place}/v1/streams/{id}/live") as connection:
        assert closed(connection) == 4401
    with served.connect(id, key=OTHER) as connection:
        assert closed(connection) == 4404
    with served.connect("stream-none") as connection:
        assert closed(connection) == 4404
    protocols: Any = ["infinitevl.v1", f"bearer.{KEY}"]
    with connect(f"ws://{served.place}/v1/streams/{id}/live", subprotocols=protocols) as connection:
        assert json.loads(connection.recv())["type"] == "hello" and connection.subprotocol == "infinitevl.v1"


def test_a_page_of_another_site_cannot_connect(served: Served, stream: str):
    with pytest.raises(InvalidStatus) as refused:
        served.connect(stream, origin="http://evil.example").__enter__()
    assert refused.value.response.status_code == 403
    with served.connect(stream, origin=f"http://{served.place}") as connection:
        assert json.loads(connection.recv())["type"] == "hello"
