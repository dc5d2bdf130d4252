"""What the demo shows while it runs: every question with its answer, and how many were right."""

from collections.abc import Iterable
from dataclasses import dataclass
from types import TracebackType

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from infinitevl.commands.console import CONTROL, size
from infinitevl.commands.film import FPS, Film
from infinitevl.data.streamworld import Question
from infinitevl.evaluation.scores import Score, correct, wilson
from infinitevl.streaming.stream import Stream

TOLD_EVERY = 10.0  # seconds of the film, where nothing on the screen can be changed
LONGEST_SHOWN = 40  # characters of an answer
FEW_FACTS = "The intervals take all questions as independent, though many are about the same few facts of one film."


@dataclass(frozen=True)
class Answered:
    """A question with its answer; windows: how old the evidence is, in windows of the model's attention."""

    question: Question
    text: str
    windows: float

    @property
    def right(self) -> bool:
        return correct(self.text, self.question)

    @property
    def long_ago(self) -> bool:
        """Whether the evidence has left the window, so that only the memory can know."""
        return self.windows >= 1


def count(answers: Iterable[Answered]) -> Score:
    """How many are right."""
    score = Score()
    for answer in answers:
        score.add(Score(1, answer.right, answer.question.chance, answer.question.age))
    return score


class Board:
    """Lines for a terminal or a pipe. A terminal also has a line at its foot that changes, while this is entered.

    window: of the model's attention, in tokens.
    """

    def __init__(self, console: Console, window: int) -> None:
        self.answers: list[Answered] = []
        self._console, self._window = console, window
        self._foot = console.status("watching") if console.is_terminal else None
        self._told = 0.0

    def __enter__(self) -> "Board":
        if self._foot:
            self._foot.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._foot:
            self._foot.stop()

    def introduce(self, film: Film, seconds: int) -> None:
        frames = self._window / film.tokens
        self._console.print(
            f"{film.path}: {seconds} s of StreamWorld, seed {film.seed}; {len(film.questions)} questions\n"
            f"{film.cards} cards come in the first seconds, none later. The attention window holds {frames:g} frames "
            f"({frames / FPS:.1f} s): what is older, only the memory can know.\n"
            "Asked: what can be read and seen now, and what was on cards and signs that have gone.\n"
            "Few cards, and neither motion nor order nor counting: there the model in the box is weak, see its card.\n"
        )

    def add(self, question: Question, pieces: Iterable[str]) -> None:
        """Read the answer and show it beside the truth."""
        answer = Answered(question, plain(pieces), question.age_tokens / self._window)
        self.answers.append(answer)
        self._console.print(self._line(answer))

    def tell(self, stream: Stream, time: float) -> None:
        """How the stream is doing, and the score so far."""
        if self._foot is None and time < self._told + TOLD_EVERY:
            return
        self._told = time
        now, ago = self._halves()
        line = (
            f"{time:6.1f} s, {stream.stats.frames} frames, {1 / stream.stats.seconds_per_frame:.0f} frames/s, "
            f"memory {size(stream.stats.state_bytes)}; right: now {_share(now)}, long ago {_share(ago)}"
        )
        if self._foot:
            self._foot.update(line)
        else:
            self._console.print(line)

    def result(self) -> None:
        """A table of both halves."""
        table = Table("", "right", "95% interval", "guessing", caption=FEW_FACTS, caption_justify="left")
        for name, score in zip(("now: in the window", "long ago: beyond it"), self._halves(), strict=True):
            low, high = wilson(score.right, score.asked)
            table.add_row(name, _share(score), f"{low:.0%} to {high:.0%}", f"{score.chance:.0%}")
        self._console.print(table)

    def _halves(self) -> tuple[Score, Score]:
        """Of now and of long ago."""
        now = count(answer for answer in self.answers if not answer.long_ago)
        return now, count(answer for answer in self.answers if answer.long_ago)

    @staticmethod
    def _line(answer: Answered) -> str:
        question, text = answer.question, escape(answer.text[:LONGEST_SHOWN])
        age = f"{question.age / FPS:.1f} s, {answer.windows:.1f} windows ago" if question.age else "now"
        mark, shown = (
            ("[green]✓[/]", text) if answer.right else ("[red]✗[/]", f"{text} [dim](truth: {question.answer})[/]")
        )
        return f"{mark} {question.time:5.1f} s  [dim]{age:<27}[/] {escape(question.question)} [bold]{shown}[/]"


def _share(score: Score) -> str:
    return f"{score.right} of {score.asked}" + (f" ({score.right / score.asked:.0%})" if score.asked else "")


def plain(pieces: Iterable[str]) -> str:
    """An answer on one line, without what would confuse a terminal."""
    return CONTROL.sub("", " ".join("".join(pieces).split()))
