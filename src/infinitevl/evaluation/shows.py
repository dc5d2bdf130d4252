"""What is shown and asked: streams of the test split, deterministic from a seed, with exact answers.

Of one kind of show all streams have the same length; each frame comes with the questions asked right after it.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import numpy as np

from infinitevl.data.streamworld import Question, World
from infinitevl.data.streamworld.cards import Card, draw_bindings, draw_like, draw_value, listed, make_card
from infinitevl.data.streamworld.episodes import FPS
from infinitevl.data.streamworld.layout import LONGEST, SHORTEST, mixed, place
from infinitevl.data.streamworld.log import Log
from infinitevl.data.streamworld.memory import value_of
from infinitevl.data.streamworld.questions import ask, kinds_of, put
from infinitevl.data.streamworld.truths import Context
from infinitevl.data.streamworld.vocabulary import Split, generator, pairs
from infinitevl.data.streamworld.world import Moment
from infinitevl.errors import InfiniteVLError
from infinitevl.evaluation.scores import Ask, Cell

SPLIT: Split = "test"
LAYOUT, ASKING, TIMING, DECK = 11, 12, 13, 14  # tags of randomness
MOST_TRIES = 512  # worlds tried for a question of a rare kind
ROOM = 8  # frames in which one card of a test of memory is shown


@dataclass(frozen=True, slots=True)
class Shown:
    """A frame, uint8 [size, size, 3], and what is asked right after it.

    edge: the attention window of a question asked later begins with this frame.
    """

    frame: np.ndarray
    asks: tuple[Ask, ...] = ()
    edge: bool = False


class Show(Protocol):
    """`length` frames of `size` pixels. name: of the test; play: the frames of the stream `seed`, one by one."""

    @property
    def name(self) -> str: ...
    @property
    def size(self) -> int: ...
    @property
    def length(self) -> int: ...
    def play(self, seed: int) -> Iterator[Shown]: ...


@dataclass(frozen=True)
class Clip:
    """A short stream, then `asked` questions of different kinds of `group`, whose evidence is all in it."""

    cell: Cell
    length: int
    asked: int = 1
    size: int = 112

    @property
    def name(self) -> str:
        return self.cell.test

    def play(self, seed: int) -> Iterator[Shown]:
        world, questions = self._find(seed)
        for index in range(self.length - 1):
            yield Shown(world.frame(index))
        yield Shown(world.frame(self.length - 1), tuple(Ask(self.cell, question) for question in questions))

    def _find(self, seed: int) -> tuple[World, list[Question]]:
        """Kinds drawn first, so that rare ones come as often, and the first world in which all have an answer."""
        rng, kinds = generator(seed, SPLIT, ASKING), kinds_of(self.cell.group)
        drawn = [kinds[i] for i in rng.permutation(len(kinds))[: self.asked]]
        for attempt in range(seed * MOST_TRIES, (seed + 1) * MOST_TRIES):
            cards = listed(mixed(generator(attempt, SPLIT, LAYOUT), SPLIT, self.length, None))
            at = Context(World(attempt, SPLIT, size=self.size, cards=cards), Log(), rng)
            for index in range(self.length):
                at.log.observe(at.world.moment(index))
            questions = [question for kind in drawn if (question := ask(kind, at, FPS))]
            if len(questions) == len(drawn):
                return at.world, questions
        raise InfiniteVLError(f"no {', '.join(drawn)} question in {MOST_TRIES} clips of {self.length} frames")


@dataclass(frozen=True)
class Facts:
    """`facts` cards at the beginning, then none: each is asked about when its last frame is so old.

    ages: in attention windows of `window` frames, at least half a window. A quarter as many cards come in addition,
    earlier, with the key of one of them and another value, which is the wrong answer.
    """

    facts: int
    ages: tuple[float, ...]
    window: int
    size: int = 112
    name: str = "memory"

    @property
    def length(self) -> int:
        return self._opening + max(self._frames(age) for age in self.ages)

    @property
    def _opening(self) -> int:
        return ROOM * (self.facts + self.facts // 4)

    def lay_out(self, seed: int) -> list[Card]:
        """All cards of a stream, in order."""
        rng = generator(seed, SPLIT, LAYOUT)
        bindings = draw_bindings(rng, SPLIT, self.facts)
        for key, value in bindings[: self.facts // 4]:
            before = bindings.index((key, value))
            bindings.insert(int(rng.integers(before + 1)), (key, draw_like(rng, value)))
        spans = place(rng, len(bindings), 0, self._opening)
        return [make_card(rng, *span, *binding) for span, binding in zip(spans, bindings, strict=True)]

    def play(self, seed: int) -> Iterator[Shown]:
        cards = self.lay_out(seed)
        due: dict[int, list[tuple[Card, Cell]]] = {}
        for card in {card.key: card for card in cards}.values():
            for age in self.ages:
                cell = Cell(self.name, "recall", windows=age, cards=self.facts)
                due.setdefault(card.stop - 1 + self._frames(age), []).append((card, cell))
        world = World(seed, SPLIT, size=self.size, cards=listed(cards))
        return _remembered(world, self.length, lambda index: due.get(index, []), self.window)

    def _frames(self, age: float) -> int:
        return max(1, round(age * self.window))


@dataclass(frozen=True)
class Endless:
    """A card in each `every` frames all the time, keys with ever new values; near each of the `checkpoints`, in
    frames, every card is asked about at the given ages, in windows, unless its key was bound anew.

    Cards end at the same frames in all streams. asking: for so many frames before a checkpoint.
    """

    checkpoints: tuple[int, ...]
    ages: tuple[float, ...]
    window: int
    asking: int
    every: int = 16
    size: int = 112
    name: str = "length"

    @property
    def length(self) -> int:
        return max(self.checkpoints)

    def play(self, seed: int) -> Iterator[Shown]:
        deck = self._deck(seed)

        def card(index: int) -> Card | None:
            found = deck(index // self.every)
            return found if found.start <= index < found.stop else None

        world = World(seed, SPLIT, size=self.size, cards=card)
        return _remembered(world, self.length, lambda index: self._due(deck, index, world.tokens), self.window)

    def _due(self, deck: Callable[[int], Card], index: int, tokens: int) -> list[tuple[Card, Cell]]:
        checkpoint = next((stop for stop in self.checkpoints if stop - self.asking <= index < stop), None)
        found = []
        for age in self.ages if checkpoint else ():
            last = index - max(1, round(age * self.window))
            if last >= 0 and (card := deck(last // self.every)).stop - 1 == last:
                cell = Cell(self.name, "recall", windows=age, tokens=checkpoint and checkpoint * tokens)
                found.append((card, cell))
        return found

    def _deck(self, seed: int) -> Callable[[int], Card]:
        """The card of each block of frames."""
        keys = pairs(SPLIT)

        @lru_cache(maxsize=64)
        def make(block: int) -> Card:
            stop = block * self.every + int(generator(0, SPLIT, TIMING, block).integers(LONGEST, self.every))
            rng = generator(seed, SPLIT, DECK, block)
            frames = int(rng.integers(SHORTEST, LONGEST + 1))
            return make_card(rng, stop - frames, frames, keys[rng.integers(len(keys))], draw_value(rng))

        return make


def _remembered(
    world: World, length: int, due: Callable[[int], list[tuple[Card, Cell]]], window: int
) -> Iterator[Shown]:
    """A stream with questions about the values of cards that fall due, where the card is its key's newest."""
    at = Context(world, Log(), generator(world.seed, SPLIT, ASKING))
    for index in range(length):
        at.log.observe(Moment(index, world.scene(index), world.card(index), ()))  # without sights, which take long
        asks = tuple(Ask(cell, _recall(at, card)) for card, cell in due(index) if _newest(at, card))
        yield Shown(world.frame(index), asks, bool(due(index + window - 1)))


def _newest(at: Context, card: Card) -> bool:
    return at.log.cards[card.key].start == card.start


def _recall(at: Context, card: Card) -> Question:
    fact = at.log.cards[card.key]
    return put("updated" if fact.showings > 1 else "card", value_of(at, fact), at, FPS)
