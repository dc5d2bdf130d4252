"""Many streams share one model: the engine's face, safe to call from any thread."""

import copy
import logging
import threading
import time as clock
import uuid
from collections.abc import Callable
from functools import partial
from time import monotonic
from typing import Any

import numpy as np

from infinitevl.engine.loop import Loop
from infinitevl.engine.pool import Seat
from infinitevl.engine.prompt import MediaPrompt, TextPrompt, conversation, decoded
from infinitevl.engine.records import Answer, Frame, Norms, Watched, tell
from infinitevl.engine.runner import Prefill, Runner
from infinitevl.engine.saving import copied
from infinitevl.engine.scheduler import Line
from infinitevl.engine.store import Store
from infinitevl.engine.types import AnswerTold, Asking, Budget, FrameResult, FrameTold, MemoryNorms, Observe, View
from infinitevl.errors import Conflict, NotFound, Overloaded, StorageError
from infinitevl.model.modeling import InfiniteVLForConditionalGeneration
from infinitevl.model.state import DeltaState
from infinitevl.streaming.session import MIN_PIXELS, Session, question_tokens
from infinitevl.streaming.text import Sampling, TextPieces, Writer
from infinitevl.video.resize import resize

log = logging.getLogger(__name__)
LIVE_PERIOD = 0.1  # seconds in which a frame should be served where a stream has no rate


class Engine:
    """Streams, watched and asked at once, batched on one model by one thread.

    Every method may be called from any thread; those that need the engine's thread wait for it to end a step.
    `told` is called from the engine's thread, or the caller's: it must return at once. Without a store streams end
    with the engine. shared: other engines use the store too; then a stream of the store is taken up when `adopt` asks
    for it, and let go of when another engine has adopted it; `name` is what this one claims them by.
    """

    def __init__(
        self,
        model: InfiniteVLForConditionalGeneration,
        budget: Budget | None = None,
        store: Store | None = None,
        observe: Observe = lambda name, value: None,
        *,
        shared: bool = False,
    ) -> None:
        self.model, self.budget, self.store, self._observe = model, budget or Budget(), store, observe
        runner = Runner(model, self.budget.slots)
        self._pool = runner.pool
        self.state_bytes = self._pool.state.nbytes // self.budget.slots
        self._layers = [i for i, layer in enumerate(self._pool.state.layers) if isinstance(layer, DeltaState)]
        self.name = uuid.uuid4().hex if shared else None
        self._loop = Loop(runner, self.budget, store, observe, self.name)
        self._streams, self._ready = self._loop.streams, self._loop.ready
        self._coming = 0  # questions that are on their way to the engine's thread
        self._talk = copy.deepcopy(model.processor)  # for callers' threads: a tokenizer is not for two
        self._talking = threading.Lock()
        for id in store.names("streams") if store and not shared else ():
            try:
                self._take_up(id)
            except StorageError as error:
                log.warning("a stream is left out: %s", error)
        self._loop.start()

    def close(self) -> None:
        """Take no more, cancel the answers, write every stream that changed to the store, end the thread.

        Raises StorageError where a stream could not be written, after the others.
        """
        if failed := self._loop.close():
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
        state = self._pool.empty(Seat())
        session, _ = self.store.get("snapshots", snapshot, state)
        return self._begin(about, session, Seat(host=state))

    def adopt(self, id: str) -> None:
        """Take up a stream of a shared store as it was last saved, whoever held it before. NotFound, StorageError."""
        if id in self._streams:
            return
        if self.store is None or self.name is None or not self.store.holds("streams", id):
            raise NotFound(f"there is no stream {id[:80]}")
        with self._ready:
            self._check_room()
        self.store.claim(id, self.name)
        self._take_up(id)

    def release(self, id: str) -> None:
        """Write a stream to the store, and let go of it: another engine may adopt it.

        Raises NotFound, Conflict (an answer is being written into it), StorageError: it is held here still, then.
        """
        watched = self._find(id)
        self._loop.call(lambda: _hold(watched)).result()
        try:
            if watched.dirty or watched.saving:
                self.save(id)
        except StorageError:
            watched.line.held = False
            raise
        self._loop.call(lambda: self._loop.leave(watched)).result()

    def describe(self, id: str, about: dict[str, Any]) -> None:
        """Replace what is kept with a stream; it is written to the store with the next save."""
        watched = self._find(id)
        watched.about, watched.dirty = about, True
        self._loop.wake()

    def save(self, id: str) -> None:
        """Write a stream to the store now; it is there when this returns. Raises NotFound, StorageError."""
        watched = self._find(id)
        if saver := self._loop.saver:
            self._loop.call(lambda: saver.begin(watched)).result().result()

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
        with self._talking:  # not in the engine's thread: all streams would wait for a long question
            tokens = question_tokens(self._talk, question)

        def begin(name: str) -> Answer:
            prompt = TextPrompt(watched.session.asked(self.model.processor, tokens), self.budget.prompt)
            if watched.gone:
                raise NotFound(f"there is no stream {id}")
            if asking.remember:
                _hold(watched)
            seat = watched.seat if asking.remember else self._pool.fork(watched.seat)
            at = (watched.seen, watched.session.stats.frames)
            return Answer(name, watched, Prefill(seat, prompt), writer, told, asking.remember, asked, *at)

        return self._admit(begin)

    def chat(self, messages: list[dict[str, Any]], asking: Asking, told: AnswerTold) -> str:
        """Answer a conversation (as `apply_chat_template` takes it), without a stream; the answer's id.

        Decodes pictures and videos in the calling thread. Raises TooLarge, Overloaded, InfiniteVLError.
        """
        asked, writer = monotonic(), self._new_writer(asking)
        ready = decoded(self._talk, messages, self.budget.prompt)
        with self._talking:
            inputs = conversation(self._talk, ready, self.budget.prompt)
        prompt = MediaPrompt(self.model, inputs)
        return self._admit(
            lambda name: Answer(name, None, Prefill(Seat(), prompt), writer, told, False, asked, None, 0)
        )

    def cancel(self, answer: str) -> None:
        """End an answer; its `told` gets an Answered with the reason "cancelled". Unknown ids are ignored."""
        self._loop.call(lambda: self._loop.answers.cancel(answer))

    def fork(self, id: str, about: dict[str, Any]) -> str:
        """A second stream with the same memory, in the store when this returns. Raises NotFound, Overloaded."""
        watched = self._find(id)
        self._check_room()
        state, session = self._loop.call(lambda: copied(self._pool, watched)).result()
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
        state, session = self._loop.call(lambda: copied(self._pool, watched)).result()
        self.store.put("snapshots", name, state, session, about)

    def drop(self, id: str) -> None:
        """Forget a stream, in memory and in the store. Its answers are cancelled, its frames dropped."""
        watched = self._find(id)
        self._loop.call(lambda: self._loop.leave(watched)).result()
        if self._loop.saver and self.store:
            self._loop.saver.submit(self.store.delete, "streams", id).result()

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
            waiting = sum(line.unseen for line in self._loop.scheduler.lines.values())
        slots, answers = self._pool.seated, len(self._loop.answers) + self._coming
        return {"streams": len(self._streams), "slots": slots, "answers": answers, "waiting_frames": waiting}

    # What the methods share.

    def _begin(self, about: dict[str, Any], session: Session, seat: Seat) -> str:
        """Add a stream that is in the store already, so that it is never lost."""
        self._check_room()
        watched = self._watched(f"stream-{uuid.uuid4().hex[:16]}", about, session, seat)
        if self.store:
            state = seat.host or self._pool.empty(seat)
            self.store.put("streams", watched.id, state, session, about)
            if self.name:
                self.store.claim(watched.id, self.name)
            watched.saved = (session.stats.frames, clock.time())
        with self._ready:
            self._check_room()
            self._add(watched)
        return watched.id

    def _take_up(self, id: str) -> None:
        """A stream that lies in the store. StorageError for a damaged one."""
        assert self.store is not None
        stored = self.store.look("streams", id)
        seat = Seat(fetch=partial(self.store.get, "streams", id))
        watched = self._watched(id, stored.about, stored.session, seat)
        watched.saved = (stored.frames, stored.at)
        with self._ready:
            self._add(watched)

    def _watched(self, id: str, about: dict[str, Any], session: Session, seat: Seat) -> Watched:
        line: Line[Frame] = Line(id, 1 / session.fps if session.fps else LIVE_PERIOD, self.budget.waiting)
        norms = Norms(len(self._layers))
        return Watched(id, about, session, seat, line, session.sampler(), norms, session.last)

    def _add(self, watched: Watched) -> None:
        self._streams[watched.id] = watched
        self._loop.scheduler.lines[watched.id] = watched.line

    def _check_room(self) -> None:
        self._loop.check_open()
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
            self._ready.wait_for(lambda: self._loop.closing or watched.gone or len(line.waiting) < line.room, wait)
            self._loop.check_open()
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
            self._loop.check_open()
            if len(self._loop.answers) + self._coming >= self.budget.questions:
                raise Overloaded(f"{self.budget.questions} questions are being answered: there is room for no more")
            self._coming += 1
        name = f"answer-{uuid.uuid4().hex[:16]}"
        try:
            self._loop.call(lambda: self._loop.answers.add(begin(name))).result()
        finally:
            with self._ready:
                self._coming -= 1
        return name


def _hold(watched: Watched) -> None:
    """Take no frames for a while."""
    if watched.line.held:
        raise Conflict("an answer is being written into this stream already")
    watched.line.held = True
