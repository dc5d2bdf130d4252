"""What goes wrong ends as documented: nothing else suffers, and nothing is lost that was acknowledged."""

import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from server_kit import KEY, OTHER, Served, encoded, eventually, fault, lines, live, picture
from test_server_live import closed

from infinitevl.engine.store import Store
from infinitevl.model.modeling import InfiniteVLForConditionalGeneration as Model

ENOSPC = OSError(errno.ENOSPC, "No space left on device")


def show(served: Served, id: str, count: int) -> None:
    for index in range(count):
        assert served.see(id, picture(index), index / 2)["result"] == "seen"


# Going down and coming back


def test_a_restart_brings_everything_back(serve):
    served = serve(keys=(KEY,))
    id = served.open(name="gate", fps=4.0, max_pixels=3136)
    show(served, id, 4)
    answer = served.ask(id)
    watch = served.http.post(f"/v1/streams/{id}/watches", json={"question": "Is it open?", "every": 100}).json()
    served.http.post(f"/v1/streams/{id}/snapshots", json={"name": "kept"})
    before = served.look(id)
    served.stop()
    again = serve(keys=(KEY, OTHER))
    after = again.look(id)
    assert {**after, "saved": 0, "stats": 0, "place": 0} == {**before, "saved": 0, "stats": 0, "place": 0}
    assert after["stats"]["frames"] == 4 == after["saved"]["frames"] and after["place"] == "disk"
    assert after["stats"]["seconds"] == before["stats"]["seconds"]
    assert again.http.get(f"/v1/streams/{id}/answers").json()["data"] == [answer]
    assert again.http.get(f"/v1/streams/{id}/watches").json()["data"] == [watch]
    assert again.ask(id)["answer"] == answer["answer"]
    assert [each["name"] for each in again.http.get("/v1/snapshots").json()["data"]] == ["kept"]
    again.see(id, picture(9), 100.0)
    assert eventually(lambda: again.http.get(f"/v1/streams/{id}/watches").json()["data"][0]["asked"] == 1)


def test_going_down_ends_everything_in_order(serve):
    served = serve(heartbeat=0.1)
    id = served.open()
    show(served, id, 2)
    told: dict[str, Any] = {}

    def read(name: str, method: str, path: str, given: Any) -> None:
        with served.client(None) as client, client.stream(method, path, json=given) as response:
            told[name] = list(lines(response))

    asked = {"question": "?", "max_tokens": 4000, "stream": True}
    chat = {"model": "tiny", "messages": [{"role": "user", "content": "?"}], "max_tokens": 4000, "stream": True}
    reads = [
        ("answer", "POST", f"/v1/streams/{id}/ask", asked), ("chat", "POST", "/v1/chat/completions", chat),
        ("events", "GET", f"/v1/streams/{id}/events", None),
    ]  # fmt: skip
    threads = [threading.Thread(target=read, args=each) for each in reads]
    with live(served, id) as talk:
        talk.send({"type": "ask", "id": "q", "question": "?", "max_tokens": 4000})
        [thread.start() for thread in threads]
        assert eventually(lambda: served.hub.engine.load()["answers"] == 3)
        assert eventually(lambda: served.hub.rooms[id].listeners and len(served.hub.rooms[id].listeners) == 2)
        began = time.monotonic()
        served.stop()
        assert time.monotonic() - began < 8
        assert closed(talk.socket) == 1012
    [thread.join(10) for thread in threads]
    assert told["events"] == [] and told["answer"][-2]["answer"]["finish_reason"] == "cancelled"
    assert told["chat"][-1]["error"]["type"] == "overloaded_error"
    stored = Store(str(served.settings.folder)).look("streams", id)
    assert stored.frames == 2, "parked"


def test_while_it_goes_down_nothing_new_begins(serve):
    served = serve()
    id = served.open()
    served.hub.stopping = True
    for method, path in (("GET", "/v1/streams"), ("POST", "/v1/streams"), ("POST", f"/v1/streams/{id}/ask")):
        response = served.http.request(method, path, json={})
        fault(response, 503, "overloaded")
        assert response.headers["retry-after"]
    health = served.http.get("/healthz")
    assert (health.status_code, health.json()["status"]) == (503, "stopping")


def test_an_upload_goes_on_after_a_restart(serve):
    from source_kit import film

    served = serve()
    id = served.open()
    assert served.http.post(f"/v1/streams/{id}/video?realtime=true", content=film(12)).status_code == 202
    assert eventually(lambda: served.look(id)["stats"]["frames"] > 2)
    served.stop()
    assert len(list(served.settings.uploads.iterdir())) == 1
    again = serve()
    assert again.look(id)["stats"]["frames"] < 12
    assert eventually(lambda: again.look(id)["source"]["status"] == "ended", 10)
    assert eventually(lambda: not list(again.settings.uploads.iterdir()))


def test_sources_of_a_key_that_is_gone_stay_closed(serve, tmp_path: Path):
    from source_kit import write_films

    write_films(tmp_path / "films")
    served = serve(keys=(KEY,), sources=(str(tmp_path / "films"),))
    id = served.open(source={"url": "long.mp4"})
    assert eventually(lambda: served.look(id)["stats"]["frames"] > 1)
    served.stop()
    again = serve(keys=(OTHER,), sources=(str(tmp_path / "films"),))
    assert again.hub.rooms[id].puller is None
    fault(again.http.get(f"/v1/streams/{id}"), 404, "not_found")
    again.stop()
    back = serve(keys=(KEY,), sources=())
    source = back.look(id)["source"]
    assert source["status"] == "failed" and "--allow-source" in source["error"], "this one allows less"


@pytest.fixture(scope="module")
def checkpoint(model: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint") / "tiny"
    model.save_pretrained(folder)
    model.processor.save_pretrained(folder)
    return folder


@pytest.fixture
def start(checkpoint: Path, tmp_path: Path) -> Iterator[Callable[..., tuple[subprocess.Popen[str], httpx.Client]]]:
    """`infinitevl serve` as a process, on one folder."""
    running: list[subprocess.Popen[str]] = []

    def begin(*options: str) -> tuple[subprocess.Popen[str], httpx.Client]:
        command = [sys.executable, "-c", "from infinitevl.cli import main; main()", "serve", "--port", "0"]
        more = ["--model", str(checkpoint), "--device", "cpu", "--state-dir", str(tmp_path / "state")]
        process = subprocess.Popen([*command, *more, *options], stdout=subprocess.PIPE, text=True)
        running.append(process)
        assert process.stdout
        line = process.stdout.readline()
        assert line.startswith("infinitevl serving tiny at http://127.0.0.1:"), line
        return process, httpx.Client(base_url=line.split()[-1], timeout=20)

    yield begin
    for process in running:
        process.kill()
        process.wait()


def test_kill_9_loses_nothing_that_was_acknowledged(start, serve, tmp_path: Path):
    process, client = start("--save-every", "0.2")
    id = client.post("/v1/streams", json={"name": "gate", "fps": None}).json()["id"]
    path = f"/v1/streams/{id}"
    for index in range(3):
        given = {"params": {"time": index}, "content": encoded(picture(index))}
        assert client.post(f"{path}/frames", **given).json()["result"] == "seen"
    assert eventually(lambda: client.get(path).json()["saved"]["frames"] == 3)
    watch = client.post(f"{path}/watches", json={"question": "?", "every": 1000}).json()
    assert client.post(f"{path}/snapshots", json={"name": "kept"}).status_code == 201
    fork = client.post(f"{path}/fork").json()["id"]
    answer = client.post(f"{path}/ask", json={"question": "?", "max_tokens": 8}).json()["answer"]
    assert os.stat(tmp_path / "state").st_mode & 0o077 == 0, "the folder is the server's alone"
    process.send_signal(signal.SIGKILL)
    process.wait()
    served = serve()
    streams = {stream["id"]: stream for stream in served.http.get("/v1/streams").json()["data"]}
    assert streams.keys() == {id, fork} and streams[id]["name"] == "gate"
    assert streams[id]["stats"]["frames"] == 3 == streams[fork]["stats"]["frames"]
    assert served.http.get(f"{path}/watches").json()["data"] == [watch]
    assert [each["name"] for each in served.http.get("/v1/snapshots").json()["data"]] == ["kept"]
    assert served.ask(id, "?", max_tokens=8)["answer"] == answer
    assert served.see(id, picture(3), 3.0)["result"] == "seen"


def test_a_signal_parks_every_stream(start, serve):
    process, client = start("--save-every", "1000")
    id = client.post("/v1/streams", json={"fps": None}).json()["id"]
    assert client.post(f"/v1/streams/{id}/frames", content=encoded(picture(0))).json()["result"] == "seen"
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 0
    assert serve().look(id)["stats"]["frames"] == 1


# The disk


def full(monkeypatch: pytest.MonkeyPatch, served: Served) -> Callable[[], None]:
    """Nothing can be written from here on; call to make room again."""
    from infinitevl.model.state import State

    def save(*_: Any) -> None:
        raise ENOSPC

    monkeypatch.setattr(State, "save", save)
    return monkeypatch.undo


def test_a_full_disk(serve, monkeypatch: pytest.MonkeyPatch):
    served = serve()
    id = served.open()
    show(served, id, 2)
    assert served.http.post(f"/v1/streams/{id}/snapshots", json={"name": "before"}).status_code == 201
    again = full(monkeypatch, served)
    snapshot = served.http.post(f"/v1/streams/{id}/snapshots", json={"name": "after"})
    assert "space" in fault(snapshot, 507, "storage")
    fault(served.http.post("/v1/streams", json={}), 507, "storage")
    fault(served.http.post(f"/v1/streams/{id}/fork"), 507, "storage")
    fault(served.http.post(f"/v1/streams/{id}/watches", json={"question": "?"}), 507, "storage")
    assert served.http.get(f"/v1/streams/{id}/watches").json()["data"] == []
    assert served.see(id, picture(2), 5.0)["result"] == "seen" and served.ask(id)["answer"]
    names = [each["name"] for each in served.http.get("/v1/snapshots").json()["data"]]
    assert names == ["before"] and len(served.http.get("/v1/streams").json()["data"]) == 1
    again()
    assert served.http.post(f"/v1/streams/{id}/snapshots", json={"name": "after"}).status_code == 201
    assert not list(served.settings.folder.rglob("*.partial*"))


def test_an_upload_that_the_disk_has_no_room_for(served: Served, stream: str, monkeypatch: pytest.MonkeyPatch):
    from infinitevl.server import streams

    def append(*_: Any) -> None:
        raise ENOSPC

    monkeypatch.setattr(streams, "_append", append)
    assert "full" in fault(served.http.post(f"/v1/streams/{stream}/video", content=b"x" * 100), 507, "storage")
    assert not list(served.settings.uploads.iterdir()) and served.look(stream)["source"] is None


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "text"])
def test_a_damaged_snapshot(serve, damage: str):
    served = serve()
    id = served.open()
    show(served, id, 2)
    for name in ("good", "bad"):
        assert served.http.post(f"/v1/streams/{id}/snapshots", json={"name": name}).status_code == 201
    path = served.settings.folder / "snapshots" / "everybody.bad.safetensors"
    data = path.read_bytes()
    path.write_bytes(
        {"cut": data[: len(data) // 2], "flipped": b"\xff" * 8 + data[8:], "empty": b"", "text": b"hello" * 9}[damage]
    )
    line = fault(served.http.post("/v1/streams", json={"snapshot": "bad"}), 507, "storage")
    assert "snapshot bad" in line and str(served.settings.folder) not in line and "everybody" not in line
    assert "good" in [each["name"] for each in served.http.get("/v1/snapshots").json()["data"]]
    assert served.ask(served.open(snapshot="good"))["answer"] == served.ask(id)["answer"]
    assert served.http.delete("/v1/snapshots/bad").status_code == 204


def test_a_damaged_stream_is_left_out_and_the_others_go_on(serve):
    served = serve()
    good, bad = served.open(), served.open()
    show(served, good, 2)
    served.stop()
    path = served.settings.folder / "streams" / f"{bad}.safetensors"
    path.write_bytes(path.read_bytes()[:100])
    again = serve()
    assert [stream["id"] for stream in again.http.get("/v1/streams").json()["data"]] == [good]
    assert again.look(good)["stats"]["frames"] == 2 and path.exists()


# Clients


def test_a_client_that_vanishes_in_the_middle_of_an_upload(served: Served, stream: str):
    import socket

    host, port = served.place.split(":")
    client = socket.create_connection((host, int(port)))
    head = f"POST /v1/streams/{stream}/video HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 1000000\r\n\r\n"
    client.sendall(head.encode() + bytes(500_000))
    assert eventually(lambda: list(served.settings.uploads.iterdir()))
    client.close()
    assert eventually(lambda: not list(served.settings.uploads.iterdir()))
    assert served.look(stream)["source"] is None


@pytest.mark.parametrize("streamed", [True, False])
def test_a_client_that_vanishes_in_the_middle_of_an_answer(served: Served, stream: str, streamed: bool):
    show(served, stream, 1)
    with served.client(None) as client:
        given = {"question": "?", "max_tokens": 4000, "stream": streamed}
        request = client.build_request("POST", f"/v1/streams/{stream}/ask", json=given, timeout=0.4)
        if streamed:
            response = client.send(request, stream=True)
            next(response.iter_lines())
            response.close()
        else:
            with pytest.raises(httpx.ReadTimeout):
                client.send(request)
    assert eventually(lambda: not served.hub.engine.load()["answers"], 5)
    last = lambda: served.http.get(f"/v1/streams/{stream}/answers").json()["data"][-1]  # noqa: E731
    assert eventually(lambda: last()["finish_reason"] == "cancelled")
    assert sum(served.hub._questions.values()) == 0


def test_a_reader_of_an_answer_who_stops_reading_holds_up_nobody(served: Served, stream: str):
    show(served, stream, 1)
    given = {"question": "?", "max_tokens": 300, "stream": True}
    with served.client(None) as client, client.stream("POST", f"/v1/streams/{stream}/ask", json=given):
        assert served.see(stream, picture(5), 50.0)["result"] == "seen"
        assert served.ask(stream)["finish_reason"] == "length"


def test_an_answer_that_fails_is_told_and_the_stream_goes_on(
    served: Served, stream: str, monkeypatch: pytest.MonkeyPatch
):
    show(served, stream, 1)
    runner = served.hub.engine._loop.runner

    def broken(*_: Any) -> None:
        raise RuntimeError("out of memory\nat /secret/place.py")

    monkeypatch.setattr(runner, "write", broken)
    failed = served.ask(stream)
    assert failed["finish_reason"] == "error" and "secret" not in json.dumps(failed)
    chat = {"model": "tiny", "messages": [{"role": "user", "content": "?"}]}
    fault(served.http.post("/v1/chat/completions", json=chat), 500, "server")
    monkeypatch.undo()
    assert served.ask(stream)["finish_reason"] == "length"


def test_what_nobody_thought_of_is_500_without_details(served: Served, monkeypatch: pytest.MonkeyPatch):
    def broken(*_: Any) -> None:
        raise RuntimeError("secret")

    monkeypatch.setattr(served.hub, "rooms_of", broken)
    assert "secret" not in fault(served.http.get("/v1/streams"), 500, "server")
    monkeypatch.undo()
    assert served.http.get("/v1/streams").status_code == 200
