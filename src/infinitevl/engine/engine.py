"""Many streams share one model: the engine's face, safe to call from any thread."""

import copy
import logging
import threading
import time as clock
import uuid
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from time import monotonic
from typing import Any, TypeVar

import numpy as np
import torch

from infinitevl.engine.answers import Answers
from infinitevl.engine.pool import Seat
from infinitevl.engine.prompt import MediaPrompt, TextPrompt, conversation
from infinitevl.engine.records import Answer, Frame, Watched, tell
from infinitevl.engine.runner import Prefill, Runner
from infinitevl.engine.saving import Saver, copied
from infinitevl.engine.scheduler import Line, Scheduler, Step
from infinitevl.engine.store import Store
from infinitevl.engine.types import AnswerTold, Asking, Budget, FrameResult, FrameTold, MemoryNorms, Observe, View
from infinitevl.errors import Conflict, InfiniteVLError, NotFound, Overloaded, StorageError
from infinitevl.model.modeling import InfiniteVLForConditionalGeneration
from infinitevl.model.state import DeltaState
from infinitevl.streaming.session import MIN_PIXELS, Session
from infinitevl.streaming.text import Sampling, TextPieces, Writer
from infinitevl.video.preprocess import resize

log = logging.getLogger(__name__)
T = TypeVar("T")
CPU_FRAMES = 4  # at once: more make the others wait, and are no faster there
LIVE_PERIOD = 0.1  # seconds in which a frame should be served where a stream has no rate


class Engine:
    """Streams, watched and asked at once, batched on one model by one thread.

    Every method may be called from any thread; those that need the engine's thread wait for it to end a step.
    `told` is called from the engine's thread, or the caller's: it must return at once. Without a store streams end
    with the engine.
    """

    def __init__(
        self,
        model: InfiniteVLForConditionalGeneration,
        budget: Budget | None = None,
        store: Store | None = None,
        observe: Observe = lambda name, value: None,
    ) -> None:
        self.model, self.budget, self.store, self._observe = model, budget or Budget(), store, observe
        slots = self.budget.slots
        self._runner = Runner(model, slots)
        pool = self._runner.pool
        self.state_bytes = pool.state.nbytes // slots
        self._layers = [i for i, layer in enumerate(pool.state.layers) if isinstance(layer, DeltaState)]
        self._scheduler: Scheduler[Answer, Frame] = Scheduler(
            slots, min(slots, CPU_FRAMES) if model.device.type == "cpu" else slots
        )
        self._answers = Answers(self._runner, self._scheduler, observe)
        self._streams: dict[str, Watched] = {}
        self._ready = threading.Condition()  # guards the lines of the scheduler, and all below
        self._calls: deque[Callable[[], None]] = deque()  # for the engine's thread, between steps
        self._closing = self._ended = False
        self._coming = 0  # questions that are on their way to the engine's thread
        self._talk = copy.deepcopy(model.processor)  # for conversations: a tokenizer is not for two threads
        self._talking = threading.Lock()
        self._saver = Saver(store, pool, self.budget, observe, self._wake) if store else None
        for id in store.names("streams") if store else ():
            self._take_up(id)
        self._thread = threading.Thread(target=self._run, name="infinitevl engine", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Take no more, cancel the answers, write every stream that changed to the store, end the thread.

        Raises StorageError where a stream could not be written, after the others.
        """
        self._closing = True
        self._wake()
        self._thread.join()
        if self._saver and (failed := self._saver.close(self._streams.values())):
            raise failed[0]

    def open(
        self,
        about: dict[str, Any],
        *,
        fps: float | None = 2.0,
        max_pixels: int | None = None,
        snapshot: str | None = None,
    ) -> str:
        """A new stream, or one that begins as a snapshot, with its rate and sizes; its id. It is in the store then.

        about: what the caller wants kept with it (JSON). Raises Overloaded, NotFound (snapshot), StorageError.
        """
        if snapshot is None:
            return self._begin(about, Session.begin(self.model.processor, fps, MIN_PIXELS, max_pixels), Seat())
        if self.store is None:
            raise NotFound(f"there is no snapshot {snapshot}")
        state = self._runner.pool.empty(Seat())
        session, _ = self.store.get("snapshots", snapshot, state)
        return self._begin(about, session, Seat(host=state))

    def describe(self, id: str, about: dict[str, Any]) -> None:
        """Replace what is kept with a stream; it is written to the store with the next save."""
        watched = self._find(id)
        watched.about, watched.dirty = about, True
        self._wake()

    def save(self, id: str) -> None:
        """Write a stream to the store now; it is there when this returns. Raises NotFound, StorageError."""
        watched = self._find(id)
        if saver := self._saver:
            self._call(lambda: saver.begin(watched)).result().result()

    def push(
        self,
        id: str,
        frame: np.ndarray,
        time: float | None = None,
        told: FrameTold | None = None,
        *,
        wait: float = 0.0,
    ) -> None:
        """Hand in a frame, uint8 RGB [H, W, 3]. Never waits for the model, only resizes the frame.

        time: in seconds of its source (None: now, on this machine's clock); one that goes back continues the stream's
        clock. told: called once, with what became of it. wait: where the stream's queue is full, seconds to wait for
        room before its oldest frame is dropped. Raises NotFound, Overloaded, or InfiniteVLError for what is no frame.
        """
        arrived, watched = monotonic(), self._find(id)
        with watched.lock:  # frames of a stream come one after the other
            session = watched.session
            whole, at = session.frame(frame), session.time(arrived - watched.opened if time is None else time)
            if watched.sampler is None or watched.sampler.take(at):
                session.last = at
                pixels = resize(whole[None], min_pixels=session.min_pixels, max_pixels=session.max_pixels)[0]
                own = pixels.data_ptr() != whole.data_ptr()  # else the caller may write into it
                self._enqueue(watched, Frame(pixels if own else pixels.clone(), at, arrived, told), wait)
            else:
                self._observe("frames_skipped", 1)
                tell(told, FrameResult("skipped", at, 0.0))

    def ask(self, id: str, question: str, asking: Asking, told: AnswerTold) -> str:
        """Ask about what is in memory now; the answer's id. Raises NotFound, Overloaded, Conflict, InfiniteVLError."""
        watched, asked, writer = self._find(id), monotonic(), self._new_writer(asking)

        def begin(name: str) -> Answer:
            prompt = TextPrompt(watched.session.question(self.model.processor, question), self.budget.prompt)
            if watched.gone:
                raise NotFound(f"there is no stream {id}")
            if asking.remember and watched.line.held:
                raise Conflict("an answer is being written into this stream already")
            seat = watched.seat if asking.remember else self._runner.pool.fork(watched.seat)
            watched.line.held = watched.line.held or asking.remember
            at = (watched.session.last, watched.session.stats.frames)
            return Answer(name, watched, Prefill(seat, prompt), writer, told, asking.remember, asked, *at)

        return self._admit(begin)

    def chat(self, messages: list[dict[str, Any]], asking: Asking, told: AnswerTold) -> str:
        """Answer a conversation (as `apply_chat_template` takes it), without a stream; the answer's id.

        Decodes pictures and videos in the calling thread. Raises TooLarge, Overloaded, InfiniteVLError.
        """
        asked, writer = monotonic(), self._new_writer(asking)
        with self._talking:
            inputs = conversation(self._talk, messages, self.budget.prompt)
        prompt = MediaPrompt(self.model, inputs)
        return self._admit(
            lambda name: Answer(name, None, Prefill(Seat(), prompt), writer, told, False, asked, None, 0)
        )

    def cancel(self, answer: str) -> None:
        """End an answer; its `told` gets an Answered with the reason "cancelled". Unknown ids are ignored."""
        self._call(lambda: self._answers.cancel(answer))

    def fork(self, id: str, about: dict[str, Any]) -> str:
        """A second stream with the same memory, in the store when this returns. Raises NotFound, Overloaded."""
        watched = self._find(id)
        self._check_room()
        state, session = self._call(lambda: copied(self._runner.pool, watched)).result()
        return self._begin(about, session, Seat(host=state))

    def snapshot(self, id: str, name: str, about: dict[str, Any]) -> None:
        """Write the stream's memory to the store as the snapshot `name`, which must be new; blocks until it is there.

        Raises NotFound, Conflict, StorageError.
        """
        watched = self._find(id)
        if self.store is None:
            raise StorageError("there is no store for snapshots")
        if self.store.holds("snapshots", name):
            raise Conflict(f"there is a snapshot {name} already")
        state, session = self._call(lambda: copied(self._runner.pool, watched)).result()
        self.store.put("snapshots", name, state, session, about)

    def drop(self, id: str) -> None:
        """Forget a stream, in memory and in the store. Its answers are cancelled, its frames dropped."""
        watched = self._find(id)
        self._call(lambda: self._leave(watched)).result()
        if self._saver and self.store:
            self._saver.submit(self.store.delete, "streams", id).result()

    def look(self, id: str) -> View:
        """How a stream is doing. NotFound where there is none."""
        return self._find(id).view(self.state_bytes)

    def streams(self) -> list[str]:
        """Their ids, those that lie in the store included."""
        return list(self._streams)

    def norms(self, id: str) -> MemoryNorms:
        """The memory's norm over time."""
        return self._find(id).norms.told(self._layers)

    def load(self) -> dict[str, int]:
        """How full it is."""
        with self._ready:
            waiting = sum(len(line.waiting) for line in self._scheduler.lines.values())
        slots, answers = self._runner.pool.seated, len(self._answers) + self._coming
        return {"streams": len(self._streams), "slots": slots, "answers": answers, "waiting_frames": waiting}

    # The engine's thread.

    def _run(self) -> None:
        while not self._closing:
            calls, step = self._next()
            for call in calls:
                call()
            if step:
                self._compute(step)
            if self._saver:
                self._saver.work(list(self._streams.values()))
        with self._ready:
            self._ended = True
        for call in self._calls:
            call()
        self._answers.cancel_all()
        for watched in self._streams.values():
            self._lose_frames(watched)

    def _next(self) -> tuple[list[Callable[[], None]], Step[Answer, Frame] | None]:
        """What is to be done now; after a wait, nothing."""
        with self._ready:
            calls = [self._calls.popleft() for _ in range(len(self._calls))]
            step = None if calls else self._scheduler.next(monotonic())
            if not (calls or step or self._closing):
                self._ready.wait(self._saver.seconds(self._streams.values()) if self._saver else None)
            return calls, step

    def _compute(self, step: Step[Answer, Frame]) -> None:
        began = monotonic()
        if step.frames:
            self._watch(self._at_hand(step))
        elif step.prefill:
            self._advance(self._answers.prefill, step.prefill)
        else:
            self._advance(self._answers.write, step.decode)
        seconds = monotonic() - began
        with self._ready:
            self._scheduler.spent(step, seconds)
            self._ready.notify_all()
        self._observe("step_seconds", seconds)

    def _advance(self, work: Callable[[list[Answer]], None], answers: list[Answer]) -> None:
        try:
            work(answers)
        except Exception as error:  # these fail alone: the others go on
            log.exception("answers failed")
            self._answers.fail(answers, error)

    def _at_hand(self, step: Step[Answer, Frame]) -> list[tuple[Watched, Frame]]:
        """The streams and frames of a step. A stream that cannot be read from the store is left out."""
        found = []
        for line, frame in step.frames:
            watched = self._streams[str(line.name)]
            try:
                self._runner.pool.fetch(watched.seat)
                found.append((watched, frame))
            except InfiniteVLError as error:
                tell(frame.told, FrameResult("refused", frame.time, monotonic() - frame.arrived, str(error)))
        return found

    def _watch(self, batch: list[tuple[Watched, Frame]]) -> None:
        if not batch:
            return
        try:
            streams, frames = zip(*batch, strict=True)
            pixels = torch.stack([frame.pixels for frame in frames])
            times = [frame.time for frame in frames]
            self._runner.watch([w.seat for w in streams], [w.session for w in streams], pixels, times)
        except Exception:  # none of it was written: these frames are lost, their streams go on
            log.exception("frames failed")
            for _, frame in batch:
                tell(frame.told, FrameResult("refused", frame.time, monotonic() - frame.arrived, "internal error"))
            return
        self._observe("frames", len(batch))
        self._observe("batch_frames", len(batch))
        for watched, frame in batch:
            self._seen(watched, frame)

    def _seen(self, watched: Watched, frame: Frame) -> None:
        now = monotonic()
        watched.dirty = True
        watched.recent.append((now, now - frame.arrived))
        if watched.norms.due():
            watched.norms.add(frame.time, self._runner.norms(watched.seat))
        self._observe("frame_lag", now - frame.arrived)
        tell(frame.told, FrameResult("seen", frame.time, now - frame.arrived))

    def _leave(self, watched: Watched) -> None:
        with self._ready:
            self._streams.pop(watched.id, None)
            self._scheduler.lines.pop(watched.id, None)
            watched.gone = True
        self._answers.cancel_all(watched)
        self._lose_frames(watched)
        self._runner.pool.release(watched.seat)

    def _lose_frames(self, watched: Watched) -> None:
        for frame, _ in watched.line.waiting:
            tell(frame.told, FrameResult("dropped", frame.time, monotonic() - frame.arrived))
        watched.line.waiting.clear()

    # What the methods share.

    def _begin(self, about: dict[str, Any], session: Session, seat: Seat) -> str:
        """Add a stream that is in the store already, so that it is never lost."""
        self._check_room()
        watched = self._watched(f"stream-{uuid.uuid4().hex[:16]}", about, session, seat)
        if self.store:
            state = seat.host or self._runner.pool.empty(seat)
            self.store.put("streams", watched.id, state, session, about)
            watched.saved = (session.stats.frames, clock.time())
        with self._ready:
            self._check_room()
            self._add(watched)
        return watched.id

    def _take_up(self, id: str) -> None:
        """A stream that lies in the store. A damaged one is left there, and logged."""
        assert self.store is not None
        try:
            stored = self.store.look("streams", id)
        except StorageError as error:
            log.warning("a stream is left out: %s", error)
            return
        seat = Seat(fetch=partial(self.store.get, "streams", id))
        watched = self._watched(id, stored.about, stored.session, seat)
        watched.saved = (stored.frames, stored.at)
        self._add(watched)

    def _watched(self, id: str, about: dict[str, Any], session: Session, seat: Seat) -> Watched:
        line: Line[Frame] = Line(id, 1 / session.fps if session.fps else LIVE_PERIOD, self.budget.waiting)
        return Watched(id, about, session, seat, line, session.sampler())

    def _add(self, watched: Watched) -> None:
        self._streams[watched.id] = watched
        self._scheduler.lines[watched.id] = watched.line

    def _check_room(self) -> None:
        if self._closing:
            raise Overloaded("the engine is going down")
        if len(self._streams) >= self.budget.streams:
            raise Overloaded(f"there are {self.budget.streams} streams already, and room for no more")

    def _find(self, id: str) -> Watched:
        try:
            return self._streams[id]
        except KeyError:
            raise NotFound(f"there is no stream {id[:80]}") from None

    def _enqueue(self, watched: Watched, frame: Frame, wait: float) -> None:
        line = watched.line
        with self._ready:
            self._ready.wait_for(lambda: self._closing or watched.gone or len(line.waiting) < line.room, wait)
            if self._closing:
                raise Overloaded("the engine is going down")
            if watched.gone:
                raise NotFound(f"there is no stream {watched.id}")
            lost = line.add(frame, tuple(frame.pixels.shape), monotonic())
            self._ready.notify_all()
        if lost:
            watched.session.stats.dropped += 1
            self._observe("frames_dropped", 1)
            tell(lost.told, FrameResult("dropped", lost.time, monotonic() - lost.arrived))

    def _new_writer(self, asking: Asking) -> Writer:
        pieces = TextPieces(self.model.processor.tokenizer, asking.stop)
        sampling = Sampling(asking.temperature, asking.top_p, asking.seed)
        return Writer(sampling, pieces, asking.max_tokens, self.model.end_tokens())

    def _admit(self, begin: Callable[[str], Answer]) -> str:
        """Let the engine's thread begin an answer between two steps; its id."""
        with self._ready:
            if self._closing:
                raise Overloaded("the engine is going down")
            if len(self._answers) + self._coming >= self.budget.questions:
                raise Overloaded(f"{self.budget.questions} questions are being answered: there is room for no more")
            self._coming += 1
        name = f"answer-{uuid.uuid4().hex[:16]}"
        try:
            self._call(lambda: self._answers.add(begin(name))).result()
        finally:
            with self._ready:
                self._coming -= 1
        return name

    def _call(self, function: Callable[[], T]) -> Future[T]:
        """Have the engine's thread do something between two steps."""
        future: Future[T] = Future()

        def run() -> None:
            try:
                future.set_result(function())
            except Exception as error:
                future.set_exception(error)

        with self._ready:
            if not self._ended:
                self._calls.append(run)
                self._ready.notify_all()
                return future
        run()
        return future

    def _wake(self) -> None:
        with self._ready:
            self._ready.notify_all()
