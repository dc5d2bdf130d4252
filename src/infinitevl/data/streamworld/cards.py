"""Cards: the facts of a stream. Each binds a key, a coloured icon, to a value, for a few frames."""

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import numpy as np

from infinitevl.data.streamworld.draw import UNIT, Box, Style, card_size
from infinitevl.data.streamworld.glyphs import FACES
from infinitevl.data.streamworld.vocabulary import (
    Pair,
    Split,
    Value,
    draw_number,
    draw_word,
    generator,
    is_number,
    pairs,
)
from infinitevl.errors import InfiniteVLError

ICON = 22  # diameter of the icon, in units
BAND = (36, 76)  # cards lie between these heights, where no sign is
CARD_INKS = ((20, 20, 20), (26, 34, 110), (110, 22, 34))
CARD_STREAM = 1  # tag of the randomness of endless cards


@dataclass(frozen=True, slots=True)
class Card:
    """A card shown in the frames [start, stop)."""

    start: int
    stop: int
    key: Pair
    value: Value
    style: Style
    box: Box


CardPlan = Callable[[int], Card | None]  # the card shown in a frame; the same answer whenever asked


def make_card(rng: np.random.Generator, start: int, frames: int, key: Pair, value: Value) -> Card:
    """A card with random looks and place."""
    ink = CARD_INKS[rng.integers(len(CARD_INKS))]
    style = Style(FACES[rng.integers(len(FACES))], int(rng.integers(11, 15)), ink, (235, 235, 235))
    while card_size(value, style, ICON)[0] > UNIT - 6:
        style = Style(style.face, style.height - 1, style.ink, style.paper)
    width, height = card_size(value, style, ICON)
    left = 1 + int(rng.integers(UNIT - 1 - width))
    top = BAND[0] + int(rng.integers(BAND[1] - BAND[0] - height + 1))
    return Card(start, start + frames, key, value, style, (left, top, width, height))


def draw_value(rng: np.random.Generator) -> Value:
    """A number or a word, as likely as each other."""
    return draw_number(rng) if rng.random() < 0.5 else draw_word(rng)


def listed(cards: Sequence[Card]) -> CardPlan:
    """Just these cards, in order of time, never two at once."""
    starts = [card.start for card in cards]
    if any(a.stop > b.start for a, b in pairwise(cards)):
        raise InfiniteVLError("two cards at once, or cards out of order")

    def plan(index: int) -> Card | None:
        last = bisect_right(starts, index) - 1
        return cards[last] if last >= 0 and index < cards[last].stop else None

    return plan


def endless(seed: int, split: Split, every: int, frames: tuple[int, int]) -> CardPlan:
    """A card of frames[0] to frames[1] frames somewhere in each `every` frames, for ever, keys at random.

    Keys come again, with new values. Memory is constant: a card is made again from its place in time.
    """
    if not 0 < frames[0] <= frames[1] < every:
        raise InfiniteVLError(f"a card of {frames} frames does not fit into every {every} frames")
    keys = pairs(split)

    @lru_cache(maxsize=4)
    def make(block: int) -> Card:
        rng = generator(seed, split, CARD_STREAM, block)
        length = int(rng.integers(frames[0], frames[1] + 1))
        start = block * every + int(rng.integers(every - length))
        return make_card(rng, start, length, keys[rng.integers(len(keys))], draw_value(rng))

    def plan(index: int) -> Card | None:
        card = make(index // every)
        return card if card.start <= index < card.stop else None

    return plan


def draw_bindings(rng: np.random.Generator, split: Split, count: int, alike: bool = False) -> list[tuple[Pair, Value]]:
    """Different keys bound to different values, so that a key tells the value and a value the key.

    alike: all values are numbers or all are words, so that nothing else does.
    """
    keys, values = pairs(split), dict[Value, None]()
    if count > len(keys):
        raise InfiniteVLError(f"{count} cards: there are only {len(keys)} keys in {split}")
    while len(values) < count:
        value = draw_value(rng)
        if not alike or all(is_number(value) == is_number(other) for other in values):
            values[value] = None
    return [(keys[i], value) for i, value in zip(rng.permutation(len(keys))[:count], values, strict=True)]


def draw_like(rng: np.random.Generator, value: Value) -> Value:
    """Another value of the same sort."""
    while (other := draw_number(rng) if is_number(value) else draw_word(rng)) == value:
        pass
    return other
