"""Right answers, counted."""

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from infinitevl.data.streamworld import Question


@dataclass(frozen=True, slots=True)
class Cell:
    """What one accuracy is of.

    test: perception, episode, text, memory or length; group: of StreamWorld; variant: what was done to the model.
    windows: age of the fact asked about, in attention windows; cards: facts shown; tokens: seen before the question.
    """

    test: str
    group: str
    variant: str = "model"
    windows: float | None = None
    cards: int | None = None
    tokens: int | None = None


@dataclass(frozen=True, slots=True)
class Ask:
    """A question that counts towards a cell."""

    cell: Cell
    question: Question


@dataclass
class Score:
    """Right answers among `asked`. chance: of a guesser who knows the answer set; age: mean, in frames."""

    asked: int = 0
    right: int = 0
    chance: float = 0.0
    age: float = 0.0

    def add(self, other: "Score") -> None:
        """Count the other's questions, too."""
        asked = self.asked + other.asked
        self.chance += (other.chance - self.chance) * other.asked / max(1, asked)
        self.age += (other.age - self.age) * other.asked / max(1, asked)
        self.asked, self.right = asked, self.right + other.right


@dataclass(frozen=True)
class Line:
    """A line of results: fields of Cell, `kind` of question or `held_out` where that is what it tells apart, and
    the accuracy with its 95% interval (Wilson; questions on one stream are taken as independent)."""

    test: str
    group: str
    variant: str
    windows: float | None
    cards: int | None
    tokens: int | None
    kind: str | None
    held_out: bool | None
    asked: int
    right: int
    accuracy: float
    low: float
    high: float
    chance: float
    age: float


class Tally:
    """Counts answers by cell, kind of question, and whether it is about what training never showed."""

    def __init__(self) -> None:
        self._scores: dict[tuple[Cell, str, bool], Score] = {}

    def count(self, ask: Ask, answer: str) -> None:
        question = ask.question
        score = self._scores.setdefault((ask.cell, question.kind, question.held_out), Score())
        score.add(Score(1, correct(answer, question), question.chance, question.age))

    def add(self, other: "Tally") -> None:
        """Count the other's answers, too."""
        for key, score in other._scores.items():
            self._scores.setdefault(key, Score()).add(score)

    def cells(self) -> list[Line]:
        """A line for each cell."""
        return _lines((cell, None, None, score) for (cell, _, _), score in self._scores.items())

    def kinds(self) -> list[Line]:
        """A line for each kind of question in each test, of the unchanged model."""
        return _lines((_broad(cell), kind, None, score) for (cell, kind, _), score in self._plain())

    def held_out(self) -> list[Line]:
        """Two lines for each group in each test, of the unchanged model."""
        return _lines((_broad(cell), None, held_out, score) for (cell, _, held_out), score in self._plain())

    def _plain(self) -> Iterable[tuple[tuple[Cell, str, bool], Score]]:
        return (item for item in self._scores.items() if item[0][0].variant == "model")


def correct(answer: str, question: Question) -> bool:
    """Exact, but for case and space."""
    return answer.strip().lower() == question.answer.lower()


def wilson(right: int, asked: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson's score interval of a share, 95% for z = 1.96. (0, 1) where nothing was asked."""
    if asked == 0:
        return 0.0, 1.0
    share, zz = right / asked, z * z / asked
    middle = (share + zz / 2) / (1 + zz)
    half = z / (1 + zz) * math.sqrt(share * (1 - share) / asked + zz / (4 * asked))
    return max(0.0, middle - half), min(1.0, middle + half)


def _broad(cell: Cell) -> Cell:
    return replace(cell, windows=None, cards=None, tokens=None)


def _lines(parts: Iterable[tuple[Cell, str | None, bool | None, Score]]) -> list[Line]:
    merged: dict[tuple[Cell, str | None, bool | None], Score] = {}
    for cell, kind, held_out, score in parts:
        merged.setdefault((cell, kind, held_out), Score()).add(score)
    return [_line(*key, score) for key, score in sorted(merged.items(), key=_order)]


def _line(cell: Cell, kind: str | None, held_out: bool | None, score: Score) -> Line:
    low, high = wilson(score.right, score.asked)
    found: dict[str, Any] = {"accuracy": score.right / max(1, score.asked), "low": low, "high": high}
    return Line(**asdict(cell), kind=kind, held_out=held_out, **asdict(score), **found)


def _order(item: tuple[tuple[Cell, str | None, bool | None], Score]) -> list[tuple[bool, Any]]:
    """Numbers by size, names by alphabet, what is None first."""
    (cell, kind, held_out), _ = item
    values = [*(getattr(cell, field.name) for field in fields(cell)), kind, held_out]
    return [(value is not None, value or 0) if not isinstance(value, str) else (True, value) for value in values]
