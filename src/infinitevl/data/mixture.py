"""Many sources as one endless stream, in given proportions."""

import math
import random
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Any

from infinitevl.data.readers import Reader
from infinitevl.data.sample import Sample
from infinitevl.data.skipped import Skipped
from infinitevl.errors import InfiniteVLError


class Mixture(Iterator[Sample]):
    """Draws every sample from a source chosen at random by weight; a source at its end begins its next epoch.

    The choices depend on seed, rank and the number of the draw alone. The readers are the mixture's own from now
    on: they read its rank's part and report to its one log `skipped`, by default the first reader's. A source
    without a usable sample is an InfiniteVLError.
    """

    def __init__(
        self,
        sources: Sequence[tuple[Reader, float]],
        seed: int = 0,
        *,
        rank: int = 0,
        world_size: int = 1,
        skipped: Skipped | None = None,
    ) -> None:
        if not sources or not all(0 < weight < math.inf for _, weight in sources):
            raise InfiniteVLError("a mixture needs sources, each with a weight above 0")
        self.readers = [reader.shard(rank, world_size) for reader, _ in sources]
        self.skipped = self.readers[0].skipped if skipped is None else skipped
        for reader in self.readers:
            if reader.skipped is not self.skipped:
                reader.report_to(self.skipped)
        self._bounds = list(accumulate(weight for _, weight in sources))
        self._seed, self._draws = f"{seed} {rank}", 0

    def __next__(self) -> Sample:
        reader = self._chosen()
        self._draws += 1
        while True:
            try:
                return next(reader)
            except StopIteration:  # ends, because a reader raises after epochs without a sample
                continue

    def state_dict(self) -> dict[str, Any]:
        """Where it stands, in plain numbers and text."""
        return {"draws": self._draws, "seed": self._seed, "sources": [reader.state_dict() for reader in self.readers]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on exactly where the state was saved, with the weights of now."""
        if len(state["sources"]) != len(self.readers) or state["seed"] != self._seed:
            raise InfiniteVLError("cannot resume a mixture with other sources or another seed or rank")
        for reader, saved in zip(self.readers, state["sources"], strict=True):
            reader.load_state_dict(saved)
        self._draws = state["draws"]

    def _chosen(self) -> Reader:
        point = random.Random(f"{self._seed} {self._draws}").random() * self._bounds[-1]
        return next(reader for reader, bound in zip(self.readers, self._bounds, strict=True) if point < bound)
