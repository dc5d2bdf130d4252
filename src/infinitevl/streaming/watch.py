"""Run a stream over a video and ask questions on the way."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from infinitevl.errors import InfiniteVLError

if TYPE_CHECKING:
    from infinitevl.streaming.stream import Stream


@dataclass(frozen=True)
class Question:
    """`time` is in seconds of the video; None asks after its last frame."""

    text: str
    time: float | None = None

    @classmethod
    def parse(cls, given: str) -> "Question":
        """ "12.5: what is it?" or "what is it?"; a colon after anything but a number belongs to the question."""
        head, colon, rest = given.partition(":")
        try:
            time = float(head) if colon else None
        except ValueError:
            time = None
        question = cls(given.strip(), None) if time is None else cls(rest.strip(), time)
        if not question.text or (time is not None and not 0 <= time < float("inf")):
            raise InfiniteVLError(f'a question looks like "12.5: what is on the sign?", not {given!r}')
        return question


@dataclass(frozen=True)
class Seen:
    """A frame was taken in at `time`."""

    time: float


@dataclass(frozen=True)
class Asked:
    """A question was asked at `time`; read the answer from `pieces`."""

    time: float
    question: str
    pieces: Iterator[str]


def watch(stream: "Stream", video: Any, questions: Iterable[Question] = (), **options: Any) -> Iterator[Seen | Asked]:
    """Show `video` (as `open_video` opens it) to `stream`; a question with time t is asked of the frames up to t.

    `options` are those of `Stream.ask`. Questions later than the last frame are asked after it.
    """
    waiting = sorted(questions, key=lambda q: float("inf") if q.time is None else q.time)
    dropped, last = stream.session.stats.dropped, 0.0
    for time, frame in video:
        while waiting and waiting[0].time is not None and waiting[0].time < time:
            yield _asked(stream, waiting.pop(0), last, options)
        last = time
        seen = stream.see(frame, time)
        stream.session.stats.dropped = dropped + video.dropped
        if seen:
            yield Seen(time)
    for question in waiting:
        yield _asked(stream, question, last, options)


def _asked(stream: "Stream", question: Question, now: float, options: dict[str, Any]) -> Asked:
    time = now if question.time is None else question.time
    return Asked(time, question.text, stream.ask(question.text, **options))
