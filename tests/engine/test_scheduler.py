"""Who is next: earliest due first, nobody starves, the newest frames stay, time is shared; by a clock of our own."""

import random

import pytest

from infinitevl.engine.scheduler import Line, Scheduler


def scheduler(rows: int = 4, frames: int = 4, **periods: float) -> Scheduler[str, str]:
    made: Scheduler[str, str] = Scheduler(rows, frames)
    for name, period in periods.items():
        made.lines[name] = Line(name, period, room=2)
    return made


def served(made: Scheduler[str, str], now: float) -> list[tuple[str, str]]:
    step = made.next(now)
    assert step is not None
    return [(str(line.name), item) for line, item in step.frames]


def test_nothing_to_do():
    assert scheduler(a=1.0).next(0.0) is None


def test_the_stream_that_is_due_first_comes_first():
    made = scheduler(frames=1, slow=1.0, fast=0.1)
    made.lines["slow"].add("s", "kind", now=0.0)
    made.lines["fast"].add("f", "kind", now=0.5)
    assert served(made, 0.5) == [("fast", "f")]
    made.lines["fast"].add("f2", "kind", now=0.95)
    assert served(made, 1.0) == [("slow", "s")], "due at 1.0, the other at 1.05"


def test_the_newest_frames_stay_and_keep_their_place():
    made = scheduler(frames=1, a=1.0, b=1.0)
    line = made.lines["a"]
    assert [line.add(item, "kind", now) for item, now in (("1", 0.0), ("2", 5.0), ("3", 9.0))] == [None, None, "1"]
    made.lines["b"].add("b", "kind", now=0.5)
    assert served(made, 9.0) == [("a", "2")], "b came before the frames that wait, but after a began to wait"
    assert served(made, 9.0) == [("b", "b")]
    assert served(made, 9.0) == [("a", "3")]
    assert made.next(9.0) is None


def test_a_batch_is_of_one_kind():
    made = scheduler(a=1.0, b=1.0, c=1.0)
    for i, (name, kind) in enumerate((("a", "small"), ("b", "large"), ("c", "small"))):
        made.lines[name].add(name, kind, now=0.1 * i)
    assert served(made, 1.0) == [("a", "a"), ("c", "c")]
    assert served(made, 1.0) == [("b", "b")]


def test_a_batch_has_a_size_and_a_frame_of_each():
    made = scheduler(frames=2, a=1.0, b=1.0, c=1.0)
    for name in "abc":
        for item in "12":
            made.lines[name].add(item, "kind", now=0.0)
    taken = [served(made, 0.0) for _ in range(3)]
    assert [len(batch) for batch in taken] == [2, 2, 2]
    assert all(len({name for name, _ in batch}) == 2 for batch in taken)
    assert sorted(pair for batch in taken for pair in batch) == [(name, item) for name in "abc" for item in "12"]


def test_a_stream_that_an_answer_is_written_into_waits():
    made = scheduler(a=1.0)
    made.lines["a"].add("1", "kind", now=0.0)
    made.lines["a"].held = True
    assert made.next(0.0) is None
    made.lines["a"].held = False
    assert served(made, 0.0) == [("a", "1")]


@pytest.mark.parametrize("rows", [1, 3])
def test_answers_take_turns(rows: int):
    made = scheduler(rows=rows)
    made.writing.extend("abcd")
    turns = [tuple(step.decode) for _ in range(8) if (step := made.next(0.0))]
    counts = {job: sum(job in turn for turn in turns) for job in "abcd"}
    assert max(counts.values()) - min(counts.values()) <= 1
    assert {len(turn) for turn in turns} == {rows}


def test_a_prompt_comes_before_more_tokens_and_can_be_forgotten():
    made = scheduler()
    made.writing.append("old")
    made.prompts.append("new")
    step = made.next(0.0)
    assert step and (step.prefill, step.decode) == (["new"], [])
    made.forget("new")
    made.forget("old")
    assert made.next(0.0) is None


def test_frames_and_answers_share_the_time():
    """Three quarters are the frames' where both never end, whatever a step of each costs."""
    made, now, spent = scheduler(a=0.1), 0.0, {"frames": 0.0, "text": 0.0}
    made.writing.append("answer")
    for _ in range(3000):
        line = made.lines["a"]
        if not line.waiting:
            line.add("frame", "kind", now)
        step = made.next(now)
        assert step
        seconds = 0.2 if step.work == "frames" else 0.01
        made.spent(step.work, seconds)
        spent[step.work] += seconds
        now += seconds
    assert spent["frames"] / sum(spent.values()) == pytest.approx(3 / 4, abs=0.02)


def test_rest_is_not_saved_up():
    """After an hour of frames alone, an answer does not get the machine for half an hour."""
    made, now = scheduler(a=0.1), 0.0

    def one(seconds: float) -> str:
        made.lines["a"].add("frame", "kind", now)
        step = made.next(now)
        assert step
        made.spent(step.work, seconds)
        return step.work

    assert {one(1.0) for _ in range(3600)} == {"frames"}
    made.writing.append("answer")
    assert [one(1.0) for _ in range(8)].count("frames") == 6


def test_under_overload_nobody_starves_and_the_loss_is_fair():
    """40 streams of 1 to 10 frames a second, four times more than can be served, for 100 seconds."""
    draw = random.Random(0)
    rates = {f"s{i}": draw.choice([1, 2, 5, 10]) for i in range(40)}
    made, step_seconds = (
        scheduler(frames=4, **{name: 1 / rate for name, rate in rates.items()}),
        4 * 4 / sum(rates.values()),
    )
    arrivals = sorted(
        (k / rate + draw.random() / rate, name) for name, rate in rates.items() for k in range(100 * rate)
    )
    now, i, count = 0.0, 0, dict.fromkeys(rates, 0)
    while i < len(arrivals):
        while i < len(arrivals) and arrivals[i][0] <= now:
            made.lines[arrivals[i][1]].add("frame", "kind", arrivals[i][0])
            i += 1
        if step := made.next(now):
            for line, _ in step.frames:
                count[str(line.name)] += 1
        now += step_seconds
    for rate in (1, 2, 5, 10):
        same = [count[name] for name in rates if rates[name] == rate]
        assert min(same) > 0.8 * max(same), f"streams of {rate} a second were served {sorted(same)}"
    assert min(count.values()) >= 15
    assert sum(count.values()) > 0.95 * sum(rates.values()) * 100 / 4
