"""All of a picture in one answer: what teaches most about one frame."""

from itertools import pairwise

from infinitevl.data.streamworld.perception import clear, name
from infinitevl.data.streamworld.truths import Context, Truth
from infinitevl.data.streamworld.vocabulary import HELD_OUT_PAIRS, chance_of, pairs

GAP = 4.0  # units between the middles of neighbours that make their order clear


def things(at: Context) -> Truth | None:
    """Colour and shape of every thing, from left to right."""
    sights = sorted(clear(at) or [], key=lambda sight: sight.x)
    close = any(b.x - a.x < GAP for a, b in pairwise(sights))
    if not sights or close:
        return None
    shown = [sight.thing.pair for sight in sights]
    held_out = any(pair in HELD_OUT_PAIRS for pair in shown)
    return Truth(", ".join(map(name, shown)), len(pairs(at.split)) ** -len(shown), held_out=held_out)


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
