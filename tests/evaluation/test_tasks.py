"""What is asked, and how it is counted."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from infinitevl.data.streamworld import Question
from infinitevl.errors import InfiniteVLError
from infinitevl.evaluation import run, tasks
from infinitevl.evaluation.run import Score, correct, evaluate, memory_cells, short_cells, wilson
from infinitevl.evaluation.tasks import PERCEPTION, Cell, Episodes, batches
from infinitevl.model.random_model import random_model

SIZE = 112


@pytest.mark.parametrize("group", PERCEPTION)
def test_perception(group: str):
    cell = Cell(group, group, frames=6)
    for seed in range(4):
        frames, question = cell.episode(seed, "test", SIZE)
        again, asked_again = cell.episode(seed, "test", SIZE)
        assert frames.shape == (6, SIZE, SIZE, 3)
        assert np.array_equal(frames, again)
        assert question == asked_again
        assert question.group == group
        assert question.age < 6
    assert not np.array_equal(frames, cell.episode(0, "test", SIZE)[0])
    assert not np.array_equal(frames, cell.episode(3, "validation", SIZE)[0])


@pytest.mark.parametrize("cell", memory_cells(10, 3, [0, 0.5, 2, 8]), ids=lambda cell: cell.name)
def test_memory(cell: Cell):
    for seed in range(3):
        frames, question = cell.episode(seed, "test", SIZE)
        assert (len(frames), question.group) == (cell.frames, "recall")
        assert question.age == cell.age
        assert question.frame == cell.frames - 1
        assert question == cell.episode(seed, "test", SIZE)[1]


def test_cells_of_memory():
    cells = memory_cells(10, 3, [0.5, 2, 8])
    assert [cell.age for cell in cells] == [5, 20, 80]
    assert [cell.cards for cell in cells] == [3] * 3
    assert all(cell.forget_at is None for cell in cells)
    forgetful = memory_cells(10, 3, [2], forget=True)[0]
    assert forgetful == replace(cells[1], name=forgetful.name, forget_at=forgetful.frames - 10)
    assert [cell.group for cell in short_cells()] == list(PERCEPTION)


def test_what_cannot_be_asked(monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(ValueError, match="whole past"):
        Cell("order", "order", frames=8)
    monkeypatch.setattr(tasks, "MOST_TRIES", 0)
    with pytest.raises(InfiniteVLError, match="no question of group see"):
        Cell("see", "see", frames=8).episode(0, "test", SIZE)


def test_batches():
    episodes = Episodes(Cell("see", "see", frames=2), 5, "test", SIZE)
    plain, parallel = (list(batches(episodes, 2, workers)) for workers in (0, 2))
    assert [len(questions) for _, questions in plain] == [2, 2, 1]
    assert [frames.shape for frames, _ in plain] == [(n, 2, SIZE, SIZE, 3) for n in (2, 2, 1)]
    assert all(torch.equal(a[0], b[0]) and a[1] == b[1] for a, b in zip(plain, parallel, strict=True))


@pytest.mark.parametrize(
    ("right", "asked", "low", "high"),
    [  # by the formula in Wilson (1927), as other packages give it
        (0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (5, 10, 0.2366, 0.7634), (1, 20, 0.0089, 0.2361),
        (50, 100, 0.4038, 0.5962), (950, 1000, 0.9347, 0.9618), (0, 0, 0.0, 1.0),
    ],
)  # fmt: skip
def test_wilson(right: int, asked: int, low: float, high: float):
    assert wilson(right, asked) == pytest.approx((low, high), abs=1e-4)


def test_an_answer_is_exact_but_for_case_and_space():
    question = Cell("read", "read", frames=2).episode(0, "test", SIZE)[1]
    question = replace(question, answer="Red 12")
    assert all(correct(answer, question) for answer in ("Red 12", " red 12\n"))
    assert not any(correct(answer, question) for answer in ("red", "red 12.", "red  12", ""))


def test_scores(monkeypatch: pytest.MonkeyPatch):
    """Right answers are counted, the memory is emptied when it should be, chance is the mean of all."""
    cells = [Cell("a", "see", frames=2), *memory_cells(4, 1, [1], forget=True)]
    seen: list[Question] = []
    calls: list[str] = []

    class Oracle:
        def __init__(self, model: object, streams: int, fps: float) -> None:
            assert fps == 10.0

        def see(self, frames: torch.Tensor) -> None:
            calls.append("see")

        def forget(self) -> None:
            calls.append("forget")

        def ask(self, questions: list[str]) -> list[str]:
            answers = {question.question: question.answer for question in seen}
            return [answers[q] if i % 2 == 0 else "no idea" for i, q in enumerate(questions)]

    def noted(*args: object) -> object:
        for frames, questions in batches(*args):
            seen[:] = questions
            yield frames, questions

    monkeypatch.setattr(run, "Lockstep", Oracle)
    monkeypatch.setattr(run, "batches", noted)
    told: list[Score] = []
    scores = evaluate(None, cells, count=5, rows=2, tell=told.append)  # pyright: ignore[reportArgumentType]
    assert scores == told
    assert [(score.asked, score.right, score.share) for score in scores] == [(5, 3, 0.6)] * 2
    assert scores[1].mean_age == 4
    row = scores[0].row()
    assert row["accuracy"] == 0.6
    assert row["low"] < 0.6 < row["high"]
    assert 0 < row["chance"] < 1
    first, memory = calls[: 3 * 2], calls[3 * 2 :]
    assert first == ["see"] * 6
    frames = cells[1].frames
    assert memory == [*["see"] * (frames - 4), "forget", *["see"] * 4] * 3


def test_a_model_is_evaluated():
    model = random_model(num_hidden_layers=2)
    (score,) = evaluate(model, [Cell("see", "see", frames=2)], count=3, rows=2)
    assert (score.asked, score.right) == (3, 0)
