"""Which cards an episode shows, and when."""

from dataclasses import dataclass

import numpy as np

from infinitevl.data.streamworld.cards import Card, draw_bindings, draw_like, make_card
from infinitevl.data.streamworld.vocabulary import Split
from infinitevl.errors import InfiniteVLError

SHORTEST, LONGEST = 2, 6  # frames that a card is shown
REBINDING = 0.3  # how often a card of mixed cards takes a key that was used before
MOST_MIXED = 48  # mixed cards in one episode, however long

Span = tuple[int, int]  # the first frame, and the number of frames


@dataclass(frozen=True, slots=True)
class Recall:
    """A test of memory: exactly `cards` cards in `frames` frames, then a question about one, the target.

    The target was last visible `age` frames before the last frame, and `between` cards began since; what is
    None is random. With `updated`, one of the cards before the target has its key and another value of the
    same sort; all other keys, and all values, differ. With `alike`, all values are of one sort, so that which
    of them is asked about only the key tells. `asked` - 1 questions about other cards follow.
    """

    frames: int = 64
    cards: int = 8
    age: int | None = None
    between: int | None = None
    updated: bool = False
    asked: int = 1
    alike: bool = False

    def lay_out(self, rng: np.random.Generator, split: Split) -> tuple[list[Card], Card]:
        """All cards in order, and the target. InfiniteVLError where they do not fit into the frames."""
        spans, target = self._anywhere(rng) if self.age is None else self._around(rng, self.age)
        if not self.updated <= target < self.cards or not 1 <= self.asked <= self.cards - self.updated:
            raise InfiniteVLError(f"too few cards for {self}")
        bindings = draw_bindings(rng, split, self.cards, self.alike)
        if self.updated:
            key, value = bindings[target]
            bindings[int(rng.integers(target))] = key, draw_like(rng, value)
        shown = [make_card(rng, *span, *binding) for span, binding in zip(spans, bindings, strict=True)]
        return shown, shown[target]

    def _anywhere(self, rng: np.random.Generator) -> tuple[list[Span], int]:
        """Cards at random, none in the last frame, and which is the target."""
        last = self.cards - 1
        target = int(rng.integers(self.updated, max(last, self.updated) + 1))
        spans = place(rng, self.cards, 0, self.frames - 1)
        return spans, target if self.between is None else last - self.between

    def _around(self, rng: np.random.Generator, age: int) -> tuple[list[Span], int]:
        """The target at its age, the others at random before and since, and which is the target."""
        if not 0 <= age <= self.frames - SHORTEST:
            raise InfiniteVLError(f"no card of age {age} in {self.frames} frames")
        stop = self.frames - age
        since = self._draw_since(rng, age) if self.between is None else self.between
        before = self.cards - 1 - since
        longest = min(LONGEST, stop - (SHORTEST + 1) * before)
        length = int(rng.integers(SHORTEST, max(SHORTEST, longest) + 1))
        spans = [*place(rng, before, 0, stop - length - 1), (stop - length, length)]
        return spans + place(rng, since, stop + 1, self.frames - 1), before

    def _draw_since(self, rng: np.random.Generator, age: int) -> int:
        """How many of the other cards come after the target: as chance has it, but such that all fit."""
        others, stop = max(0, self.cards - 1), self.frames - age
        least = others - _room(0, stop - SHORTEST - 1)
        most = min(others - self.updated, _room(stop + 1, self.frames - 1))
        return max(0, min(max(least, int(rng.binomial(others, age / self.frames))), most))


def mixed(rng: np.random.Generator, split: Split, frames: int, count: int | None) -> list[Card]:
    """Cards at random in `frames` frames, up to one in 8 frames unless `count` says how many.

    Some take a key that was used before; all values differ.
    """
    number = int(rng.integers(min(frames // 8, MOST_MIXED) + 1)) if count is None else count
    bindings = draw_bindings(rng, split, number)
    for i in range(1, number):
        if rng.random() < REBINDING:
            bindings[i] = bindings[int(rng.integers(i))][0], bindings[i][1]
    spans = place(rng, number, 0, frames)
    return [make_card(rng, *span, *binding) for span, binding in zip(spans, bindings, strict=True)]


def place(rng: np.random.Generator, count: int, start: int, stop: int) -> list[Span]:
    """Random spans of cards inside [start, stop), in order, a frame or more between any two."""
    if count == 0:
        return []
    if count < 0 or count > _room(start, stop):
        raise InfiniteVLError(f"{count} cards do not fit into {max(0, stop - start)} frames")
    longest = min(LONGEST, (stop - start + 1) // count - 1)
    lengths = rng.integers(SHORTEST, longest + 1, count)
    free = stop - start - int(lengths.sum()) - (count - 1)
    shifts = np.sort(rng.integers(0, free + 1, count))
    starts = start + shifts + np.cumsum(lengths) - lengths + np.arange(count)
    return [(int(a), int(b)) for a, b in zip(starts, lengths, strict=True)]


def _room(start: int, stop: int) -> int:
    """How many of the shortest cards fit into [start, stop) with a frame between any two."""
    return max(0, stop - start + 1) // (SHORTEST + 1)
