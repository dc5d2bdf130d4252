"""Sources that the server watches by itself: files, uploads, HTTP, RTSP; those that stall, drop and return."""

import io
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from server_kit import Served, eventually, fault, lines
from source_kit import RtspCamera, Site, camera, film, write_films

from infinitevl.model.modeling import InfiniteVLForConditionalGeneration as Model
from infinitevl.streaming.stream import Stream
from infinitevl.video.sources import open_video

RETRY = {"source_retry": (0.05, 0.2), "source_timeout": 1.0}


@pytest.fixture
def films(tmp_path: Path) -> Path:
    write_films(tmp_path / "films")
    return tmp_path / "films"


@pytest.fixture
def site() -> Iterator[Site]:
    site = Site()
    yield site
    site.close()


@pytest.fixture
def rtsp() -> Iterator[RtspCamera]:
    camera = RtspCamera()
    yield camera
    camera.close()


def watch(served: Served, id: str, url: str, realtime: bool = True) -> dict[str, Any]:
    response = served.http.put(f"/v1/streams/{id}/source", json={"url": url, "realtime": realtime})
    assert response.status_code == 200, response.text
    return response.json()["source"]


def until(served: Served, id: str, *statuses: str, seconds: float = 10.0) -> dict[str, Any]:
    """The source, when it has one of these statuses."""
    assert eventually(lambda: served.look(id)["source"]["status"] in statuses, seconds), served.look(id)["source"]
    return served.look(id)["source"]


def frames(served: Served, id: str) -> int:
    return served.look(id)["stats"]["frames"]


def expected(model: Model, source: Any) -> str:
    stream = Stream(model, fps=None)
    for at, frame in open_video(source):
        stream.see(frame, at)
    return "".join(stream.ask("What is it?", max_new_tokens=12))


def test_a_file_is_watched_whole(serve, films: Path, model: Model):
    served = serve(sources=(str(films),))
    id = served.open(source={"url": "film.mp4", "realtime": False}, name="film")
    assert until(served, id, "ended") == {"url": "film.mp4", "realtime": False, "status": "ended", "error": None}
    assert eventually(lambda: frames(served, id) == 6) and served.look(id)["stats"]["dropped"] == 0
    assert served.ask(id)["answer"] == expected(model, films / "film.mp4")


def test_a_file_can_be_played_at_its_own_speed(serve, films: Path):
    served = serve(sources=(str(films),))
    id = served.open()
    began = time.monotonic()
    watch(served, id, "film.mp4")
    assert until(served, id, "playing") and 0 < frames(served, id) < 6
    until(served, id, "ended")
    assert 1.2 <= time.monotonic() - began < 5
    assert eventually(lambda: frames(served, id) == 6)


def test_an_upload_is_watched(served: Served, stream: str, model: Model):
    response = served.http.post(f"/v1/streams/{stream}/video", content=film(20))
    assert response.status_code == 202 and response.json()["source"]["url"] == "upload"
    until(served, stream, "ended")
    assert eventually(lambda: frames(served, stream) == 20)
    assert served.ask(stream)["answer"] == expected(model, io.BytesIO(film(20)))
    assert eventually(lambda: not list(served.settings.uploads.iterdir())), "it is not kept"


@pytest.mark.parametrize("data", [b"no video at all", film()[:700]], ids=["text", "cut"])
def test_an_upload_that_cannot_be_read(served: Served, stream: str, data: bytes):
    assert served.http.post(f"/v1/streams/{stream}/video", content=data).status_code == 202
    source = until(served, stream, "failed")
    assert source["error"] and "/" not in source["error"], "no place of this machine is told"
    assert eventually(lambda: not list(served.settings.uploads.iterdir()))
    fault(served.http.post(f"/v1/streams/{stream}/video", content=b""), 400, "invalid_request")


def test_the_fortune_of_a_source_is_told(serve, films: Path):
    served = serve(sources=(str(films),))
    id = served.open()
    with served.http.stream("GET", f"/v1/streams/{id}/events") as events:
        watch(served, id, "film.mp4", realtime=False)
        told = lines(events)
        statuses = [next(told)["source"]["status"] for _ in range(2)]
    assert statuses == ["playing", "ended"]
    assert eventually(lambda: not served.hub.rooms[id].listeners)


def test_a_source_can_be_replaced_and_stopped(serve, films: Path):
    served = serve(sources=(str(films),))
    id = served.open()
    watch(served, id, "long.mp4")
    assert eventually(lambda: frames(served, id) > 1)
    watch(served, id, "film.mp4", realtime=False)
    until(served, id, "ended")
    assert eventually(lambda: rests(served, id)), "the first one does not go on"
    count = frames(served, id)
    response = served.http.delete(f"/v1/streams/{id}/source")
    assert response.status_code == 200 and response.json()["source"] is None
    time.sleep(0.6)
    assert frames(served, id) == count, "the first one does not go on"


def rests(served: Served, id: str) -> bool:
    """Whether no frame is seen for a while; those of a source that ended may still wait."""
    count = frames(served, id)
    time.sleep(0.6)
    return frames(served, id) == count


@pytest.mark.parametrize("data", [film(), film(late_index=False), film(kind="matroska"), film(kind="mpegts")])
def test_a_file_over_http(serve, site: Site, data: bytes, model: Model):
    site.pages["/a/film"] = data
    served = serve(sources=(f"{site.url}/a/",), **RETRY)
    id = served.open(source={"url": f"{site.url}/a/film", "realtime": False})
    until(served, id, "ended")
    assert eventually(lambda: frames(served, id) == 6)
    assert served.ask(id)["answer"] == expected(model, io.BytesIO(data))


def test_a_camera_over_http_ends_and_is_tried_again(serve, site: Site):
    site.pages["/camera"] = camera(5)
    served = serve(sources=(f"{site.url}/",), **RETRY)
    id = served.open(source={"url": f"{site.url}/camera"})
    assert eventually(lambda: len(site.asked) >= 3), "again and again"
    assert eventually(lambda: frames(served, id) > 5)
    served.http.delete(f"/v1/streams/{id}/source")
    time.sleep(0.5)
    count = len(site.asked)
    time.sleep(0.7)
    assert len(site.asked) == count


def test_a_camera_over_http_that_stalls_is_tried_again(serve, site: Site):
    site.pages["/camera"] = camera(60, after=site.over)
    served = serve(sources=(f"{site.url}/",), **RETRY)
    id = served.open(source={"url": f"{site.url}/camera"})
    until(served, id, "playing")
    assert until(served, id, "retrying")["error"]
    count = frames(served, id)
    site.pages["/camera"] = camera(1000)
    until(served, id, "playing")
    assert eventually(lambda: frames(served, id) > count + 3)


def test_a_camera_that_is_not_there_yet(serve, site: Site):
    served = serve(sources=(f"{site.url}/",), **RETRY)
    id = served.open(source={"url": f"{site.url}/camera"})
    assert "404" in until(served, id, "retrying")["error"]
    site.pages["/camera"] = camera(1000)
    until(served, id, "playing")


def test_rtsp(serve, rtsp: RtspCamera):
    served = serve(sources=(f"rtsp://{rtsp.host}/",), **RETRY)
    id = served.open(source={"url": rtsp.url.replace("rtsp://", "rtsp://me:secret@")})
    source = until(served, id, "playing")
    assert source["url"] == rtsp.url, "without the password"
    assert eventually(lambda: frames(served, id) > 5)
    assert "secret" not in served.http.get(f"/v1/streams/{id}").text


@pytest.mark.parametrize("mode", ["drop", "stall"])
def test_rtsp_that_goes_and_comes_back(serve, rtsp: RtspCamera, mode: str):
    rtsp.mode, rtsp.count = mode, 40  # more than FFmpeg takes to know what it is
    served = serve(sources=(f"rtsp://{rtsp.host}/",), **RETRY)
    id = served.open(source={"url": rtsp.url})
    until(served, id, "playing")
    rtsp.mode = "refuse" if mode == "drop" else mode
    assert until(served, id, "retrying")["error"]
    count, seconds = frames(served, id), served.look(id)["stats"]["seconds"]
    rtsp.mode = "play"
    until(served, id, "playing")
    assert eventually(lambda: frames(served, id) > count + 3)
    assert served.look(id)["stats"]["seconds"] > seconds, "the clock goes on"


def test_a_file_goes_on_after_a_restart_without_a_frame_lost_or_twice(serve, films: Path, model: Model):
    (films / "minute.mp4").write_bytes(film(240))
    served = serve(sources=(str(films),))
    id = served.open(source={"url": "minute.mp4", "realtime": False})
    assert eventually(lambda: frames(served, id) > 5)
    served.stop()
    again = serve(sources=(str(films),))
    assert 5 < frames(again, id) < 200, "it was in the middle"
    assert until(again, id, "ended", seconds=20)
    assert eventually(lambda: frames(again, id) == 240)
    assert again.ask(id)["answer"] == expected(model, films / "minute.mp4")


def test_a_deleted_stream_lets_go_of_its_source(serve, rtsp: RtspCamera):
    served = serve(sources=(f"rtsp://{rtsp.host}/",), **RETRY)
    id = served.open(source={"url": rtsp.url})
    until(served, id, "playing")
    before = {thread.name for thread in threading.enumerate()}
    assert "infinitevl source" in before
    served.http.delete(f"/v1/streams/{id}")
    assert eventually(lambda: "infinitevl source" not in {thread.name for thread in threading.enumerate()}, 5)
