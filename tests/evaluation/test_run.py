"""The whole evaluation: of viewers that know everything, nothing or some of it, and of small models."""

import hashlib
from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from infinitevl.errors import InfiniteVLError
from infinitevl.evaluation import plan as plans
from infinitevl.evaluation import run, watching
from infinitevl.evaluation.lockstep import Lockstep
from infinitevl.evaluation.plan import GROWN_AT_ONCE, QUICK, Plan, Run, bounded, runs
from infinitevl.evaluation.results import Results, markdown
from infinitevl.evaluation.run import evaluate_model, window_frames
from infinitevl.model.random_model import random_model

PLAN = replace(
    QUICK, count=8, rows=6, ages=(0.5, 1, 3), facts=4, loads=(2, 4), load_age=3, window_frames=3,
    long_tokens=1600, long_streams=2, long_ages=(1, 3), asking=20,
)  # fmt: skip
TESTS = {"perception", "episode", "text", "memory", "length"}


class Viewer:
    """Takes a Lockstep's place: a stream's state is all that it has seen, and its answers come from a book."""

    book: dict[tuple[str, str], str]
    forgetful = False

    def __init__(self, model: object, streams: int, fps: float) -> None:
        self.model, self.frames, self.states = model, 0, [""] * streams

    def see(self, frames: torch.Tensor, rows: Sequence[int]) -> None:
        for index in range(frames.shape[1]):
            seen = [picture(frame) for frame in frames[:, index]]
            self.states = [after(state, seen[row]) for state, row in zip(self.states, rows, strict=True)]
        self.frames += frames.shape[1]

    def take(self, rows: Sequence[int]) -> "Viewer":
        part = copy(self)
        part.states = [self.states[row] for row in rows]
        return part

    @staticmethod
    def join(parts: Sequence["Viewer"]) -> "Viewer":
        whole = copy(parts[0])
        whole.states = [state for part in parts for state in part.states]
        return whole

    def fade(self, factor: float, rows: Sequence[int] | None = None) -> None:
        for row in range(len(self.states)) if rows is None else rows:
            self.states[row] = "forgot" if self.forgetful else self.states[row]

    def memory_norm(self) -> torch.Tensor:
        return torch.ones(2, len(self.states))

    def answer(self, questions: Sequence[str], limit: int) -> list[str]:
        return [self.book.get(key, "no idea") for key in zip(self.states, questions, strict=True)]


def picture(frame: torch.Tensor) -> str:
    return hashlib.sha1(frame.numpy().tobytes()).hexdigest()


def after(state: str, seen: str) -> str:
    return hashlib.sha1((state + seen).encode()).hexdigest()


def pages(todo: list[Run]) -> Iterator[tuple[tuple[str, str], str]]:
    """What a viewer who has seen just this, frame by frame, must answer to this question."""
    for cast in {(each.cast.show, each.cast.seeds) for each in todo}:
        for seed in cast[1]:
            state = ""
            for shown in cast[0].play(seed):
                state = after(state, picture(torch.from_numpy(shown.frame)))
                yield from (((state, ask.question.question), ask.question.answer) for ask in shown.asks)
    for question in run.text_questions(0, run.SPLIT, PLAN.count):
        yield ("", question.question), question.answer


@pytest.fixture(scope="module")
def book() -> dict[tuple[str, str], str]:
    return dict(pages(runs(PLAN, 3, grows=False)))


def evaluated(monkeypatch: pytest.MonkeyPatch, book: dict, forgetful: bool = False) -> Results:
    kind = type("Chosen", (Viewer,), {"book": book, "forgetful": forgetful})
    for module in (run, watching):
        monkeypatch.setattr(module, "Lockstep", kind)
    return evaluate_model(random_model(num_hidden_layers=2), PLAN)


def test_who_knows_all_is_always_right(monkeypatch: pytest.MonkeyPatch, book: dict):
    """Every question reaches the stream it is about, at its moment; each test asks what the plan says."""
    results = evaluated(monkeypatch, book)
    assert {line.test for line in results.cells} == TESTS
    assert all(line.right == line.asked > 0 for line in [*results.cells, *results.kinds, *results.held_out])
    assert {line.asked for line in results.cells if line.test != "length" and line.variant != "reset"} == {8}
    assert {line.variant for line in results.of("memory", windows=3)} == {"model", "amnesic", "reset", "window / 4"}
    assert [line.age for line in results.of("memory", "model", cards=4)] == [2, 3, 9]
    assert [line.cards for line in results.of("memory", "model", windows=3)] == [2, 4]
    assert {line.tokens for line in results.of("length")} == {400, 1600}
    assert len({line.variant for line in results.of("length")}) == len({norm.variant for norm in results.norms}) == 3
    assert set(results.seconds) == TESTS
    for lines in (results.kinds, results.held_out):
        assert sum(line.asked for line in lines) == sum(x.asked for x in results.cells if x.variant == "model")


def test_who_forgets_is_right_before(monkeypatch: pytest.MonkeyPatch, book: dict):
    results = evaluated(monkeypatch, book, forgetful=True)
    assert all(line.right == line.asked for line in results.of("memory", "model"))
    assert all(line.right == 0 for line in results.of("memory", "reset"))
    assert all(line.right == 0 for line in results.of("memory", "amnesic", windows=3))


def test_who_always_says_the_same_is_right_by_chance(monkeypatch: pytest.MonkeyPatch, book: dict):
    kind = type("Chosen", (Viewer,), {"answer": lambda self, questions, limit: ["yes"] * len(questions)})
    for module in (run, watching):
        monkeypatch.setattr(module, "Lockstep", kind)
    monkeypatch.setattr(plans, "CLIPS", {})
    monkeypatch.setattr(plans, "EPISODES", ("order",))
    monkeypatch.setattr(plans, "EPISODE_FRAMES", 24)
    monkeypatch.setattr(plans, "EPISODE_QUESTIONS", 1)
    plan = replace(PLAN, count=160, rows=40, ages=(1,), facts=16, loads=(), long_tokens=0, ablations=False)
    results = evaluate_model(random_model(num_hidden_layers=2), plan)
    (appeared,) = [line for line in results.kinds if line.kind == "appeared"]
    assert appeared.low < appeared.chance < appeared.high
    assert all(line.right == 0 for line in results.kinds if line.kind not in ("appeared", "larger"))


def test_checkpoints_of_long_streams():
    """Quarters, as long as what is asked before one lies behind the one before it."""
    stops = {1_750_000: (427, 1708, 6835, 27343, 109375), 500_000: (488, 1953, 7812, 31250), 160: (10,)}
    for tokens, frames in stops.items():
        (show,) = {each.cast.show for each in runs(Plan(long_tokens=tokens), 16, grows=False) if each.marks}
        assert show.checkpoints == frames


def test_a_state_that_grows_is_bounded():
    """No batch, and no batch of forks with a question, holds more tokens than so many, if it has more than a row."""
    plan, sizes = bounded(Plan()), {}
    for each in runs(plan, 16, grows=True):
        show = each.cast.show
        sizes[show.name, show.length] = plan.rows_of(show)
        assert len(each.cast.seeds) <= plan.rows_of(show)
        assert plan.rows_of(show) * show.length * 16 <= GROWN_AT_ONCE
    assert sizes["length", 1024] == 32 and sizes["perception", 8] == 512
    assert Plan().rows_of(show) == 512
    assert bounded(replace(plan, tokens_at_once=1000)).tokens_at_once == 1000


@pytest.mark.parametrize("layers", [None, ["full_attention"] * 2], ids=["hybrid", "full attention"])
def test_a_model_is_evaluated(layers: list[str] | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """One whose state grows in batches, and with forks, of few tokens."""
    monkeypatch.setattr(plans, "GROWN_AT_ONCE", 2000)
    sizes, see, answer = dict[int, int](), Lockstep.see, Lockstep.answer

    def seen(streams: Lockstep, frames: torch.Tensor, rows: Sequence[int] | None = None) -> None:
        see(streams, frames, rows)
        _at_most(streams)

    def answered(streams: Lockstep, questions: Sequence[str], most: int) -> list[str]:
        _at_most(streams)
        return answer(streams, questions, most)

    def _at_most(streams: Lockstep) -> None:
        sizes[streams.state.batch_size] = max(sizes.get(streams.state.batch_size, 0), streams.frames)

    monkeypatch.setattr(Lockstep, "see", seen)
    monkeypatch.setattr(Lockstep, "answer", answered)
    model = random_model(num_hidden_layers=2, layer_types=layers, sliding_window=48)
    plan = replace(PLAN, count=2, loads=(), ages=(1, 3), facts=2, long_tokens=640, long_ages=(1,))
    told: list[tuple[int, int, str]] = []
    results = evaluate_model(model, plan, tmp_path / "a" / "out", tell=lambda *args: told.append(args))
    assert {line.test for line in results.cells} == TESTS
    assert bool(results.norms) == (layers is None)
    assert {line.variant for line in results.of("memory")} == (
        {"model"} if layers else {"model", "amnesic", "reset", "window / 4"}
    )
    assert told[-1][0] == told[-1][1]
    largest = max(rows * frames * plan.frame_tokens for rows, frames in sizes.items())
    assert (largest <= 2000) == bool(layers), sizes
    assert results.plan == plan
    assert Results.from_json((tmp_path / "a" / "out" / "results.json").read_text()) == results
    assert (tmp_path / "a" / "out" / "results.md").read_text() == markdown(results)
    figures = {path.name for path in (tmp_path / "a" / "out").glob("*.png")}
    assert figures == {"age.png", "load.png", "length.png", *(() if layers else ("norm.png",))}
    assert not list((tmp_path / "a" / "out").glob(".*"))


def test_windows():
    hybrid = random_model(num_hidden_layers=2, sliding_window=100)
    full = random_model(num_hidden_layers=1, layer_types=["full_attention"])
    assert window_frames(hybrid, Plan()) == 6
    assert window_frames(full, Plan(window_frames=9)) == 9
    with pytest.raises(InfiniteVLError, match="window-frames"):
        window_frames(full, Plan())


def test_what_are_no_results(tmp_path: Path):
    for text in ("", "[]", "{}", '{"cells": 1}'):
        with pytest.raises(InfiniteVLError, match="no results"):
            Results.from_json(text)


def test_a_folder_that_cannot_be_written(tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(InfiniteVLError, match="cannot write"):
        run.save(Results({"name": "x", "parameters": 1, "reach": 1}, QUICK, 1), tmp_path / "file" / "out")
