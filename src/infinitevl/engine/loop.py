"""The engine's thread: frames, prompts and tokens, step after step, and what others want of it in between."""

import logging
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from time import monotonic
from typing import TypeVar

import torch

from infinitevl.engine.answers import Answers
from infinitevl.engine.records import Answer, Frame, Watched, tell
from infinitevl.engine.runner import Runner
from infinitevl.engine.saving import Saver
from infinitevl.engine.scheduler import Line, Scheduler, Step
from infinitevl.engine.store import Store
from infinitevl.engine.types import Budget, FrameResult, Observe, Result
from infinitevl.errors import InfiniteVLError, Overloaded, StorageError

log = logging.getLogger(__name__)
T = TypeVar("T")
CPU_FRAMES = 4  # at once: more make the others wait, and are no faster there


class Loop:
    """Runs in a thread of its own from `start` to `close`.

    name: of this engine, where others share the store. ready: guards the lines of the scheduler and `streams`;
    notified whenever anything changes.
    """

    def __init__(
        self, runner: Runner, budget: Budget, store: Store | None, observe: Observe, name: str | None
    ) -> None:
        slots, on_cpu = budget.slots, runner.model.device.type == "cpu"
        self.runner, self._observe = runner, observe
        self.scheduler: Scheduler[Answer, Frame] = Scheduler(slots, min(slots, CPU_FRAMES) if on_cpu else slots)
        self.answers = Answers(runner, self.scheduler, observe)
        self.streams: dict[str, Watched] = {}
        self.ready = threading.Condition()
        self.saver = Saver(store, runner.pool, budget, observe, self.wake, name) if store else None
        self.closing = self._ended = False
        self._calls: deque[Callable[[], None]] = deque()
        self._thread = threading.Thread(target=self._run, name="infinitevl engine", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> list[StorageError]:
        """End, and write every stream that changed; what could not be written."""
        with self.ready:
            self.closing = True
            self.ready.notify_all()
        self._thread.join()
        return self.saver.close(self.streams.values()) if self.saver else []

    def call(self, function: Callable[[], T]) -> Future[T]:
        """Have something done between two steps."""
        future: Future[T] = Future()

        def run() -> None:
            try:
                future.set_result(function())
            except Exception as error:
                future.set_exception(error)

        with self.ready:
            if not self._ended:
                self._calls.append(run)
                self.ready.notify_all()
                return future
        run()
        return future

    def wake(self) -> None:
        with self.ready:
            self.ready.notify_all()

    def check_open(self) -> None:
        if self.closing:
            raise Overloaded("the engine is going down")

    def leave(self, watched: Watched) -> None:
        """Forget a stream. From the engine's thread."""
        with self.ready:
            self.streams.pop(watched.id, None)
            self.scheduler.lines.pop(watched.id, None)
            watched.gone = True
            self.ready.notify_all()
        self.answers.cancel_all(watched)
        self._lose_frames(watched)
        self.runner.pool.release(watched.seat)

    def _run(self) -> None:
        while not self.closing:
            self._answer_calls()
            if step := self._next():
                self._compute(step)
            if self.saver:
                self.saver.work(list(self.streams.values()))
                self._let_go()
        with self.ready:
            self._ended = True
        self._answer_calls()
        self.answers.cancel_all()
        for watched in self.streams.values():
            self._lose_frames(watched)

    def _let_go(self) -> None:
        """Of streams that another engine has adopted."""
        for watched in [watched for watched in self.streams.values() if watched.taken]:
            log.warning("stream %s is held by another engine now", watched.id)
            self.leave(watched)

    def _answer_calls(self) -> None:
        with self.ready:
            calls = [self._calls.popleft() for _ in range(len(self._calls))]
        for call in calls:
            call()

    def _next(self) -> Step[Answer, Frame] | None:
        """What is computed next; after a wait, nothing."""
        with self.ready:
            step = self.scheduler.next(monotonic())
            if not (step or self._calls or self.closing):
                self.ready.wait(self.saver.seconds(self.streams.values()) if self.saver else None)
            return step

    def _compute(self, step: Step[Answer, Frame]) -> None:
        began = monotonic()
        if not step.decode:
            began = self._settle(began)
        if step.frames:
            self._watch(self._at_hand(step))
        elif step.prefill:
            self._advance(self.answers.prefill, step.prefill)
        else:
            self._advance(self.answers.write, step.decode)
        seconds = monotonic() - began
        with self.ready:
            self.scheduler.spent(step.work, seconds)
            self.ready.notify_all()
        self._observe("step_seconds", seconds)

    def _settle(self, began: float) -> float:
        """Tell what a step of tokens has chosen, which is done in their time; when that had ended."""
        self.answers.settle()
        ended = monotonic()
        with self.ready:
            self.scheduler.spent("text", ended - began)
        return ended

    def _advance(self, work: Callable[[list[Answer]], None], answers: list[Answer]) -> None:
        try:
            work(answers)
        except Exception as error:  # these fail alone: the others go on
            self.answers.fail(answers, error)

    def _at_hand(self, step: Step[Answer, Frame]) -> list[tuple[Watched, Frame]]:
        """The streams and frames of a step. A stream that cannot be read from the store is left out."""
        found = []
        for line, frame in step.frames:
            watched = self.streams[str(line.name)]
            try:
                self.runner.pool.fetch(watched.seat)
                found.append((watched, frame))
            except InfiniteVLError as error:
                _told(line, frame, "refused", str(error))
        return found

    def _watch(self, batch: list[tuple[Watched, Frame]]) -> None:
        if not batch:
            return
        try:
            streams, frames = zip(*batch, strict=True)
            pixels = torch.stack([frame.pixels for frame in frames])
            times = [frame.time for frame in frames]
            self.runner.watch([w.seat for w in streams], [w.session for w in streams], pixels, times)
        except Exception:  # none of it was written: these frames are lost, their streams go on
            log.exception("frames failed")
            for watched, frame in batch:
                _told(watched.line, frame, "refused", "internal error")
            return
        self._observe("frames", len(batch))
        self._observe("batch_frames", len(batch))
        for watched, frame in batch:
            self._seen(watched, frame)

    def _seen(self, watched: Watched, frame: Frame) -> None:
        now = monotonic()
        watched.dirty, watched.seen = True, frame.time
        watched.recent.append((now, now - frame.arrived))
        if watched.norms.due():
            watched.norms.add(frame.time, self.runner.norms(watched.seat))
        self._observe("frame_lag", now - frame.arrived)
        _told(watched.line, frame, "seen")

    def _lose_frames(self, watched: Watched) -> None:
        for frame, _ in watched.line.waiting:
            tell(frame.told, FrameResult("dropped", frame.time, monotonic() - frame.arrived))
        watched.line.waiting.clear()


def _told(line: Line[Frame], frame: Frame, result: Result, message: str | None = None) -> None:
    """Tell what became of a frame that was taken from its line."""
    line.busy = False
    tell(frame.told, FrameResult(result, frame.time, monotonic() - frame.arrived, message))
