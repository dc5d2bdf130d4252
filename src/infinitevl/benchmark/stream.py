"""A model of this package, measured through the public `Stream`."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import cycle

import numpy as np

from infinitevl.benchmark.measure import QUESTION, Tell
from infinitevl.benchmark.work import Costs
from infinitevl.model.modeling import InfiniteVLForConditionalGeneration
from infinitevl.model.state import State
from infinitevl.streaming.stream import Stream


class StreamSubject:
    """A stream of random frames, kept at every context that it has been at.

    really: every token of a context is streamed. Otherwise only until the attention window is full: from there on
    the state has no part that grows, and its counters are moved on.
    """

    def __init__(
        self,
        name: str,
        model: InfiniteVLForConditionalGeneration,
        frames: Sequence[np.ndarray],
        backend: str | None = None,
        really: bool = False,
    ) -> None:
        self.name, self.model, self.backend = name, model, backend
        self.costs, text, vision = Costs.of(model), model.config.text_config, model.config.vision_config
        side = frames[0].shape[0]
        self.grid = (side // vision.patch_size,) * 2
        self.frame_tokens = self.grid[0] * self.grid[1] // vision.spatial_merge_size**2
        self.really = really or "full_attention" in text.layer_types
        self.full = text.sliding_window + text.attention_sinks
        self.frames, self.moved = cycle(frames), 0
        self.stream = self.branch = Stream(model, fps=None, max_pixels=side**2)
        self.stream.see(next(self.frames))
        self.kept: dict[int, tuple[Stream, int]] = {}
        self.question_tokens = self._question_tokens()

    @property
    def context(self) -> int:
        return self.stream.stats.tokens

    @property
    def streamed(self) -> int:
        return self.context - self.moved

    @property
    def nbytes(self) -> int:
        return self.stream.stats.state_bytes

    def go_to(self, context: int, tell: Tell) -> str | None:
        if context not in self.kept:
            self._advance(context, tell)
            self.kept[context] = self.stream.fork(), self.moved
        self.stream, self.moved = self.kept[context]
        return None

    def back(self) -> None:
        self.branch = self.stream.fork()

    def rest(self) -> None:
        self.branch = self.stream

    def see(self) -> None:
        self.branch.see(next(self.frames))

    def answer(self, tokens: int) -> None:
        for _ in self.stream.ask(QUESTION, max_new_tokens=tokens):
            pass

    def _advance(self, context: int, tell: Tell) -> None:
        """From the farthest context so far."""
        if self.kept:
            farthest, self.moved = self.kept[max(self.kept)]
            self.stream = farthest.fork()
        while self.context + self.frame_tokens <= context and (self.really or self.context < self.full):
            self.stream.see(next(self.frames))
            tell(f"streaming, {self.context:,}")
        if not self.really and self.full <= self.context < context:
            self.moved += context - self.context
            move_on(self.stream, context - self.context)

    def _question_tokens(self) -> int:
        branch = self.stream.fork()
        before = branch.stats.tokens
        for _ in branch.ask(QUESTION, remember=True, max_new_tokens=1):
            pass
        return branch.stats.tokens - before - 1


def move_on(stream: Stream, tokens: int) -> None:
    """Count so many tokens as seen without seeing them, for a stream whose window is full.

    What is remembered stays as it is, further in the past than it was: other answers, the same work.
    """
    move_state_on(stream.state, tokens)
    stream.session.stats.tokens += tokens


def move_state_on(state: State, tokens: int) -> None:
    """The same for every row of a state."""
    for counter in (state.count, state.position, state.base):
        counter.add_(tokens)
    state.bound += tokens


@contextmanager
def endless_answers(model: InfiniteVLForConditionalGeneration) -> Iterator[None]:
    """Inside, no token ends an answer, so that all are as long as asked for."""
    configs = [config for config in (model.config, model.generation_config) if config is not None]
    ends = [config.eos_token_id for config in configs]
    try:
        for config in configs:
            config.eos_token_id = None
        yield
    finally:
        for config, end in zip(configs, ends, strict=True):
            config.eos_token_id = end
