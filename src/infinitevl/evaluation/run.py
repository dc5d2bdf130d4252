"""Run the cells and count."""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from infinitevl.data.streamworld import Question
from infinitevl.data.streamworld.episodes import FPS
from infinitevl.evaluation.lockstep import Lockstep
from infinitevl.evaluation.tasks import PERCEPTION, Cell, Episodes, batches
from infinitevl.model.modeling import InfiniteVLForConditionalGeneration


@dataclass
class Score:
    """Of one cell: right answers among `asked`; chance: of a guesser who knows the answer set; mean_age: frames."""

    cell: Cell
    asked: int = 0
    right: int = 0
    chance: float = 0.0
    mean_age: float = 0.0

    @property
    def share(self) -> float:
        return self.right / self.asked if self.asked else 0.0

    @property
    def interval(self) -> tuple[float, float]:
        """The 95% interval of the share (Wilson)."""
        return wilson(self.right, self.asked)

    def row(self) -> dict[str, Any]:
        """All of it as one line of a table."""
        low, high = self.interval
        found = {"asked": self.asked, "accuracy": self.share, "low": low, "high": high}
        return {**asdict(self.cell), **found, "chance": self.chance, "mean_age": self.mean_age}


def wilson(right: int, asked: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson's score interval of a share, 95% for z = 1.96. (0, 1) where nothing was asked."""
    if asked == 0:
        return 0.0, 1.0
    share, zz = right / asked, z * z / asked
    middle = (share + zz / 2) / (1 + zz)
    half = z / (1 + zz) * math.sqrt(share * (1 - share) / asked + zz / (4 * asked))
    return max(0.0, middle - half), min(1.0, middle + half)


def correct(answer: str, question: Question) -> bool:
    """Exact, but for case and space."""
    return answer.strip().lower() == question.answer.lower()


def evaluate(
    model: InfiniteVLForConditionalGeneration,
    cells: Sequence[Cell],
    *,
    count: int,
    rows: int = 64,
    workers: int = 0,
    size: int = 112,
    tell: Callable[[Score], None] = lambda _: None,
) -> list[Score]:
    """Stream `count` test episodes of every cell, frame by frame, and ask at the end of each."""
    scores = []
    for cell in cells:
        scores.append(_score(model, cell, Episodes(cell, count, "test", size), rows, workers))
        tell(scores[-1])
    return scores


def _score(
    model: InfiniteVLForConditionalGeneration, cell: Cell, episodes: Episodes, rows: int, workers: int
) -> Score:
    score = Score(cell)
    for frames, questions in batches(episodes, rows, workers):
        answers = _answers(model, cell, frames, questions)
        for answer, question in zip(answers, questions, strict=True):
            score.asked += 1
            score.right += correct(answer, question)
            score.chance += (question.chance - score.chance) / score.asked
            score.mean_age += (question.age - score.mean_age) / score.asked
    return score


def _answers(
    model: InfiniteVLForConditionalGeneration, cell: Cell, frames: torch.Tensor, questions: list[Question]
) -> list[str]:
    streams = Lockstep(model, len(questions), FPS)
    for index, shown in enumerate(frames.transpose(0, 1)):
        if index == cell.forget_at:
            streams.forget()
        streams.see(shown)
    return streams.ask([question.question for question in questions])


def short_cells() -> list[Cell]:
    """Perception: what the window holds."""
    return [Cell(group, group, frames=8) for group in PERCEPTION]


def memory_cells(window_frames: int, cards: int, ages: Sequence[float], forget: bool = False) -> list[Cell]:
    """Recall of one of `cards` cards that was last visible `age` windows ago, for each age.

    forget: the Gated DeltaNet memory is emptied one window before the question, so that only the window answers.
    """
    cells = []
    for windows in ages:
        age = max(1, round(windows * window_frames))
        frames = age + 8 * cards + 2
        name = f"{cards} cards, {windows:g} windows" + (", memory reset" if forget else "")
        cells.append(Cell(name, "recall", frames, cards, age, frames - window_frames if forget else None))
    return cells
