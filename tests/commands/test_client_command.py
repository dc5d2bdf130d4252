"""`infinitevl client` against a server on a port of this machine."""

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.append(str(Path(__file__).parents[1] / "server"))

from server_kit import KEY, Served, encoded, picture

from infinitevl.model.random_model import random_model
from infinitevl.streaming.stream import Stream

Run = Callable[..., Any]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with Served(random_model(0, sliding_window=48), tmp_path_factory.mktemp("served"), keys=(KEY,)) as served:
        yield served


@pytest.fixture(autouse=True)
def at(served: Served, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """By the environment, a key included."""
    monkeypatch.setenv("INFINITEVL_URL", served.url)
    monkeypatch.setenv("INFINITEVL_API_KEY", KEY)
    yield
    for stream in served.http.get("/v1/streams").json()["data"]:
        served.http.delete(f"/v1/streams/{stream['id']}")


@pytest.fixture
def film(tmp_path: Path) -> Path:
    """Pictures, taken to be half a second apart at 2 frames a second."""
    folder = tmp_path / "film"
    folder.mkdir()
    for index in range(6):
        (folder / f"{index}.png").write_bytes(encoded(picture(index)))
    return folder


def test_watching_asks_on_the_way_and_leaves_the_stream(run: Run, film: Path, served: Served):
    done = run("client", "watch", film, "--name", "gate", "--json", "--ask", "1.2: What?", "--ask", "At the end?",
               "--max-tokens", "4")  # fmt: skip
    assert done.code == 0, done.err
    told = [json.loads(line) for line in done.out]
    assert [each["event"] for each in told] == ["stream", "answer", "answer", "summary"]
    assert [each.get("time") for each in told[1:3]] == [1.2, 2.5] and told[3]["frames"] == 6
    look = served.look(told[0]["stream"])
    assert look["name"] == "gate" and (look["stats"]["frames"], look["stats"]["dropped"]) == (6, 0)
    answers = served.http.get(f"/v1/streams/{look['id']}/answers").json()["data"]
    assert [(each["question"], each["frames"]) for each in answers] == [("What?", 3), ("At the end?", 6)]
    assert [each["answer"] for each in answers] == [each["answer"] for each in told[1:3]]
    again = run("client", "watch", film, "--stream", look["id"])
    assert again.code == 0 and again.out[0].startswith(look["id"]) and again.out[-1].startswith("12 frames, ")


def test_the_small_ones(run: Run, served: Served, tmp_path: Path):
    assert run("client", "list").out == ["There are no streams."]
    id = served.open(name="gate")
    served.see(id, picture(0), 0.0)
    fork = run("client", "fork", id, "--name", "branch").out[0]
    assert [line.split()[:2] for line in run("client", "list").out[1:]] == [[id, "gate"], [fork, "branch"]]
    assert [json.loads(line)["id"] for line in run("client", "list", "--json").out] == [id, fork]
    asked = run("client", "ask", id, "What?", "--max-tokens", "5", "--remember")
    kept = served.http.get(f"/v1/streams/{id}/answers").json()["data"][0]
    assert asked.code == 0 and (kept["question"], kept["usage"]["completion_tokens"]) == ("What?", 5)
    assert asked.out and served.look(id)["stats"]["tokens"] > served.look(fork)["stats"]["tokens"]
    assert run("client", "snapshot", id, "one", "--out", tmp_path / "one.state").out[0].startswith("one: 1 frames")
    assert Stream.load(random_model(0, sliding_window=48), tmp_path / "one.state").stats.frames == 1
    assert run("client", "delete", id).code == 0
    assert [json.loads(line)["id"] for line in run("client", "list", "--json").out] == [fork]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["list", "--key", "another-key"], "a wrong API key"),
        (["list", "--url", "http://127.0.0.1:9"], "http://127.0.0.1:9: no server can be reached there"),
        (["list", "--url", "nowhere"], "nowhere: not an http or https address"),
        (["ask", "stream-0", "What?"], "there is no stream stream-0"),
        (["delete", ""], "'' is no id and no name"),
        (["watch", "film", "--stream", "stream-0"], "there is no stream stream-0"),
        (["watch", "none.mp4"], "none.mp4: no such file"),
        (["watch", "film", "--ask", "1: "], 'a question looks like "12.5: what is on the sign?"'),
    ],
)
def test_mistakes_are_one_line(run: Run, film: Path, served: Served, arguments: list[str], message: str):
    done = run("client", *arguments)
    assert done.code == 2 and len(done.err) == 1, done
    assert done.err[0].startswith("infinitevl: ") and message in done.err[0]
    assert served.http.get("/v1/streams").json()["data"] == []  # nothing is left behind


def test_a_server_that_goes_away_while_it_watches(run: Run, film: Path, tmp_path: Path):
    with Served(random_model(0, sliding_window=48), tmp_path / "state") as served:
        id = served.open()
        served.hub.push = lambda *_, **__: served.hub.soon(served.hub.rooms[id].close, 1012)
        done = run("client", "watch", film, "--stream", id, "--url", served.url)
    assert done.code == 2 and done.err == ["infinitevl: the server went down"]
