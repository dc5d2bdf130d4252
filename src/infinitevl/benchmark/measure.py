"""Measuring what watches, at growing contexts: frames, answers, memory, and the floors beside them.

All contexts of all subjects are measured in turns, several rounds of them, so that what else the machine does in the
meantime falls on all of them alike.
"""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from statistics import median
from time import perf_counter
from typing import Any, Protocol

import numpy as np
import torch

from infinitevl import ops
from infinitevl.benchmark.work import Costs
from infinitevl.machine import Ceilings, clock

QUESTION, ANSWER_TOKENS = "What do you see in this video?", 16
ROUNDS, WARM_FRAMES = 12, 1
FRAMES, ANSWERS = (1, 16), (1, 2)  # fewest and most in a turn
FRAMES_SHARE = 0.7  # of the time of a turn; the rest is for answers
SPARE = 8  # the context of a measurement may grow by one part in so many before it is put back

Tell = Callable[[str], None]


class Subject(Protocol):
    """What watches frames and answers questions, at a context that can be chosen.

    backend: of the operations, as in `ops`; None: the usual one. grid: height and width of a frame in patches.
    """

    name: str
    backend: str | None
    costs: Costs
    grid: tuple[int, int]
    question_tokens: int

    @property
    def context(self) -> int:
        """Tokens seen, where `back` returns to."""
        ...

    @property
    def streamed(self) -> int:
        """How many of them were really seen."""
        ...

    @property
    def nbytes(self) -> int:
        """Of what is remembered."""
        ...

    def go_to(self, context: int, tell: Tell) -> str | None:
        """Have seen about so many tokens. Returns why not, where that is impossible."""

    def back(self) -> None:
        """Forget what was seen since `go_to`."""

    def rest(self) -> None:
        """Give back memory until the next `go_to`."""

    def see(self) -> None:
        """Take in a frame."""

    def answer(self, tokens: int) -> None:
        """Answer a question with so many tokens at the context of `go_to`, all of them read in."""


@dataclass(frozen=True)
class Row:
    """One subject at one context; milliseconds. Measured values are None where `missing` says why.

    context: tokens seen; streamed: those that were really streamed; frames: measured; fps: over all of them;
    first_ms: from a question to the first token of its answer; token_ms: of each further one;
    ..._floor_ms: the least on this machine; state_bytes: what the stream remembers; scratch_bytes: the most that was
    allocated on a GPU on top of weights and states.
    """

    subject: str
    context: int
    frame_floor_ms: float
    token_floor_ms: float
    first_floor_ms: float
    state_bytes: int
    streamed: int = 0
    frames: int = 0
    fps: float | None = None
    frame_ms: float | None = None
    frame_p95_ms: float | None = None
    frame_p99_ms: float | None = None
    token_ms: float | None = None
    first_ms: float | None = None
    scratch_bytes: int | None = None
    missing: str | None = None

    def of_floor(self, what: str) -> float | None:
        """floor / measured, of "frame", "token" or "first"."""
        measured = getattr(self, f"{what}_ms")
        return getattr(self, f"{what}_floor_ms") / measured if measured else None


@dataclass(frozen=True)
class Plan:
    """contexts: tokens, rising; frames: to measure at each (None: what fits in the time); seconds: of a context."""

    contexts: Sequence[int]
    frames: int | None
    seconds: float

    @property
    def rounds(self) -> int:
        return ROUNDS if self.frames is None else min(ROUNDS, self.frames)

    def frames_in(self, turn: int) -> tuple[int, int]:
        """Fewest and most in the n-th round."""
        if self.frames is None:
            return FRAMES
        share = self.frames // self.rounds + (turn < self.frames % self.rounds)
        return share, share


@dataclass
class Samples:
    """Seconds of frames, of answers of 1 and of 1 + ANSWER_TOKENS tokens, and what else is known of a context.

    spent: seconds on all of it, after the context was reached.
    """

    frames: list[float] = field(default_factory=list)
    short: list[float] = field(default_factory=list)
    long: list[float] = field(default_factory=list)
    scratch: int | None = None
    known: dict[str, Any] = field(default_factory=dict)
    missing: str | None = None
    spent: float = 0.0


def contexts_up_to(tokens: int, first: int) -> list[int]:
    """0 and tokens / 4^n, rising, those above many frames of `first` tokens."""
    points = [tokens]
    while points[-1] // 4 >= 16 * first and len(points) < 6:
        points.append(points[-1] // 4)
    return [0, *sorted(point for point in points if point > 0)]


def random_frames(side: int, count: int = 16, seed: int = 0) -> list[np.ndarray]:
    """uint8 RGB [side, side, 3]."""
    random = np.random.default_rng(seed)
    return list(random.integers(0, 256, (count, side, side, 3), dtype=np.uint8))


def measure(
    subjects: Sequence[Subject], plan: Plan, device: torch.device, progress: Callable[[int, str], None]
) -> dict[tuple[str, int], Samples]:
    """Samples of every subject, by name, and context. progress: told the turns done and what is being done."""
    found = {(subject.name, context): Samples() for subject in subjects for context in plan.contexts}
    turns = [(n, s, context) for n in range(plan.rounds) for s in subjects for context in plan.contexts]
    for done, (number, subject, context) in enumerate(turns):
        samples, told = found[subject.name, context], f"{subject.name}, {context:,} tokens"
        progress(done, told)
        if samples.missing or (plan.frames is None and samples.spent > plan.seconds):
            continue  # impossible, or so slow that its share of all rounds is used up
        with ops.using(subject.backend) if subject.backend else nullcontext():
            try:
                samples.missing = subject.go_to(
                    context, lambda how, at=(done, told): progress(at[0], f"{at[1]}: {how}")
                )
                if not samples.missing:
                    _turn(subject, samples, plan, number, device)
            except torch.OutOfMemoryError:
                samples.missing = "out of memory"
        subject.rest()
    return found


def rows(subjects: Sequence[Subject], found: dict[tuple[str, int], Samples], top: Ceilings) -> list[Row]:
    """What the samples come to, on a machine of these ceilings."""
    named = {subject.name: subject for subject in subjects}
    return [_row(named[name], context, samples, top) for (name, context), samples in found.items()]


def _turn(subject: Subject, samples: Samples, plan: Plan, number: int, device: torch.device) -> None:
    """Frames and answers of one round, where the subject is."""
    samples.known = {
        "context": subject.context, "streamed": subject.streamed, "state_bytes": subject.nbytes
    }  # fmt: skip
    cuda, before, seconds = device.type == "cuda", 0, plan.seconds / plan.rounds
    if cuda:
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
    began = perf_counter()
    _frames(subject, samples, plan.frames_in(number), FRAMES_SHARE * seconds, device)
    _answers(subject, samples, (1 - FRAMES_SHARE) * seconds, device)
    samples.spent += perf_counter() - began
    if cuda:
        samples.scratch = max(samples.scratch or 0, torch.cuda.max_memory_allocated(device) - before)


def _frames(subject: Subject, samples: Samples, bounds: tuple[int, int], seconds: float, device: torch.device) -> None:
    """Frame by frame, at about the same context: it is put back before it grows by much."""
    tokens = subject.grid[0] * subject.grid[1] // subject.costs.config.vision_config.spatial_merge_size**2
    burst, until = max(1, subject.context // SPARE // tokens), perf_counter() + seconds
    for seen in range(WARM_FRAMES + bounds[1]):
        if seen >= WARM_FRAMES + bounds[0] and perf_counter() > until:
            break
        if seen % burst == 0:
            subject.back()
        spent = clock(subject.see, device)
        if seen >= WARM_FRAMES:
            samples.frames.append(spent)
    subject.back()


def _answers(subject: Subject, samples: Samples, seconds: float, device: torch.device) -> None:
    until = perf_counter() + seconds
    if not samples.long:
        subject.answer(2)  # warm up
    for done in range(ANSWERS[1]):
        if done >= ANSWERS[0] and perf_counter() > until:
            break
        samples.short.append(clock(lambda: subject.answer(1), device))
        samples.long.append(clock(lambda: subject.answer(1 + ANSWER_TOKENS), device))


def _row(subject: Subject, context: int, samples: Samples, top: Ceilings) -> Row:
    if samples.missing:
        size = subject.costs.state_bytes(context)
        return Row(
            subject.name, context, **floors(subject, context, top), state_bytes=size, missing=samples.missing
        )  # fmt: skip
    frames = samples.frames
    token = (median(samples.long) - median(samples.short)) / ANSWER_TOKENS
    return Row(
        subject.name, **samples.known, **floors(subject, samples.known["context"], top),
        frames=len(frames), fps=len(frames) / sum(frames), frame_ms=1e3 * median(frames),
        frame_p95_ms=1e3 * float(np.quantile(frames, 0.95)), frame_p99_ms=1e3 * float(np.quantile(frames, 0.99)),
        token_ms=1e3 * token, first_ms=1e3 * (median(samples.short) - token), scratch_bytes=samples.scratch,
    )  # fmt: skip


def floors(subject: Subject, context: int, top: Ceilings) -> dict[str, Any]:
    """Those of a Row."""
    costs = subject.costs
    work = {
        "frame_floor_ms": costs.frame(subject.grid, context),
        "token_floor_ms": costs.token(context),
        "first_floor_ms": costs.question(subject.question_tokens, context),
    }
    return {name: 1e3 * top.floor(w.operations, w.nbytes) for name, w in work.items()}
