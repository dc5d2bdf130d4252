"""An engine on a small model, and what is told by it."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np

from infinitevl.engine.engine import Engine
from infinitevl.engine.store import Store
from infinitevl.engine.types import Answered, Asking, Budget, Delta, FrameResult
from infinitevl.model.modeling import InfiniteVLForConditionalGeneration as Model
from infinitevl.streaming.stream import Stream

PATIENCE = 60.0  # seconds
TOKENS = 12


def picture(seed: int, height: int = 56, width: int = 84) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@dataclass
class Frames:
    """Listens to frames."""

    results: list[FrameResult] = field(default_factory=list)
    count: threading.Condition = field(default_factory=threading.Condition)

    def __call__(self, result: FrameResult) -> None:
        with self.count:
            self.results.append(result)
            self.count.notify_all()

    def wait(self, number: int) -> list[str]:
        """What became of the first so many."""
        with self.count:
            assert self.count.wait_for(lambda: len(self.results) >= number, PATIENCE)
            return [result.result for result in self.results]


@dataclass
class Listener:
    """Listens to an answer."""

    pieces: list[str] = field(default_factory=list)
    end: Answered | None = None
    ended: threading.Event = field(default_factory=threading.Event)

    def __call__(self, told: Delta | Answered) -> None:
        if isinstance(told, Delta):
            self.pieces.append(told.text)
        else:
            self.end = told
            self.ended.set()

    def wait(self) -> Answered:
        assert self.ended.wait(PATIENCE)
        assert self.end is not None
        assert "".join(self.pieces) == self.end.text
        return self.end


@contextmanager
def running(model: Model, store: Store | None = None, **budget: float) -> Iterator[Engine]:
    engine = Engine(model, Budget(**{"slots": 4, **budget}), store)  # type: ignore[arg-type]
    try:
        yield engine
    finally:
        engine.close()


def watch(engine: Engine, stream: str, pictures: list[np.ndarray], start: int = 0) -> None:
    """Frames half a second apart, none lost."""
    frames = Frames()
    for i, frame in enumerate(pictures, start):
        engine.push(stream, frame, i / 2, frames, wait=PATIENCE)
    assert set(frames.wait(len(pictures))) <= {"seen"}


def ask(engine: Engine, stream: str, question: str = "What is it?", **asking: object) -> str:
    listener = Listener()
    engine.ask(stream, question, Asking(**{"max_tokens": TOKENS, **asking}), listener)  # type: ignore[arg-type]
    return listener.wait().text


def alone(model: Model, pictures: list[np.ndarray], question: str = "What is it?", tokens: int = TOKENS) -> str:
    """What a stream of its own answers."""
    stream = Stream(model, fps=None)
    for i, frame in enumerate(pictures):
        stream.see(frame, i / 2)
    return "".join(stream.ask(question, max_new_tokens=tokens))
