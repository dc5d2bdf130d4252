"""Streams of a model, and of the same model with its memory tampered with, as they watch and are asked."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby, pairwise

import numpy as np
from torch import Tensor

from infinitevl.data.streamworld.episodes import FPS
from infinitevl.evaluation.feeding import Notes
from infinitevl.evaluation.lockstep import Lockstep
from infinitevl.evaluation.scores import Ask, Tally
from infinitevl.model.modeling import InfiniteVLForConditionalGeneration


@dataclass(frozen=True)
class Variant:
    """What is done to the memory of the Gated DeltaNet layers of a stream.

    every: before each so many frames it is multiplied by `factor` (0: emptied, the convolutions' inputs, too).
    edge: for each question the stream is forked so many frames before, and the fork's memory emptied.

    After a reset old facts can come back, from the keys and values that the attention windows still hold; emptied
    every window, they cannot: see `reach`. No fork is made where the stream is shorter than `edge`.
    """

    name: str = "model"
    every: int | None = None
    factor: float = 0.0
    edge: int | None = None


@dataclass(frozen=True)
class Norm:
    """Norm of a head's memory after so many frames, mean over heads and streams, of each Gated DeltaNet layer."""

    variant: str
    frames: int
    layers: list[float]


def mean_norms(found: Sequence[tuple[Norm, int]]) -> list[Norm]:
    """Of norms, each with its number of streams: one for each variant and number of frames, in order."""
    groups: dict[tuple[str, int], list[tuple[Norm, int]]] = {}
    for norm, streams in found:
        groups.setdefault((norm.variant, norm.frames), []).append((norm, streams))
    return [
        Norm(*key, np.average([n.layers for n, _ in group], axis=0, weights=[s for _, s in group]).tolist())
        for key, group in groups.items()
    ]


@dataclass(frozen=True)
class Row:
    """Which stream a row of the state follows, and how. due: the frame of the one question it is there for."""

    stream: int
    variant: Variant
    due: int | None = None


def reach(layer_types: Sequence[str]) -> int:
    """Windows behind which nothing can be known whose memory is emptied every window, where there are no sinks.

    Each attention layer, and each run of Gated DeltaNet layers, reaches back a window further than its input.
    """
    return sum(1 if kind == "linear_attention" else len(list(run)) for kind, run in groupby(layer_types))


class Pool:
    """Collects forks of streams with a question each, and answers `limit` at once: batches of one size, so that CUDA
    graphs are captured once. Call `flush` at the end."""

    def __init__(self, tally: Tally, limit: int) -> None:
        self.tally, self.limit = tally, limit
        self._parts: list[Lockstep] = []
        self._asks: list[Ask] = []

    def add(self, streams: Lockstep, rows: Sequence[int], asks: Sequence[Ask]) -> None:
        """Ask rows[i] of the streams, as they are now, asks[i]."""
        while rows:
            room = self.limit - len(self._asks)
            self._parts.append(streams.take(rows[:room]))
            self._asks += asks[:room]
            rows, asks = rows[room:], asks[room:]
            if len(self._asks) == self.limit:
                self.flush()

    def flush(self) -> None:
        """Answer what waits. An answer longer than all right ones is cut: it is wrong in any case."""
        if not self._asks:
            return
        streams, encode = Lockstep.join(self._parts), self._parts[0].model.processor.encode
        longest = max(len(encode(ask.question.answer)) for ask in self._asks)
        answers = streams.answer([ask.question.question for ask in self._asks], longest + 2)
        for ask, answer in zip(self._asks, answers, strict=True):
            self.tally.count(ask, answer)
        self._parts, self._asks = [], []


class Watch:
    """Streams of the first variant, which is to be an unchanged one, and beside each the other variants of it.

    marks: numbers of frames after which norms are taken, into `norms`.
    """

    def __init__(
        self,
        model: InfiniteVLForConditionalGeneration,
        streams: int,
        variants: Sequence[Variant],
        pool: Pool,
        marks: Sequence[int] = (),
    ) -> None:
        self.variants, self.pool, self.marks = variants, pool, set(marks)
        self.rows = [Row(i, variant) for variant in variants if not variant.edge for i in range(streams)]
        self.lockstep = Lockstep(model, len(self.rows), FPS)
        self.norms: list[Norm] = []

    def see(self, frames: Tensor, notes: Notes) -> None:
        """The next frames of all streams, uint8 [streams, n, H, W, 3], and what is asked on the way."""
        start = self.lockstep.frames
        asks: dict[int, dict[int, list[Ask]]] = defaultdict(lambda: defaultdict(list))
        edges: dict[int, list[int]] = defaultdict(list)
        for index, stream, ask in notes.asks:
            asks[index][stream].append(ask)
        if any(variant.edge for variant in self.variants):
            for index, stream in notes.edges:
                edges[index].append(stream)
        cuts = {0, frames.shape[1], *edges, *(index + 1 for index in asks)}
        cuts |= {i for i in range(frames.shape[1]) if self._tampered(start + i) or start + i in self.marks}
        for first, stop in pairwise(sorted(cuts)):
            self._tamper(start + first, edges[first])
            self.lockstep.see(frames[:, first:stop], [row.stream for row in self.rows])
            self._ask(start + stop - 1, asks[stop - 1])
            if start + stop in self.marks:
                self._take_norms(start + stop)

    def _tampered(self, frame: int) -> list[Variant]:
        """The variants whose memory changes before this frame."""
        return [variant for variant in self.variants if variant.every and frame and frame % variant.every == 0]

    def _tamper(self, frame: int, edges: Sequence[int]) -> None:
        for variant in self._tampered(frame):
            self.lockstep.fade(variant.factor, self._rows(variant))
        for variant in self.variants:
            if variant.edge and edges:
                forks = self.lockstep.take(edges)  # row i is stream i of the first variant
                forks.fade(0.0)
                self.lockstep = Lockstep.join([self.lockstep, forks])
                self.rows += [Row(stream, variant, frame + variant.edge - 1) for stream in edges]

    def _ask(self, frame: int, asks: dict[int, list[Ask]]) -> None:
        """Ask after this frame, and drop the rows that were there for it alone."""
        wanted = [
            (i, replace(ask, cell=replace(ask.cell, variant=row.variant.name)))
            for i, row in enumerate(self.rows)
            if row.due in (None, frame)
            for ask in asks.get(row.stream, ())
        ]
        self.pool.add(self.lockstep, [i for i, _ in wanted], [ask for _, ask in wanted])
        kept = [i for i, row in enumerate(self.rows) if row.due != frame]
        if len(kept) < len(self.rows):
            self.lockstep, self.rows = self.lockstep.take(kept), [self.rows[i] for i in kept]

    def _take_norms(self, frames: int) -> None:
        norms = self.lockstep.memory_norm()
        for variant in self.variants:
            if not variant.edge:
                self.norms.append(Norm(variant.name, frames, norms[:, self._rows(variant)].mean(1).tolist()))

    def _rows(self, variant: Variant) -> list[int]:
        return [i for i, row in enumerate(self.rows) if row.variant is variant]
