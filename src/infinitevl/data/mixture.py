"""Many sources as one endless stream, in given proportions."""

import math
import random
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Any

from infinitevl.data.readers import Candidate, Reader
from infinitevl.errors import InfiniteVLError


class Mixture(Iterator[tuple[int, Candidate]]):
    """Draws from a source chosen at random by weight, and says which; a source at its end begins its next epoch.

    The choices depend on seed, rank and the number of the draw alone. The readers are the mixture's own from now
    on: they read its rank's part. A source without rows is an InfiniteVLError.
    """

    def __init__(
        self, sources: Sequence[tuple[Reader, float]], seed: int = 0, *, rank: int = 0, world_size: int = 1
    ) -> None:
        if not sources or not all(0 < weight < math.inf for _, weight in sources):
            raise InfiniteVLError("a mixture needs sources, each with a weight above 0")
        self.readers = [reader.shard(rank, world_size) for reader, _ in sources]
        self._bounds = list(accumulate(weight for _, weight in sources))
        self._seed, self._draws = f"{seed} {rank}", 0

    def __next__(self) -> tuple[int, Candidate]:
        source = self._chosen()
        self._draws += 1
        while True:
            try:
                return source, next(self.readers[source])
            except StopIteration:  # ends, because a reader raises after epochs without a row
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

    def _chosen(self) -> int:
        point = random.Random(f"{self._seed} {self._draws}").random() * self._bounds[-1]
        return next(source for source, bound in enumerate(self._bounds) if point < bound)
