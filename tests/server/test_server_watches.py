"""Standing questions: evaluated by the stream's clock, never two at once, heard only when the answer changes."""

import threading
from collections.abc import Iterator
from typing import Any

import pytest
from server_kit import Served, eventually, fault, lines, live, picture

from infinitevl.engine.types import Answered
from infinitevl.errors import Overloaded


class Script:
    """Stands in for the engine's `ask`: what it will answer, and what it was asked."""

    def __init__(self, served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
        self.answers, self.asked, self.pending = ["yes"], list[tuple[str, Any]](), list[Any]()
        self.hold = False
        self._served = served
        monkeypatch.setattr(served.hub.engine, "ask", self._ask)

    def _ask(self, id: str, question: str, asking: Any, told: Any) -> str:
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if answer == "overloaded":
            raise Overloaded("full")
        self.asked.append((question, asking))
        time = self._served.hub.engine.look(id).seconds
        end = lambda: told(Answered(f" {answer}\n", "stop", time, 1, 1, 1, 0.1, 0.1))  # noqa: E731
        self.pending.append(end) if self.hold else threading.Thread(target=end).start()
        return "answer-x"


@pytest.fixture
def script(served: Served, monkeypatch: pytest.MonkeyPatch) -> Iterator[Script]:
    return Script(served, monkeypatch)


def add(served: Served, id: str, **given: Any) -> dict[str, Any]:
    response = served.http.post(f"/v1/streams/{id}/watches", json={"question": "Is it open?", "every": 1.0, **given})
    assert response.status_code == 201, response.text
    return response.json()


def watch(served: Served, id: str) -> dict[str, Any]:
    return served.http.get(f"/v1/streams/{id}/watches").json()["data"][0]


def test_it_speaks_only_when_the_answer_changes(served: Served, stream: str, script: Script):
    made = add(served, stream)
    assert (made["answer"], made["time"], made["asked"], made["changed"]) == (None, None, 0, 0)
    script.answers = ["no", "no", "yes", "yes", "no"]
    with live(served, stream) as talk:
        for second in range(5):
            served.see(stream, picture(second), float(second))
            assert eventually(lambda n=second: watch(served, stream)["asked"] == n + 1)
        heard = [talk.get("watch") for _ in range(3)]
    assert [(event["answer"], event["before"], event["time"]) for event in heard] == [
        ("no", None, 0.0), ("yes", "no", 2.0), ("no", "yes", 4.0),
    ]  # fmt: skip
    assert heard[0]["watch"] == made["id"] and heard[0]["question"] == "Is it open?"
    assert watch(served, stream) == {**made, "answer": "no", "time": 4.0, "asked": 5, "changed": 2}, (
        "the first is no change"
    )


def test_it_is_asked_by_the_clock_of_the_stream(served: Served, stream: str, script: Script):
    add(served, stream, every=2.0, max_tokens=7)
    for at in (10.0, 10.5, 11.9, 12.0, 13.0, 14.5):
        served.see(stream, picture(int(at * 10)), at)
        assert eventually(lambda: not any(w.busy for w in served.hub.rooms[stream].watches.values()))
    assert [question for question, _ in script.asked] == ["Is it open?"] * 3, "at 10, 12 and 14.5"
    assert script.asked[0][1].max_tokens == 7 and not script.asked[0][1].remember


def test_never_two_at_once(served: Served, stream: str, script: Script):
    script.hold = True
    add(served, stream, every=0.1)
    for second in range(4):
        served.see(stream, picture(second), float(second))
    assert eventually(lambda: len(script.asked) == 1)
    script.pending.pop()()
    assert eventually(lambda: watch(served, stream)["asked"] == 1)
    served.see(stream, picture(9), 9.0)
    assert eventually(lambda: len(script.asked) == 2)
    script.pending.pop()()


def test_it_is_left_out_while_there_is_no_room(served: Served, stream: str, script: Script):
    add(served, stream)
    script.answers = ["overloaded", "yes"]
    served.see(stream, picture(0), 0.0)
    served.see(stream, picture(1), 1.0)
    assert eventually(lambda: watch(served, stream)["asked"] == 1)
    assert watch(served, stream)["answer"] == "yes"


def test_a_deleted_one_is_quiet(served: Served, stream: str, script: Script):
    script.hold = True
    made = add(served, stream)
    with live(served, stream) as talk:
        served.see(stream, picture(0), 0.0)
        assert eventually(lambda: script.pending)
        path = f"/v1/streams/{stream}/watches/{made['id']}"
        assert served.http.delete(path).status_code == 204
        script.pending.pop()()
        served.see(stream, picture(1), 5.0)
        with pytest.raises(TimeoutError):
            talk.get("watch", timeout=0.5)
    assert len(script.asked) == 1 and served.http.get(f"/v1/streams/{stream}/watches").json()["data"] == []
    fault(served.http.delete(path), 404, "not_found")


def test_events_over_http(served: Served, stream: str, script: Script):
    with served.http.stream("GET", f"/v1/streams/{stream}/events") as events:
        assert events.headers["content-type"].startswith("text/event-stream")
        add(served, stream)
        served.see(stream, picture(0), 0.0)
        assert next(lines(events))["answer"] == "yes"


def test_a_quiet_stream_of_events_beats(serve):
    served = serve(heartbeat=0.1)
    id = served.open()
    with served.http.stream("GET", f"/v1/streams/{id}/events") as events:
        raw = events.iter_lines()
        assert [next(raw) for _ in range(4)] == [": ", "", ": ", ""]
        served.http.delete(f"/v1/streams/{id}")
        assert all(line in (": ", "") for line in raw), "it ends with the stream"


def test_the_real_engine_answers(served: Served, stream: str):
    add(served, stream, max_tokens=4)
    served.see(stream, picture(0), 0.0)
    assert eventually(lambda: watch(served, stream)["asked"] == 1)
    assert watch(served, stream)["answer"] == served.ask(stream, "Is it open?", max_tokens=4)["answer"].strip()


def test_there_are_not_too_many(serve):
    served = serve(watches=2)
    id = served.open()
    add(served, id), add(served, id)
    fault(served.http.post(f"/v1/streams/{id}/watches", json={"question": "?"}), 429, "rate_limit")
    for given in ({}, {"question": " "}, {"question": "?", "every": 0}, {"question": "?", "every": "often"}):
        fault(served.http.post(f"/v1/streams/{id}/watches", json=given), 422, "invalid_request")
