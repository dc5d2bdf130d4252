"""Who is computed next: pure rules over names, times and sizes. It knows no tensors and no clock of its own."""

from collections import deque
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Generic, Literal, TypeVar

Work = Literal["frames", "text"]
Job = TypeVar("Job")
Item = TypeVar("Item")

WEIGHTS: dict[Work, float] = {"frames": 3.0, "text": 1.0}  # shares of the time where both have work


@dataclass
class Line(Generic[Item]):
    """The newest frames of one stream that wait for their turn.

    period: seconds between its frames; due: when the stream should have been served, which a newer frame that
    takes an older one's place does not put off; held: an answer is being written into the stream; busy: a frame was
    taken, and nothing was told of it yet.
    """

    name: Hashable
    period: float
    room: int
    waiting: deque[tuple[Item, Hashable]] = field(default_factory=deque)
    due: float = 0.0
    held: bool = False
    busy: bool = False
    turn: int = 0  # when it was last served, in steps

    @property
    def unseen(self) -> int:
        """Frames that came and are not in memory yet."""
        return len(self.waiting) + self.busy

    def add(self, item: Item, kind: Hashable, now: float) -> Item | None:
        """Let a frame wait; the one that had to go, if any. kind: frames of one kind can be computed together."""
        if not self.waiting:
            self.due = now + self.period
        self.waiting.append((item, kind))
        return self.waiting.popleft()[0] if len(self.waiting) > self.room else None

    def take(self, now: float, turn: int) -> Item:
        """The oldest frame."""
        item, _ = self.waiting.popleft()
        self.due, self.turn, self.busy = now + self.period, turn, True
        return item


class Shares:
    """Divides time between kinds of work, by weight: who has had least is next. Idle time is not saved up."""

    def __init__(self, weights: dict[Work, float]) -> None:
        self._weights = weights
        self._spent = dict.fromkeys(weights, 0.0)
        self._active: set[Work] = set()

    def choose(self, active: set[Work]) -> Work:
        """Of those that have work."""
        floor = min((self._spent[work] for work in self._active & active), default=max(self._spent.values()))
        for work in active - self._active:
            self._spent[work] = max(self._spent[work], floor)
        self._active = set(active)
        return min(active, key=lambda work: (self._spent[work], work))

    def charge(self, work: Work, seconds: float) -> None:
        self._spent[work] += seconds / self._weights[work]


@dataclass(frozen=True)
class Step(Generic[Job, Item]):
    """What is computed together: frames, or a part of prompts, or a token of answers; the others are empty."""

    work: Work
    frames: list[tuple[Line[Item], Item]] = field(default_factory=list)
    prefill: list[Job] = field(default_factory=list)
    decode: list[Job] = field(default_factory=list)


class Scheduler(Generic[Job, Item]):
    """Frames go to streams in the order in which they are due, prompts in the order in which they came, tokens to all
    answers in turn. At most `frames` streams, or `rows` answers, are computed at once."""

    def __init__(self, rows: int, frames: int) -> None:
        self.rows, self.frames = rows, frames
        self.lines: dict[Hashable, Line[Item]] = {}
        self.prompts: deque[Job] = deque()
        self.writing: deque[Job] = deque()
        self._shares = Shares(WEIGHTS)
        self._turn = 0

    def next(self, now: float) -> Step[Job, Item] | None:
        """What is computed now; None where there is nothing. Frames leave their lines, prompts and answers stay."""
        ready = [line for line in self.lines.values() if line.waiting and not line.held]
        active: set[Work] = {"frames"} if ready else set()
        if self.prompts or self.writing:
            active.add("text")
        if not active:
            return None
        if self._shares.choose(active) == "frames":
            return Step("frames", frames=self._frames(ready, now))
        if self.prompts:
            return Step("text", prefill=list(self.prompts)[: self.rows])
        turn = [self.writing.popleft() for _ in range(min(self.rows, len(self.writing)))]
        self.writing.extend(turn)  # those that were not served come first next time
        return Step("text", decode=turn)

    def spent(self, work: Work, seconds: float) -> None:
        self._shares.charge(work, seconds)

    def forget(self, job: Job) -> None:
        """An answer ended."""
        for queue in (self.prompts, self.writing):
            if job in queue:
                queue.remove(job)

    def _frames(self, ready: list[Line[Item]], now: float) -> list[tuple[Line[Item], Item]]:
        """One frame of each of the streams that are due first, of one kind."""
        self._turn += 1
        ready.sort(key=lambda line: (line.due, line.turn))
        kind = ready[0].waiting[0][1]
        chosen = [line for line in ready if line.waiting[0][1] == kind][: self.frames]
        return [(line, line.take(now, self._turn)) for line in chosen]
