"""When to ask what: questions that fall due wait for a frame at which they have a clear answer."""

from collections.abc import Iterable, Iterator

import numpy as np

from infinitevl.data.streamworld.log import Log
from infinitevl.data.streamworld.questions import Question, ask, kinds_of
from infinitevl.data.streamworld.truths import Context
from infinitevl.data.streamworld.world import World

PATIENCE = 24  # frames that a question waits for its own kind; then any kind of its group will do
GIVE_UP = 4 * PATIENCE  # frames after which it is dropped

Due = tuple[int, str]  # from this frame on, a question of this group or kind


class Asker:
    """Observes a world frame by frame and asks what falls due. Memory is constant.

    `due` comes in order of time and may be endless. A question is dropped when nothing of its group had a
    clear answer for too long, or in the final frame, `last`.
    """

    def __init__(
        self, world: World, due: Iterable[Due], rng: np.random.Generator, fps: float, last: int | None = None
    ) -> None:
        self.log, self._fps, self._last = Log(), fps, last
        self._at = Context(world, self.log, rng)
        self._due: Iterator[Due] = iter(due)
        self._next = next(self._due, None)
        self._waiting: list[tuple[int, str, str]] = []  # frame, group, kind

    def step(self) -> tuple[Question, ...]:
        """Observes the next frame, and gives the questions asked right after it."""
        index = self.log.index + 1
        self.log.observe(self._at.world.moment(index))
        while self._next and self._next[0] <= index:
            frame, group = self._next
            self._waiting.append((frame, group, self._draw(kinds_of(group))))
            self._next = next(self._due, None)
        asked: list[Question] = []
        self._waiting = [wish for wish in self._waiting if not self._try(wish, asked)]
        return tuple(asked)

    def _try(self, wish: tuple[int, str, str], asked: list[Question]) -> bool:
        """Asks what was wished for, or the next best if it waited long; whether the wish is done with."""
        frame, group, kind = wish
        question = self._new(kind, asked)
        waited, ends = self.log.index - frame, self.log.index == self._last
        if question is None and (ends or waited >= PATIENCE):
            kinds = kinds_of(group)
            tries = (self._new(kinds[i], asked) for i in self._at.rng.permutation(len(kinds)))
            question = next((found for found in tries if found), None)
        if question:
            asked.append(question)
        return question is not None or ends or waited >= GIVE_UP

    def _new(self, kind: str, asked: list[Question]) -> Question | None:
        """A question that was not asked at this frame already."""
        question = ask(kind, self._at, self._fps)
        repeated = question and any((q.kind, q.answer) == (question.kind, question.answer) for q in asked)
        return None if repeated else question

    def _draw(self, kinds: list[str]) -> str:
        return kinds[self._at.rng.integers(len(kinds))]


def scattered(rng: np.random.Generator, frames: int, questions: int, groups: tuple[str, ...]) -> list[Due]:
    """So many questions at random frames, the groups as often as each other."""
    order = np.concatenate([rng.permutation(len(groups)) for _ in range(questions // len(groups) + 1)])
    times = np.sort(rng.integers(0, frames, questions))
    return [(int(time), groups[g]) for time, g in zip(times, order[:questions], strict=True)]


def regular(rng: np.random.Generator, every: int, groups: tuple[str, ...], questions: int = 1) -> Iterator[Due]:
    """So many questions together somewhere in each `every` frames, for ever."""
    start = 0
    while True:
        frame = start + int(rng.integers(every))
        yield from ((frame, groups[i]) for i in rng.integers(len(groups), size=questions))
        start += every
