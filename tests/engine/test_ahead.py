"""Tokens that are read when the next step is under way: the answers, and the streams, of tokens read at once."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from typing import Any

import pytest
import torch
from engine_kit import Listener, picture, running, watch
from torch import Tensor

from helpers import RELATIVE, assert_same_state
from infinitevl.engine import answers as module
from infinitevl.engine import loop
from infinitevl.engine.answers import Answers
from infinitevl.engine.engine import Engine
from infinitevl.engine.runner import Runner
from infinitevl.engine.scheduler import Scheduler
from infinitevl.engine.types import Answered, Asking
from infinitevl.model.modeling import InfiniteVLForConditionalGeneration as Model
from infinitevl.model.state import State
from infinitevl.streaming.text import TextPieces, Writer

LONG = Asking(max_tokens=14)


def told(engine: Engine, id: str, asking: Asking) -> Listener:
    listener = Listener()
    engine.ask(id, "What is it?", asking, listener)
    return listener


def streams(engine: Engine, count: int) -> list[str]:
    ids = [engine.open({}, fps=None) for _ in range(count)]
    for i, id in enumerate(ids):
        watch(engine, id, [picture(10 * i + t) for t in range(3)])
    return ids


@contextmanager
def ends(model: Model, token: int) -> Iterator[None]:
    config = model.generation_config
    assert config is not None
    before, config.eos_token_id = config.eos_token_id, [token]
    try:
        yield
    finally:
        config.eos_token_id = before


def told_apart(answer: Answered) -> tuple[Any, ...]:
    return answer.text, answer.reason, answer.completion_tokens


def states(engine: Engine, ids: list[str]) -> list[State]:
    return [engine._pool.read(engine._streams[id].seat) for id in ids]


def failing(message: str) -> Callable[..., Any]:
    def fail(*_: Any) -> None:
        raise RuntimeError(message)

    return fail


def at_step(number: int, act: Callable[[], object]) -> Callable[..., Tensor]:
    """`Runner.write`; before it is called for the n-th time, something is done."""
    write, steps = Runner.write, count(1)

    def written(*given: Any) -> Tensor:
        if next(steps) == number:
            act()
        return write(*given)

    return written


def fetching(act: Callable[[], object]) -> Callable[[Tensor], Callable[[], list[int]]]:
    """`fetch`; before tokens are read, something is done."""

    def fetch(x: Tensor) -> Callable[[], list[int]]:
        def read() -> list[int]:
            act()
            return x.tolist()

        return read

    return fetch


def chosen(model: Model, monkeypatch: pytest.MonkeyPatch) -> tuple[list[list[int]], list[str]]:
    """Tokens and text of what `streams` answer."""
    rows: list[list[int]] = []
    write = Writer.write

    def seen(writer: Writer, token: int) -> tuple[int | None, str]:
        rows[-1].append(token)
        return write(writer, token)

    with monkeypatch.context() as patched, running(model, slots=8) as engine:
        patched.setattr(Writer, "write", seen)
        texts = [told(engine, id, LONG).wait().text for id in streams(engine, 5) if not rows.append([])]
    return rows, texts


def test_answers_that_end_as_they_do(model: Model, monkeypatch: pytest.MonkeyPatch):
    """By a limit, a stop string, an end mark; greedy and drawn; kept in the stream, which goes on, and not."""
    tokens, texts = chosen(model, monkeypatch)
    end = next(token for i, token in enumerate(tokens[0]) if i > 4 and token not in tokens[0][:i])
    stop = next(c for i, c in enumerate(texts[2]) if i > 7 and c not in texts[2][:i])
    found: dict[bool, Any] = {}
    for ahead in (False, True):
        monkeypatch.setattr(module, "looks_ahead", lambda _, ahead=ahead: ahead)
        with ends(model, end), running(model, slots=8) as engine:
            ids = streams(engine, 5)
            listeners = [
                told(engine, ids[0], Asking(max_tokens=14, remember=True)),
                told(engine, ids[1], Asking(max_tokens=3, remember=True)),
                told(engine, ids[2], Asking(max_tokens=14, stop=(stop,), remember=True)),
                told(engine, ids[3], Asking(max_tokens=14, temperature=1.0, seed=3, remember=True)),
                told(engine, ids[4], Asking(max_tokens=12)),
            ]
            said = [told_apart(listener.wait()) for listener in listeners]
            for i, id in enumerate(ids):
                watch(engine, id, [picture(99 + i)], start=3)
            counted = [engine.look(id).tokens for id in ids]
            after = [told_apart(told(engine, id, LONG).wait()) for id in ids]
            found[ahead] = said, counted, after, states(engine, ids)
    assert found[True][:3] == found[False][:3]
    reasons = [reason for _, reason, _ in found[True][0]]
    assert (reasons[0], reasons[1], reasons[2]) == ("stop", "length", "stop")
    for mine, expected in zip(found[True][3], found[False][3], strict=True):
        assert_same_state(mine, expected, RELATIVE[torch.float32])  # who is computed together is chance
    assert [int(state.count) for state in found[True][3]] == found[True][1]


@pytest.mark.parametrize("step", [1, 2, 3])
@pytest.mark.usefixtures("reading")
def test_cancelled_between_two_steps(model: Model, monkeypatch: pytest.MonkeyPatch, step: int):
    """What was told is in the stream, once."""
    names, asked = list[str](), threading.Event()

    def cancel() -> None:
        assert asked.wait(60)
        engine.cancel(names[0])

    with running(model) as engine:
        [id] = streams(engine, 1)
        before = engine.look(id).tokens
        with monkeypatch.context() as patched:
            patched.setattr(Runner, "write", at_step(step, cancel))
            listener = Listener()
            names.append(engine.ask(id, "What is it?", Asking(max_tokens=14, remember=True), listener))
            asked.set()
            end = listener.wait()
        assert end.reason == "cancelled" and 1 <= end.completion_tokens <= step + 1
        [state] = states(engine, [id])
        assert int(state.count) == engine.look(id).tokens == before + end.prompt_tokens + end.completion_tokens


class Written:
    """Writes down when steps begin, and when their tokens are read."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, ahead: bool) -> None:
        self.log: list[str] = []
        monkeypatch.setattr(module, "looks_ahead", lambda _: ahead)
        monkeypatch.setattr(module, "fetch", fetching(lambda: self.log.append("read")))
        monkeypatch.setattr(Runner, "write", self._write(Runner.write))

    def _write(self, write: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def written(*given: Any) -> Tensor:
            self.log.append("step")
            return write(*given)

        return written


STEPS = {
    True: ["step", "step", "read", "step", "read", "step", "read", "read"],  # the last one is of no use
    False: ["step", "read"] * 3,
}


@pytest.mark.parametrize("ahead", [True, False])
def test_a_step_begins_before_the_last_one_is_read(model: Model, monkeypatch: pytest.MonkeyPatch, ahead: bool):
    written = Written(monkeypatch, ahead)
    with running(model) as engine:
        [id] = streams(engine, 1)
        assert told(engine, id, Asking(max_tokens=4)).wait().completion_tokens == 4
        told(engine, id, Asking(max_tokens=1)).wait()  # its prompt comes after all of that
        assert written.log == STEPS[ahead]


def test_frames_wait_for_what_was_said(model: Model, monkeypatch: pytest.MonkeyPatch):
    """Nothing that was chosen waits for the frames of others to be told."""
    written = Written(monkeypatch, ahead=True)
    watched = Runner.watch

    def watch_them(*given: Any) -> None:
        written.log.append("frames")
        watched(*given)

    with running(model) as engine:
        first, second = streams(engine, 2)
        monkeypatch.setattr(Runner, "watch", watch_them)
        listener = told(engine, first, Asking(max_tokens=200))
        watch(engine, second, [picture(50 + t) for t in range(4)], start=3)
        listener.wait()
    log = written.log
    assert log.count("frames") == 4
    for place in (i for i, what in enumerate(log) if what == "frames"):
        assert log[:place].count("step") == log[:place].count("read")


def test_a_step_that_fails_ends_its_answers(model: Model, monkeypatch: pytest.MonkeyPatch):
    """The next ones are as if it had not been; a device that fails later, too."""
    monkeypatch.setattr(module, "looks_ahead", lambda _: True)
    with running(model) as engine:
        first, second = streams(engine, 2)
        expected = told(engine, first, LONG).wait().text
        with monkeypatch.context() as patched:
            patched.setattr(Runner, "write", at_step(3, failing("out of memory")))
            failed = [told(engine, id, LONG) for id in (first, second)]
            assert {listener.wait().reason for listener in failed} <= {"error", "length"}
            assert "error" in {listener.wait().reason for listener in failed}
        assert told(engine, first, LONG).wait().text == expected
        with monkeypatch.context() as patched:
            patched.setattr(module, "fetch", fetching(failing("the device is gone\nand more")))
            end = told(engine, first, LONG).wait()
            assert (end.reason, end.error) == ("error", "the device is gone")
        assert told(engine, first, LONG).wait().text == expected
        assert engine.load()["answers"] == 0


@pytest.mark.parametrize("step", [1, 2, 3])
@pytest.mark.usefixtures("reading")
def test_what_failed_is_in_the_stream_once(model: Model, monkeypatch: pytest.MonkeyPatch, step: int):
    """An answer that is remembered, when a step fails."""
    with running(model) as engine:
        [id] = streams(engine, 1)
        before = engine.look(id).tokens
        with monkeypatch.context() as patched:
            patched.setattr(Runner, "write", at_step(step, failing("out of memory")))
            end = told(engine, id, Asking(max_tokens=9, remember=True)).wait()
        assert end.reason == "error"
        watch(engine, id, [picture(77)], start=3)  # it is held no more
        [state] = states(engine, [id])
        assert int(state.count) == engine.look(id).tokens > before


@pytest.mark.usefixtures("reading")
def test_an_end_that_fails_is_told(model: Model, monkeypatch: pytest.MonkeyPatch):
    """The stream is held no more, and the engine goes on; so it does where a text cannot be told."""
    with running(model) as engine:
        [id] = streams(engine, 1)
        with monkeypatch.context() as patched:
            patched.setattr(Answers, "_remember", failing("no more memory"))
            end = told(engine, id, Asking(max_tokens=2, remember=True)).wait()
        assert (end.reason, end.error) == ("error", "no more memory")
        with monkeypatch.context() as patched:
            patched.setattr(TextPieces, "push", failing("no more memory"))
            end = told(engine, id, Asking(max_tokens=6)).wait()
        assert (end.reason, end.error) == ("error", "no more memory")
        assert told(engine, id, Asking(max_tokens=3)).wait().reason == "length"


def test_seats_of_answers_that_ended_are_free(model: Model, monkeypatch: pytest.MonkeyPatch):
    """Also where the step after their last one is of others."""
    monkeypatch.setattr(module, "looks_ahead", lambda _: True)
    with running(model, slots=8) as engine:
        ids = streams(engine, 3)
        for listener in [told(engine, id, Asking(max_tokens=n)) for id, n in zip(ids, (5, 6, 12), strict=True)]:
            listener.wait()
        assert engine.load()["slots"] == 3


def test_frames_do_not_pay_for_tokens(model: Model, monkeypatch: pytest.MonkeyPatch):
    """The time of a step that is waited for before frames is that of answers; by a clock that moves only meanwhile."""
    charged: list[tuple[str, float]] = []
    spent, waits, steps = Scheduler.spent, count(1), [0]
    monkeypatch.setattr(module, "looks_ahead", lambda _: True)
    monkeypatch.setattr(loop, "monotonic", lambda: float(steps[0]))
    monkeypatch.setattr(module, "fetch", fetching(lambda: steps.__setitem__(0, next(waits))))
    monkeypatch.setattr(
        Scheduler, "spent", lambda self, work, seconds: (charged.append((work, seconds)), spent(self, work, seconds))
    )
    with running(model) as engine:
        first, second = streams(engine, 2)
        listener = told(engine, first, Asking(max_tokens=200))
        watch(engine, second, [picture(50 + t) for t in range(4)], start=3)
        listener.wait()
    assert sum(seconds for work, seconds in charged if work == "text") == 199  # the first came with the prompt
    assert {seconds for work, seconds in charged if work == "frames"} == {0.0}
