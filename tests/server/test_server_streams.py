"""A stream's life over HTTP: it answers as `Stream` does, and every path does what the protocol says."""

import time
from typing import Any

import httpx
import numpy as np
import pytest
from server_kit import NAME, Served, encoded, eventually, fault, lines, live, picture

from infinitevl.model.modeling import InfiniteVLForConditionalGeneration as Model
from infinitevl.streaming.stream import Stream


def seen(model: Model, count: int) -> Stream:
    stream = Stream(model, fps=None)
    for index in range(count):
        stream.see(picture(index), index / 2)
    return stream


def expected(stream: Stream, **options: Any) -> str:
    return "".join(stream.ask("What is it?", max_new_tokens=12, **options))


def show(served: Served, id: str, count: int, begin: int = 0) -> None:
    for index in range(begin, begin + count):
        assert served.see(id, picture(index), index / 2)["result"] == "seen"


def test_it_answers_as_a_stream_does(served: Served, stream: str, model: Model):
    show(served, stream, 5)
    answer = served.ask(stream)
    assert answer["answer"] == expected(seen(model, 5)) != expected(seen(model, 4))
    assert answer["object"] == "answer" and answer["stream"] == stream and answer["question"] == "What is it?"
    assert (answer["time"], answer["frames"], answer["finish_reason"]) == (2.0, 5, "length")
    assert answer["usage"]["completion_tokens"] == 12
    assert answer["usage"]["total_tokens"] == 12 + answer["usage"]["prompt_tokens"]
    assert 0 < answer["first_token_ms"] <= answer["ms"]


def test_how_an_answer_is_written_is_passed_on(served: Served, stream: str, model: Model):
    show(served, stream, 2)
    warm = {"temperature": 2.0, "top_p": 0.9, "seed": 5}
    assert served.ask(stream, **warm)["answer"] == expected(seen(model, 2), **warm) != expected(seen(model, 2))
    assert served.ask(stream, max_tokens=3)["usage"]["completion_tokens"] == 3
    stopped = served.ask(stream, stop=[expected(seen(model, 2))[1]])
    assert stopped["answer"] == expected(seen(model, 2))[0] and stopped["finish_reason"] == "stop"


def test_a_remembered_answer_becomes_part_of_the_stream(served: Served, stream: str, model: Model):
    show(served, stream, 2)
    mine = seen(model, 2)
    assert served.ask(stream, remember=True)["answer"] == expected(mine, remember=True)
    show(served, stream, 1, begin=2)
    mine.see(picture(2), 1.0)
    assert served.ask(stream)["answer"] == expected(mine) != expected(seen(model, 3))


def test_an_answer_streams(served: Served, stream: str):
    show(served, stream, 3)
    whole = served.ask(stream)
    asked = {"question": "What is it?", "max_tokens": 12, "stream": True}
    with served.http.stream("POST", f"/v1/streams/{stream}/ask", json=asked) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        *deltas, last, done = lines(response)
    assert done == "[DONE]" and "".join(each["delta"] for each in deltas) == whole["answer"] and len(deltas) > 1
    assert last["answer"]["answer"] == whole["answer"] and last["answer"]["id"] != whole["id"]


def test_answers_are_remembered_newest_last(served: Served, stream: str):
    show(served, stream, 1)
    made = [served.ask(stream, f"What is {n}?")["id"] for n in range(3)]
    assert [answer["id"] for answer in served.http.get(f"/v1/streams/{stream}/answers").json()["data"]] == made


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_pictures_of_every_kind(served: Served, stream: str, kind: str):
    response = served.http.post(f"/v1/streams/{stream}/frames", content=encoded(picture(0), kind))
    assert response.json()["result"] == "seen"


def test_the_newest_frame_can_be_looked_at(served: Served, stream: str):
    assert fault(served.http.get(f"/v1/streams/{stream}/picture"), 404, "not_found")
    grey = np.full((200, 3000, 3), 90, np.uint8)
    served.see(stream, grey)
    response = served.http.get(f"/v1/streams/{stream}/picture")
    assert response.headers["content-type"] == "image/jpeg"
    from infinitevl.server.frames import picture as decoded

    frame = decoded(response.content)
    assert frame.shape[1] <= 1280 and abs(int(frame.mean()) - 90) < 3


def test_a_stream_tells_how_it_is(served: Served, stream: str):
    empty = served.look(stream)
    assert empty["object"] == "stream" and empty["source"] is None and empty["fps"] is None
    assert empty["stats"]["frames"] == 0 and abs(empty["created"] - time.time()) < 60
    assert empty["saved"]["frames"] == 0, "it is on the disk from its 201 on"
    show(served, stream, 3)
    stats = served.look(stream)["stats"]
    assert (stats["frames"], stats["seconds"], stats["dropped"], stats["waiting"]) == (3, 1.0, 0, 0)
    assert stats["tokens"] > 3 and stats["fps"] > 0 and stats["lag_ms"] > 0 and stats["state_bytes"] > 1000
    assert eventually(lambda: served.look(stream)["saved"]["frames"] == 3)


def test_the_rate_of_a_stream_is_kept(served: Served):
    id = served.open(name="slow", fps=2.0, max_pixels=3136)
    results = [served.see(id, picture(n), at)["result"] for n, at in enumerate((0.0, 0.2, 0.4, 0.6, 1.0))]
    assert results == ["seen", "skipped", "skipped", "seen", "seen"]
    told = served.look(id)
    assert (told["fps"], told["max_pixels"], told["name"]) == (2.0, 3136, "slow")
    served.http.delete(f"/v1/streams/{id}")


def test_frames_without_a_time_have_that_of_their_arrival(served: Served, stream: str):
    first = served.see(stream, picture(0))["time"]
    time.sleep(0.3)
    assert 0.3 <= served.see(stream, picture(1))["time"] - first < 5


def test_a_time_that_goes_back_is_a_new_source(served: Served, stream: str):
    assert served.see(stream, picture(0), 100.0)["time"] == 100.0
    assert served.see(stream, picture(1), 0.0)["time"] > 100.0


def test_a_fork_has_the_same_memory_and_a_life_of_its_own(served: Served, stream: str, model: Model):
    show(served, stream, 3)
    response = served.http.post(f"/v1/streams/{stream}/fork", json={"name": "branch"})
    fork = response.json()
    assert response.status_code == 201 and fork["id"] != stream and fork["name"] == "branch"
    assert fork["stats"]["frames"] == 3 and served.ask(fork["id"])["answer"] == expected(seen(model, 3))
    show(served, fork["id"], 1, begin=3)
    assert served.ask(stream)["answer"] == expected(seen(model, 3))
    assert served.ask(fork["id"])["answer"] == expected(seen(model, 4))
    assert served.http.post(f"/v1/streams/{fork['id']}/fork").status_code == 201, "no body is needed"


def test_the_list_is_oldest_first_and_deleted_streams_are_gone(served: Served):
    made = [served.open(name=str(n)) for n in range(3)]
    listed = [each["id"] for each in served.http.get("/v1/streams").json()["data"]]
    assert [id for id in listed if id in made] == made
    assert served.http.delete(f"/v1/streams/{made[1]}").status_code == 204
    assert made[1] not in [each["id"] for each in served.http.get("/v1/streams").json()["data"]]
    for method, path in (("GET", ""), ("DELETE", ""), ("POST", "/fork"), ("GET", "/events"), ("GET", "/memory")):
        fault(served.http.request(method, f"/v1/streams/{made[1]}{path}"), 404, "not_found")
    assert not list(served.settings.folder.glob(f"streams/{made[1]}*"))


def test_the_norms_of_the_memory(served: Served, stream: str, model: Model):
    show(served, stream, 4)
    memory = served.http.get(f"/v1/streams/{stream}/memory").json()
    kinds = model.config.text_config.layer_types
    assert memory["layers"] == [i for i, kind in enumerate(kinds) if kind == "linear_attention"]
    assert memory["times"] == [0.0, 0.5, 1.0, 1.5]
    assert all(len(row) == len(memory["layers"]) and min(row) > 0 for row in memory["norms"])


def test_a_snapshot_is_a_stream_that_can_begin_again(served: Served, stream: str, model: Model, tmp_path):
    show(served, stream, 3)
    taken = served.http.post(f"/v1/streams/{stream}/snapshots", json={"name": "three"})
    assert taken.status_code == 201 and taken.json()["frames"] == 3 and taken.json()["stream"] == stream
    show(served, stream, 1, begin=3)
    begun = served.open(snapshot="three")
    assert served.ask(begun)["answer"] == expected(seen(model, 3)) != served.ask(stream)["answer"]
    file = served.http.get("/v1/snapshots/three")
    (tmp_path / "three.state").write_bytes(file.content)
    assert expected(Stream.load(model, tmp_path / "three.state")) == expected(seen(model, 3))
    assert [each["name"] for each in served.http.get("/v1/snapshots").json()["data"]] == ["three"]
    again = served.http.post(f"/v1/streams/{stream}/snapshots", json={"name": "three"})
    assert fault(again, 409, "conflict") == "there is a snapshot three already"
    assert served.http.delete("/v1/snapshots/three").status_code == 204
    fault(served.http.delete("/v1/snapshots/three"), 404, "not_found")
    fault(served.http.get("/v1/snapshots/three"), 404, "not_found")
    fault(served.http.post("/v1/streams", json={"snapshot": "three"}), 404, "not_found")


@pytest.mark.parametrize(
    "given",
    [
        {"question": ""}, {"question": "  "}, {}, {"question": "?", "max_tokens": 0}, {"question": "?", "top_p": 0},
        {"question": "?", "temperature": -1}, {"question": "?", "seed": -1}, {"question": "?", "temprature": 1},
        {"question": "?", "stop": [""]}, [], "what?",
    ],
)  # fmt: skip
def test_questions_that_cannot_be_used(served: Served, stream: str, given: Any):
    fault(served.http.post(f"/v1/streams/{stream}/ask", json=given), 422, "invalid_request")


@pytest.mark.parametrize(
    "given",
    [{"fps": 0}, {"fps": -1}, {"fps": "fast"}, {"max_pixels": 10}, {"name": 5}, {"snapshot": "../x"}, {"x": 1}],
)
def test_streams_that_cannot_be_made(served: Served, given: dict[str, Any]):
    fault(served.http.post("/v1/streams", json=given), 422, "invalid_request")


def test_answers_that_are_too_long_to_ask_for(served: Served, stream: str):
    response = served.http.post(f"/v1/streams/{stream}/ask", json={"question": "?", "max_tokens": 10**6})
    assert "4096" in fault(response, 413, "too_large")
    fault(served.http.post(f"/v1/streams/{stream}/ask", json={"question": "why " * 2000}), 413, "too_large")


def test_the_limits_of_a_key(serve):
    served = serve(streams_per_key=2, questions_per_key=1, snapshots_per_key=1)
    id = served.open()
    assert served.see(id, picture(0), 0.0)["result"] == "seen"
    served.open()
    assert "2 streams" in fault(served.http.post("/v1/streams", json={}), 429, "rate_limit")
    fault(served.http.post(f"/v1/streams/{id}/fork"), 429, "rate_limit")
    assert served.http.post(f"/v1/streams/{id}/snapshots", json={"name": "a"}).status_code == 201
    fault(served.http.post(f"/v1/streams/{id}/snapshots", json={"name": "b"}), 429, "rate_limit")
    with live(served, id) as talk:
        talk.send({"type": "ask", "id": "long", "question": "?", "max_tokens": 4000})
        talk.get("delta")
        refused = served.http.post(f"/v1/streams/{id}/ask", json={"question": "?"})
        assert "at once" in fault(refused, 429, "rate_limit") and refused.headers["retry-after"]
    assert eventually(lambda: served.http.post(f"/v1/streams/{id}/ask", json={"question": "?"}).status_code == 200)
    served.http.delete(f"/v1/streams/{id}")
    assert served.open()


def test_an_engine_that_is_full_is_503(serve, model: Model):
    from dataclasses import replace

    from server_kit import BUDGET

    served = serve(budget=replace(BUDGET, streams=1))
    served.open()
    response = served.http.post("/v1/streams", json={})
    fault(response, 503, "overloaded")
    assert int(response.headers["retry-after"]) > 0


def test_health_info_and_the_page(served: Served):
    health = served.http.get("/healthz").json()
    assert health == {"status": "ok", "model": NAME, "streams": len(served.http.get("/v1/streams").json()["data"])}
    info = served.http.get("/v1/info").json()
    assert info["protocol"] == 1 and info["model"] == NAME and info["limits"]["max_body"] == 32 * 2**20
    page = served.http.get("/")
    assert page.status_code == 200 and "text/html" in page.headers["content-type"]
    assert "script-src 'self'" in page.headers["content-security-policy"]
    assert "unsafe" not in page.headers["content-security-policy"]
    assert page.headers["x-content-type-options"] == "nosniff"
    assert page.headers["cache-control"] == "no-cache"
    assert served.http.get("/v1/info").headers["cache-control"] == "no-store"
    fault(served.http.get("/nothing-here"), 404, "not_found")
    fault(served.http.get("/%2e%2e/app.py"), 404, "not_found")
    assert served.http.put("/v1/info").json()["error"]["type"] == "invalid_request_error"


def metric(response: httpx.Response, name: str) -> float:
    return next(float(line.split()[-1]) for line in response.text.splitlines() if line.startswith(f"{name} "))


def test_metrics_count(served: Served, stream: str):
    names = ("infinitevl_frames_total", "infinitevl_answers_total", "infinitevl_frame_lag_seconds_count")
    before = [metric(served.http.get("/metrics"), name) for name in names]
    show(served, stream, 3)
    served.ask(stream)
    after = served.http.get("/metrics")
    assert after.headers["content-type"].startswith("text/plain")
    assert [metric(after, name) for name in names] == [before[0] + 3, before[1] + 1, before[2] + 3]
    assert metric(after, "infinitevl_streams") >= 1
    assert metric(after, 'infinitevl_responses_total{status="200"}') >= 4
