"""All of a picture in one answer: what teaches most about one frame."""

from itertools import pairwise

from infinitevl.data.streamworld.draw import UNIT
from infinitevl.data.streamworld.perception import GLANCE, clear, name, undisturbed, way
from infinitevl.data.streamworld.truths import Context, Truth
from infinitevl.data.streamworld.vocabulary import HELD_OUT_PAIRS, chance_of, pairs
from infinitevl.data.streamworld.world import Sight

CELLS = "abcdefghijklmnop"  # columns from the left, and rows from the top
GAP = 4.0  # units between the middles of neighbours that make their order clear


def things(at: Context) -> Truth | None:
    """Colour and shape of every thing, from left to right."""
    sights = _in_order(at)
    return _listed(at, sights, [name(sight.thing.pair) for sight in sights])


def ways(at: Context) -> Truth | None:
    """The same, and where every thing moves."""
    sights = _in_order(at) if undisturbed(at, GLANCE) else []
    moved = [way(at, sight.thing) for sight in sights]
    if not all(moved):
        return None
    return _listed(at, sights, [f"{name(s.thing.pair)} {where}" for s, where in zip(sights, moved, strict=True)])


def spots(at: Context) -> Truth | None:
    """Colour, shape, column and row of every thing, from left to right."""
    sights = _in_order(at)
    return _listed(at, sights, [f"{name(s.thing.pair)} {_cell(s.x)} {_cell(s.y)}" for s in sights])


def sign(at: Context) -> Truth | None:
    """All that the sign says."""
    board = at.moment.scene.sign
    if board is None:
        return None
    chance = min(chance_of(line) for line in board.lines)
    return Truth(" ".join(board.lines), chance, held_out=board.held_out)


def card(at: Context) -> Truth | None:
    """Icon and value of the card."""
    shown = at.moment.card
    if shown is None:
        return None
    chance = chance_of(shown.value) / len(pairs(at.split))
    return Truth(f"{name(shown.key)}, {shown.value}", chance, held_out=shown.key in HELD_OUT_PAIRS)


def _cell(place: float) -> str:
    """The cell that a place along an edge is in; of what is partly outside, the last on that side."""
    return CELLS[min(max(0, int(place * len(CELLS) / UNIT)), len(CELLS) - 1)]


def _in_order(at: Context) -> list[Sight]:
    """All things from left to right; none where two are in no clear order."""
    sights = sorted(clear(at) or [], key=lambda sight: sight.x)
    return [] if any(b.x - a.x < GAP for a, b in pairwise(sights)) else sights


def _listed(at: Context, sights: list[Sight], lines: list[str]) -> Truth | None:
    held_out = any(sight.thing.pair in HELD_OUT_PAIRS for sight in sights)
    return Truth(", ".join(lines), len(pairs(at.split)) ** -len(lines), held_out=held_out) if lines else None
