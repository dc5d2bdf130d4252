"""Live connections: against the real server, and against ones that do what a real one seldom does."""

import asyncio
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from client_kit import Client, Fake, Served, both, encoded, eventually, fake, picture
from test_client import QUESTION, SHORT, expected, refused

from infinitevl.client import WatchEvent
from infinitevl.client.awaiting import AsyncLive
from infinitevl.client.blocking import Live
from infinitevl.errors import FrameError
from infinitevl.model.modeling import InfiniteVLForConditionalGeneration as Model


@pytest.mark.parametrize("raw", [True, False])
def test_frames_and_questions(client: Any, model: Model, raw: bool):
    id, came = client.streams.create(fps=None).id, []
    with client.live(id, raw=raw, told=came.append) as live:
        assert live.stream.id == id
        for index in range(3):  # both without loss
            number = live.send(picture(index) if raw else encoded(picture(index)), index / 2)
            assert number == index + 1
        live.drain()
        assert [(each.number, each.result, each.time) for each in came] == [(i + 1, "seen", i / 2) for i in range(3)]
        pieces = live.ask(QUESTION, **SHORT)
        assert "".join(pieces) == expected(model, 3) == pieces.answer.answer
        both_at_once = [live.ask(QUESTION, **SHORT), live.ask(QUESTION, max_tokens=2)]
        assert [each.whole().usage.completion_tokens for each in both_at_once] == [8, 2]
        refused(413, "too_large", live.ask(QUESTION, max_tokens=10**6).whole)
        assert live.send(picture(3)) == 4
    assert live.counts == {"seen": 4} and client.streams.get(id).stats.frames == 4


def test_arrays_go_as_jpeg_and_bad_ones_not_at_all(client: Any):
    id, came = client.streams.create(fps=None).id, []
    with client.live(id, told=came.append) as live:
        live.send(picture(0)[..., 0], 0.0)
        live.send(b"no picture", 0.5)
        with pytest.raises(FrameError):
            live.send(picture(0) / 255.0)
        live.send(picture(1), 1.0)
    came.sort(key=lambda told: told.number)
    assert [each.result for each in came] == ["seen", "refused", "seen"] and came[1].message


def test_an_answer_can_be_cancelled(client: Any):
    id = client.streams.create().id
    with client.live(id) as live:
        pieces = live.ask(QUESTION, max_tokens=4000)
        assert next(pieces)
        pieces.close()
        assert eventually(lambda: client.answers(id))
        assert client.answers(id)[0].finish_reason == "cancelled"
        assert live.ask(QUESTION, **SHORT).whole().finish_reason == "length"  # the connection goes on


def test_events_come_too(client: Any):
    id, came = client.streams.create(fps=None).id, []
    client.watches.create(id, QUESTION, every=1.0, max_tokens=4)
    with client.live(id, told=came.append) as live:
        live.send(picture(0))
        assert eventually(lambda: any(isinstance(each, WatchEvent) for each in came))


def test_a_deleted_stream_and_a_server_that_goes_down(kind: str, model: Model, tmp_path: Path):
    with Served(model, tmp_path) as served, both(kind, served.url) as client:
        gone, left = client.streams.create(fps=None).id, client.streams.create(fps=None).id
        live, other = client.live(gone).__enter__(), client.live(left).__enter__()
        client.streams.delete(gone)
        refused(404, "not_found", send_on, live)
        pieces = other.ask(QUESTION, max_tokens=4000)
        text = [next(pieces)]
        served.running.uvicorn.should_exit = True
        refused(503, "overloaded", send_on, other)
        text += ended(pieces)  # what came before is not lost
        assert text[0]
        for each in (live, other):
            each.close()


def send_on(live: Any) -> None:
    for index in range(500):
        live.send(picture(0), float(index))
        time.sleep(0.01)


def ended(pieces: Any) -> Any:
    """The pieces up to the end, or to the loss of the connection."""
    try:
        yield from pieces
    except Exception as error:
        assert getattr(error, "status", None) == 503


def test_no_more_frames_are_on_the_way_than_allowed(kind: str):
    came, go = [], threading.Semaphore(0)

    def talk(server: Fake) -> None:
        for number in range(1, 8):
            came.append(server.frame())
            if number >= 3:
                go.acquire()
                server.acknowledge(number - 2)
        for number in (6, 7):
            server.acknowledge(number, "dropped")

    with fake(talk) as url, both(kind, url) as client, client.live("stream-1", ahead=3) as live:
        sender = threading.Thread(target=lambda: [live.send(b"x", 0.5) for _ in range(7)])
        sender.start()
        for number in range(3, 8):
            assert eventually(lambda number=number: len(came) == number)
            time.sleep(0.02)
            assert len(came) == number  # the next one waits
            go.release()
        sender.join(10)
        live.drain()
        assert live.counts == {"seen": 5, "dropped": 2}
        assert came == [b"x"] * 7


def lost(server: Fake) -> None:
    server.asked()
    server.say(type="delta", id="q1", text="a ")
    server.vanish()


def test_a_lost_connection_ends_everything_that_waits(kind: str):
    with fake(lost) as url, both(kind, url) as client:
        live = client.live("stream-1").__enter__()
        live.send(b"x")
        pieces = live.ask(QUESTION)
        assert next(pieces) == "a "
        error = refused(None, "connection", pieces.whole)
        assert "lost" in error.message
        for call in (live.drain, lambda: live.send(b"x"), lambda: live.ask(QUESTION)):
            assert refused(None, "connection", call).message == error.message
        refused(None, "connection", live.__exit__, None, None, None)
        live.close()


def test_leaving_after_an_error_does_not_hide_it(kind: str):
    with fake(lambda server: server.frame() and time.sleep(0.2)) as url, both(kind, url) as client:
        with pytest.raises(ZeroDivisionError), client.live("stream-1") as live:
            live.send(b"x")  # never acknowledged
            raise ZeroDivisionError
        assert refused(None, "connection", live.send, b"x").message == "the connection is closed"


@pytest.mark.parametrize(
    ("say", "status", "error"),
    [
        (lambda server: server.connection.send("no JSON"), None, "protocol"),
        (lambda server: server.say(type="frame", number=1), None, "protocol"),
        (lambda server: server.say(type="error", message="a bad\nmessage", code="invalid_request"), 400,
         "invalid_request"),
        (lambda server: server.connection.close(1009), 413, "too_large"),
        (lambda server: server.connection.close(1013), None, "connection"),
        (lambda server: server.connection.close(1011, "oh"), None, "connection"),
    ],
)  # fmt: skip
def test_what_a_server_should_not_say(kind: str, say: Callable[[Fake], None], status: int | None, error: str):
    def talk(server: Fake) -> None:
        server.say(type="news of a later version")
        say(server)
        time.sleep(0.3)

    with fake(talk) as url, both(kind, url) as client:
        live = client.live("stream-1", ahead=1000).__enter__()
        refused(status, error, send_on, live)
        live.close()


def test_what_ended_it_first_is_told_to_who_was_about_to_send(kind: str, monkeypatch: pytest.MonkeyPatch):
    sending, transmit, transmit_async = threading.Event(), Live._transmit, AsyncLive._transmit

    def late(live: Live, *parts: Any) -> None:
        sending.set()
        live._reader.join()
        transmit(live, *parts)

    async def late_async(live: AsyncLive, *parts: Any) -> None:
        sending.set()
        await asyncio.wait({live._reader})
        await transmit_async(live, *parts)

    def talk(server: Fake) -> None:
        assert sending.wait(10)
        server.connection.send("no JSON")
        time.sleep(0.3)

    monkeypatch.setattr(Live, "_transmit", late)
    monkeypatch.setattr(AsyncLive, "_transmit", late_async)
    with fake(talk) as url, both(kind, url) as client:
        live = client.live("stream-1").__enter__()
        refused(None, "protocol", live.send, b"x")
        live.close()


def test_what_the_listener_raises_comes_out(kind: str):
    def told(_: Any) -> None:
        raise ZeroDivisionError

    def talk(server: Fake) -> None:
        server.frame()
        server.acknowledge(1)
        time.sleep(0.3)

    with fake(talk) as url, both(kind, url) as client:
        live = client.live("stream-1", told=told).__enter__()
        live.send(b"x")
        with pytest.raises(ZeroDivisionError):
            live.drain()
        live.close()


def test_threads_share_a_connection(served: Served):
    with Client(served.url) as client:
        id = client.streams.create(fps=None).id
        with client.live(id, ahead=4, raw=True) as live:
            threads = [threading.Thread(target=lambda: [live.send(picture(i)) for i in range(8)]) for _ in range(3)]
            threads += [threading.Thread(target=lambda: live.ask(QUESTION, **SHORT).whole()) for _ in range(3)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(20)
        assert sum(live.counts.values()) == 24 and "refused" not in live.counts
        assert len(client.answers(id)) == 3
        client.streams.delete(id)
