"""How answers are counted."""

from dataclasses import replace

import pytest

from infinitevl.data.streamworld import Question
from infinitevl.evaluation.scores import Ask, Cell, Tally, correct, wilson

QUESTION = Question("see", "colour", "What?", "Red 12", 3, 0.3, 2, 32, 0, 0, 0.25, False)


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
    assert all(correct(answer, QUESTION) for answer in ("Red 12", " red 12\n"))
    assert not any(correct(answer, QUESTION) for answer in ("red", "red 12.", "red  12", ""))


def test_tally():
    near, far = Cell("memory", "see", windows=1, cards=8), Cell("memory", "see", windows=16, cards=8)
    reset = replace(near, variant="reset")
    tally = Tally()
    for cell, changes, answer in (
        (far, {"held_out": True}, "red 12"),
        (near, {}, "red 12"),
        (near, {"kind": "shape", "chance": 0.5, "age": 4}, "blue"),
        (near, {"kind": "shape", "chance": 0.75, "age": 6}, "blue"),
        (reset, {}, "blue"),
    ):
        tally.count(Ask(cell, replace(QUESTION, **changes)), answer)
    cells = tally.cells()
    assert [(x.windows, x.variant, x.right, x.asked) for x in cells] == [
        (1, "model", 1, 3), (16, "model", 1, 1), (1, "reset", 0, 1),
    ]  # fmt: skip
    assert (cells[0].accuracy, cells[0].chance, cells[0].age) == pytest.approx((1 / 3, 0.5, 4))
    assert (cells[0].low, cells[0].high) == wilson(1, 3)
    assert [(x.kind, x.right, x.asked, x.windows) for x in tally.kinds()] == [
        ("colour", 2, 2, None),
        ("shape", 0, 2, None),
    ]
    assert [(x.held_out, x.right, x.asked) for x in tally.held_out()] == [(False, 1, 3), (True, 1, 1)]
