"""The world: any frame of an endless stream, from a seed, and what can be seen in it."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from infinitevl.data.streamworld.cards import ICON, Card, CardPlan, endless
from infinitevl.data.streamworld.draw import (
    BRIGHTNESS,
    UNIT,
    Box,
    background,
    card_picture,
    noise_pool,
    sign_picture,
    sprite,
)
from infinitevl.data.streamworld.scene import Scene, Thing, make_scene
from infinitevl.data.streamworld.vocabulary import Split, generator, world_number
from infinitevl.errors import InfiniteVLError

TOKEN = 28  # pixels along an edge that one token covers: patches of 14, merged 2 x 2
SCENE, BACKGROUND = 2, 3  # tags of randomness
SWELL = (0.95, 1.0, 1.05)  # a thing's size from frame to frame
KEPT_VIEWS = 64


@dataclass(frozen=True, slots=True)
class Sight:
    """A thing in one frame: its centre in units, and the part of it that is in the frame and uncovered."""

    thing: Thing
    x: float
    y: float
    visible: float
    outside: bool


@dataclass(frozen=True, slots=True)
class Moment:
    """What one frame shows, without its pixels."""

    index: int
    scene: Scene
    card: Card | None
    sights: tuple[Sight, ...]


class World:
    """One deterministic stream. Frame `index` is the same however, and in whatever order, it is asked for.

    `scene_frames` are the shortest and the longest scene; `cards` is the plan of the cards, endless ones
    unless given. What happens does not depend on `size`, which must be a multiple of 28 from 112 on. Memory
    is constant; going back in time starts again from frame 0.
    """

    def __init__(
        self,
        seed: int,
        split: Split = "train",
        *,
        size: int = UNIT,
        scene_frames: tuple[int, int] = (8, 64),
        cards: CardPlan | None = None,
    ) -> None:
        if size < UNIT or size % TOKEN:
            raise InfiniteVLError(f"no frames of {size} pixels: give a multiple of {TOKEN}, at least {UNIT}")
        if not 1 <= scene_frames[0] <= scene_frames[1]:
            raise InfiniteVLError(f"no scenes of {scene_frames} frames")
        self.split: Split = split
        self.seed, self.size, self.scene_frames = seed, size, scene_frames
        self.card = cards or endless(seed, split, 32, (2, 6))
        self.tokens = (size // TOKEN) ** 2  # of a frame
        self._salt = world_number(seed, split)
        self._scene = self._make_scene(0, 0)
        self._painted = (-1, np.empty(0, np.uint8), np.empty(0, np.uint8))
        self._card_painted: tuple[Card | None, np.ndarray] = (None, np.empty(0, np.uint8))
        self._views: dict[int, tuple[Sight, ...]] = {}
        self._moment: Moment | None = None  # the last that was asked for

    def scene(self, index: int) -> Scene:
        """The scene that frame `index` belongs to."""
        if index < self._scene.start:
            self._scene = self._make_scene(0, 0)
        while index >= self._scene.stop:
            self._scene = self._make_scene(self._scene.number + 1, self._scene.stop)
        return self._scene

    def moment(self, index: int) -> Moment:
        if self._moment is None or self._moment.index != index:
            self._moment = Moment(index, self.scene(index), self.card(index), self.sights(index))
        return self._moment

    def frame(self, index: int, out: np.ndarray | None = None) -> np.ndarray:
        """Frame `index`, uint8 [size, size, 3], written into `out` where given."""
        frame = np.empty((self.size, self.size, 3), np.uint8) if out is None else out
        scene = self.scene(index)
        ground, sign = self._paint(scene)
        frame[:] = ground
        chance = _mix(self._salt, index)
        for number, thing in enumerate(scene.things):
            self._draw(frame, thing, index - scene.start, SWELL[_mix(chance, number) % 3])
        if scene.sign:
            _paste(frame, sign, self._corner(scene.sign.box))
        if card := self.card(index):
            _paste(frame, self._paint_card(card), self._corner(card.box))
        _disturb(frame, chance)
        return frame

    def frames(self, start: int = 0, stop: int | None = None) -> Iterator[np.ndarray]:
        """The frames from `start` to `stop`, or for ever, each a new array."""
        index = start
        while stop is None or index < stop:
            yield self.frame(index)
            index += 1

    def sights(self, index: int) -> tuple[Sight, ...]:
        """Every thing of the scene, in drawing order, and how much of it frame `index` shows."""
        if index not in self._views:
            if len(self._views) >= KEPT_VIEWS:
                del self._views[next(iter(self._views))]
            self._views[index] = self._look(index)
        return self._views[index]

    def _look(self, index: int) -> tuple[Sight, ...]:
        scene, card = self.scene(index), self.card(index)
        t = index - scene.start
        owner = np.zeros((UNIT, UNIT), np.uint8)  # which thing, counted from 1, a pixel shows
        for number, thing in enumerate(scene.things, 1):
            if not thing.outside(t):
                _cover(owner, _outline(thing), _top_left(thing.at(t), thing.diameter), number)
        for cover in (scene.sign, card):
            if cover:
                left, top, width, height = cover.box
                owner[top : top + height, left : left + width] = 0
        return tuple(self._sight(thing, t, owner == number) for number, thing in enumerate(scene.things, 1))

    @staticmethod
    def _sight(thing: Thing, t: int, shown: np.ndarray) -> Sight:
        visible = float(np.count_nonzero(shown) / np.count_nonzero(_outline(thing)))
        return Sight(thing, *thing.at(t), visible, thing.outside(t))

    def _make_scene(self, number: int, start: int) -> Scene:
        rng = generator(self.seed, self.split, SCENE, number)
        return make_scene(rng, self.split, number, start, self.scene_frames)

    def _paint(self, scene: Scene) -> tuple[np.ndarray, np.ndarray]:
        """The background and the sign of a scene, painted once."""
        if self._painted[0] != scene.number:
            ground = background(generator(self.seed, self.split, BACKGROUND, scene.number), self.size)
            sign = scene.sign
            board = sign_picture(sign.lines, sign.style, sign.box, self.size) if sign else ground[:0]
            self._painted = scene.number, ground, board
        return self._painted[1:]

    def _paint_card(self, card: Card) -> np.ndarray:
        if self._card_painted[0] != card:
            icon = sprite(*card.key, round(ICON * self.size / UNIT))
            self._card_painted = card, card_picture(icon, card.value, card.style, card.box, self.size)
        return self._card_painted[1]

    def _draw(self, frame: np.ndarray, thing: Thing, t: int, swell: float) -> None:
        scale = self.size / UNIT
        pixels = round(thing.diameter * swell * scale)
        x, y = thing.at(t)
        left, top = _top_left((x * scale, y * scale), pixels)
        (rows, columns), (from_rows, from_columns) = _overlap(left, top, pixels, self.size)
        if rows.start < rows.stop and columns.start < columns.stop:
            picture = sprite(thing.shape, thing.colour, pixels)
            mask = picture.mask[from_rows, from_columns]
            np.copyto(frame[rows, columns], picture.rgb[from_rows, from_columns], where=mask)

    def _corner(self, box: Box) -> tuple[int, int]:
        return round(box[0] * self.size / UNIT), round(box[1] * self.size / UNIT)


def _outline(thing: Thing) -> np.ndarray:
    """Which pixels it covers where a unit is a pixel, bool [diameter, diameter]."""
    return sprite(thing.shape, thing.colour, thing.diameter).mask[..., 0]


def _top_left(centre: tuple[float, float], pixels: int) -> tuple[int, int]:
    return round(centre[0] - pixels / 2), round(centre[1] - pixels / 2)


def _overlap(left: int, top: int, pixels: int, size: int) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """The rows and columns of a frame that a square picture covers, and the same of the picture."""
    x0, x1 = max(left, 0), max(min(left + pixels, size), 0)
    y0, y1 = max(top, 0), max(min(top + pixels, size), 0)
    return (slice(y0, y1), slice(x0, x1)), (slice(y0 - top, y1 - top), slice(x0 - left, x1 - left))


def _cover(owner: np.ndarray, mask: np.ndarray, corner: tuple[int, int], number: int) -> None:
    (rows, columns), (from_rows, from_columns) = _overlap(*corner, mask.shape[0], UNIT)
    if rows.start < rows.stop and columns.start < columns.stop:
        owner[rows, columns][mask[from_rows, from_columns]] = number


def _paste(frame: np.ndarray, board: np.ndarray, corner: tuple[int, int]) -> None:
    left, top = corner
    place = frame[top : top + board.shape[0], left : left + board.shape[1]]
    place[:] = board[: place.shape[0], : place.shape[1]]


def _disturb(frame: np.ndarray, chance: int) -> None:
    """Adds noise and a change of brightness, in place; colours have a margin, so nothing overflows."""
    pool, flat = noise_pool(frame.size), frame.reshape(-1)
    start = chance % (len(pool) - frame.size)
    flat += pool[start : start + frame.size]
    flat += np.uint8(((chance >> 32) % (2 * BRIGHTNESS + 1) - BRIGHTNESS) % 256)


def _mix(a: int, b: int) -> int:
    """A hash of two integers, 64 bits (splitmix64)."""
    z = (a * 0x9E3779B97F4A7C15 + b * 0xD1B54A32D192ED03 + 0x632BE59BD9B4E019) & 0xFFFFFFFFFFFFFFFF
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
    return z ^ (z >> 31)
