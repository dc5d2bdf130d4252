"""A scene: what stands and moves in front of one background, and where, as a function of time alone."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from infinitevl.data.streamworld.draw import UNIT, Box, Colour, Style, sign_size
from infinitevl.data.streamworld.glyphs import FACES
from infinitevl.data.streamworld.vocabulary import (
    POSITIONS,
    Pair,
    Split,
    draw_number,
    draw_word,
    pairs,
    word_held_out,
)

DIAMETERS = (16, 24, 36)  # of small, medium and large things
PAUSE = 16  # units beyond the edge before a thing that left comes in again on the other side
INKS: tuple[tuple[Colour, Colour], ...] = (  # ink and paper of signs
    ((20, 20, 20), (235, 235, 230)),
    ((235, 235, 235), (24, 24, 28)),
    ((235, 235, 225), (20, 70, 50)),
    ((235, 225, 160), (24, 30, 80)),
    ((235, 220, 205), (96, 24, 40)),
    ((60, 34, 20), (228, 212, 176)),
    ((22, 34, 90), (190, 210, 232)),
    ((96, 20, 30), (232, 222, 222)),
)


@dataclass(frozen=True, slots=True)
class Thing:
    """One object: still, bouncing between the edges, or crossing the frame again and again.

    Positions are those of its centre, in units. `axis` (0: x, 1: y) and `velocity`, in units a frame, say how
    it moves.
    """

    shape: str
    colour: str
    size: int
    motion: Literal["still", "bounce", "cross"]
    start: tuple[float, float]
    axis: int
    velocity: float

    @property
    def pair(self) -> Pair:
        return self.shape, self.colour

    @property
    def diameter(self) -> int:
        return DIAMETERS[self.size]

    def at(self, t: int) -> tuple[float, float]:
        """Where it is `t` frames after the scene began; beyond the frame while it is away."""
        if self.motion == "still":
            return self.start
        place = self._along(t)
        return (place, self.start[1]) if self.axis == 0 else (self.start[0], place)

    def _along(self, t: int) -> float:
        radius = self.diameter / 2
        if self.motion == "bounce":
            room = UNIT - 2 * radius - 2
            way = (self.start[self.axis] - radius - 1 + self.velocity * t) % (2 * room)
            return radius + 1 + min(way, 2 * room - way)
        return (self.start[self.axis] + radius + self.velocity * t) % (UNIT + 2 * radius + PAUSE) - radius

    def outside(self, t: int) -> bool:
        """Whether no part of it is in the frame: of things that cross it alone."""
        if self.motion != "cross":
            return False
        reach = self.diameter / 2 + 1
        return not -reach < self._along(t) < UNIT + reach


@dataclass(frozen=True, slots=True)
class Sign:
    """A board that stands still through its scene, in front of all things; cards never cover it."""

    word: str | None
    number: str | None
    position: str
    style: Style
    box: Box

    @property
    def lines(self) -> tuple[str, ...]:
        return tuple(line for line in (self.word, self.number) if line)

    @property
    def held_out(self) -> bool:
        return self.word is not None and word_held_out(self.word, self.position)


@dataclass(frozen=True, slots=True)
class Scene:
    """Frames [start, stop) of a world. `things` are in drawing order, the largest first."""

    number: int
    start: int
    stop: int
    things: tuple[Thing, ...]
    sign: Sign | None


def make_scene(
    rng: np.random.Generator,
    split: Split,
    number: int,
    start: int,
    frames: tuple[int, int],
) -> Scene:
    """Scene `number`, from frame `start`, of frames[0] to frames[1] frames, short ones as likely as long."""
    low, high = np.log(frames[0]), np.log(frames[1] + 1)
    length = min(frames[1], int(np.exp(low + (high - low) * rng.random()) + 1e-9))
    sign = make_sign(rng, split) if rng.random() < 0.75 else None
    return Scene(number, start, start + length, _make_things(rng, split, sign), sign)


def make_sign(rng: np.random.Generator, split: Split) -> Sign:
    """A word, a number or both, at a position where this split may show that word."""
    content = rng.integers(3)
    word = draw_word(rng) if content != 1 else None
    number = draw_number(rng) if content != 0 else None
    position = POSITIONS[rng.integers(4)]
    while split != "test" and word and word_held_out(word, position):
        word, position = draw_word(rng), POSITIONS[rng.integers(4)]
    ink, paper = INKS[rng.integers(len(INKS))]
    height = 10 + int(rng.integers(5)) if content != 2 else 10
    lines = tuple(line for line in (word, number) if line)
    style = Style(FACES[rng.integers(len(FACES))], height, ink, paper)
    while sign_size(lines, style)[0] > 54 and style.height > 10:
        style = Style(style.face, style.height - 1, ink, paper)
    return Sign(word, number, position, style, _sign_box(rng, position, sign_size(lines, style)))


def _sign_box(rng: np.random.Generator, position: str, size: tuple[int, int]) -> Box:
    """Wholly in the upper or lower 36 units: the band between belongs to the cards."""
    (width, height), (row, column) = size, position.split()
    left = 1 + int(rng.integers(max(1, UNIT // 2 - 1 - width)))
    top = 1 + int(rng.integers(max(1, 35 - height)))
    return (
        left if column == "left" else UNIT - width - left,
        top if row == "top" else UNIT - height - top,
        width,
        height,
    )


def _make_things(rng: np.random.Generator, split: Split, sign: Sign | None) -> tuple[Thing, ...]:
    allowed = pairs(split)
    chosen = rng.choice(len(allowed), int(rng.integers(1, 6)), replace=False)
    things: list[Thing] = []
    for index in chosen:
        options = [_make_thing(rng, allowed[index]) for _ in range(4)]
        things.append(min(options, key=lambda thing: _crowding(thing, things, sign)))
    return tuple(sorted(things, key=lambda thing: -thing.size))


def _make_thing(rng: np.random.Generator, pair: Pair) -> Thing:
    size, kind = int(rng.integers(3)), rng.random()
    radius = DIAMETERS[size] / 2
    x, y = radius + 1 + rng.random(2) * (UNIT - 2 * radius - 2)
    velocity = float(1.2 + 2.3 * rng.random()) * (1 if rng.random() < 0.5 else -1)
    motion = "still" if kind < 0.35 else "bounce" if kind < 0.55 else "cross"
    axis, start = int(rng.integers(2)), [float(x), float(y)]
    if motion == "cross":  # some begin outside
        start[axis] = float(rng.random() * (UNIT + 2 * radius + PAUSE) - radius)
    return Thing(*pair, size, motion, (start[0], start[1]), axis, velocity)


def _crowding(thing: Thing, others: list[Thing], sign: Sign | None) -> float:
    """How much a new thing would overlap what is there at the start of the scene."""
    x, y = thing.start
    crowd = 0.0
    for other in others:
        near = (thing.diameter + other.diameter) / 2
        crowd += max(0.0, near - abs(x - other.start[0])) * max(0.0, near - abs(y - other.start[1]))
    if sign:
        left, top, width, height = sign.box
        near_x = thing.diameter / 2 + width / 2 - abs(x - left - width / 2)
        near_y = thing.diameter / 2 + height / 2 - abs(y - top - height / 2)
        crowd += 2 * max(0.0, near_x) * max(0.0, near_y)
    return crowd
