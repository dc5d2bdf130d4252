"""Answers on their way, from the prompt to the last token. Only the engine's thread is in here."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import monotonic

from torch import Tensor

from infinitevl.engine.records import Answer, Frame, Watched, tell
from infinitevl.engine.runner import Runner
from infinitevl.engine.scheduler import Scheduler
from infinitevl.engine.types import Answered, Delta, Observe, Reason
from infinitevl.model.modeling import InfiniteVLForConditionalGeneration
from infinitevl.model.transfer import fetch

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Ahead:
    """Tokens that were chosen for some answers, [rows] on the device, and are on their way to the host."""

    answers: Sequence[Answer]
    tokens: Tensor
    read: Callable[[], list[int]]


def looks_ahead(model: InfiniteVLForConditionalGeneration) -> bool:
    """Whether a step is launched without waiting for it, as on a GPU, so that the next one can be launched at once."""
    return model.device.type == "cuda"


class Answers:
    """All that are being written.

    On a GPU the tokens of a step are read when the next one is under way, where that is of the same answers: neither
    the device nor the host waits for the other. So an answer's last token may have been fed before it is known to be
    the last; an end mark changes nothing then.
    """

    def __init__(self, runner: Runner, scheduler: Scheduler[Answer, Frame], observe: Observe) -> None:
        self._runner, self._scheduler, self._observe = runner, scheduler, observe
        self._going: dict[str, Answer] = {}
        self._looks_ahead = looks_ahead(runner.model)
        self._ahead: Ahead | None = None

    def __len__(self) -> int:
        return len(self._going)

    def add(self, answer: Answer) -> None:
        self._going[answer.id] = answer
        self._scheduler.prompts.append(answer)

    def cancel(self, answer: str) -> None:
        """Nothing happens where it has ended."""
        self.settle()
        if answer in self._going:
            self._end(self._going[answer], "cancelled")

    def cancel_all(self, watched: Watched | None = None) -> None:
        """Of a stream, or of all."""
        self.settle()
        for answer in list(self._going.values()):
            if watched is None or answer.watched is watched:
                self._end(answer, "cancelled")

    def fail(self, answers: Sequence[Answer], error: Exception) -> None:
        """Those that have not ended. From where the error is handled."""
        log.exception("answers failed")
        for answer in answers:
            if answer.id in self._going:
                self._end(answer, "error", _line(error))

    def prefill(self, answers: Sequence[Answer]) -> None:
        """The next piece of some prompts; the first token of those that are whole then."""
        for answer in answers:
            if answer.remember and answer.watched:
                answer.watched.session.phase = "answered"
        chosen = self._runner.prefill([a.prefill for a in answers], [a.writer.sampling for a in answers])
        for answer, token in zip(answers, chosen, strict=True):
            if token is not None:
                self._scheduler.prompts.remove(answer)
                self._scheduler.writing.append(answer)
                self._put(answer, token)

    def write(self, answers: Sequence[Answer]) -> None:
        """The next token of some answers."""
        before = self._ahead
        if before and list(before.answers) != list(answers):
            self.settle()
            before, answers = None, [answer for answer in answers if answer.id in self._going]
        if not answers:
            return
        tokens = before.tokens if before else [answer.token or 0 for answer in answers]
        samplings = [answer.writer.sampling for answer in answers]
        chosen = self._runner.write([answer.prefill.seat for answer in answers], tokens, samplings)
        self._ahead = Ahead(answers, chosen, fetch(chosen))
        for answer in answers:
            answer.token = None
        self._observe("batch_decode", len(answers))
        if before:
            self._tell(before, fed=True)
        if not self._looks_ahead:
            self.settle()

    def settle(self) -> None:
        """Tell the tokens that are not read yet, so that every answer is where its stream is."""
        ahead, self._ahead = self._ahead, None
        if ahead:
            self._tell(ahead, fed=False)

    def _tell(self, ahead: Ahead, *, fed: bool) -> None:
        try:
            tokens = ahead.read()
        except Exception as error:  # of the device
            self.fail(ahead.answers, error)
            return
        for answer, token in zip(ahead.answers, tokens, strict=False):  # then those of rows that rest
            try:
                if answer.id in self._going:
                    self._put(answer, token, fed)
            except Exception as error:
                self.fail([answer], error)

    def _put(self, answer: Answer, token: int, fed: bool = False) -> None:
        """Tell the text of the token that was chosen, end where it ends."""
        due, text = answer.writer.write(token)
        answer.token = None if fed else due
        if answer.first is None:
            answer.first = monotonic() - answer.asked
            self._observe("first_token", answer.first)
        self._observe("tokens", 1)
        answer.text += text
        if text:
            tell(answer.told, Delta(text))
        if answer.writer.reason:
            self._end(answer, answer.writer.reason)

    def _end(self, answer: Answer, reason: Reason, error: str | None = None) -> None:
        """Let go of everything of an answer, and tell its end."""
        del self._going[answer.id]
        self._scheduler.forget(answer)
        try:
            if answer.remember and answer.watched:
                self._remember(answer, answer.watched)
            else:
                self._runner.pool.release(answer.prefill.seat)
        except Exception as failed:  # its end is told all the same
            log.exception("the end of an answer failed")
            reason, error = "error", _line(failed)
        seconds = monotonic() - answer.asked
        self._observe("answers_failed" if reason == "error" else "answers", 1)
        self._observe("answer_seconds", seconds)
        tokens = answer.prefill.prompt.length, answer.writer.tokens
        first, at = answer.first, (answer.time, answer.frames)
        tell(answer.told, Answered(answer.text, reason, *at, *tokens, first, seconds, error))

    def _remember(self, answer: Answer, watched: Watched) -> None:
        """What was chosen becomes part of the stream; frames may follow."""
        prefill = answer.prefill
        try:
            if prefill.done:  # else nothing of it is in
                while prefill.done < prefill.prompt.length:
                    self._runner.prefill([prefill], [answer.writer.sampling])
                if answer.token is not None:
                    self._runner.write([prefill.seat], [answer.token], [answer.writer.sampling])
                watched.session.stats.tokens += prefill.done + answer.writer.tokens
                watched.dirty = True
        finally:
            watched.line.held = False


def _line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
