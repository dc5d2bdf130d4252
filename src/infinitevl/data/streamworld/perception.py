"""Questions about what is in the picture now (read, see) or was a few frames ago (move).

Each function gives the truth of one kind of question at a frame, or None where it would have no clear answer.
"""

from collections import Counter
from collections.abc import Callable
from itertools import pairwise

from infinitevl.data.streamworld.draw import UNIT
from infinitevl.data.streamworld.log import CLEAR
from infinitevl.data.streamworld.scene import Thing
from infinitevl.data.streamworld.truths import Context, Truth
from infinitevl.data.streamworld.vocabulary import (
    COLOURS,
    HELD_OUT_PAIRS,
    SHAPES,
    chance_of,
    is_number,
    pairs,
)
from infinitevl.data.streamworld.world import Sight

APART = 10.0  # units between things, or from the middle of the frame, that make a relation clear
GLANCE = 4  # frames in which a movement must show
STEP = 1.0  # least movement in each of them, in units
COUNT_CHANCE = 0.35  # share of the commonest number of things, as measured
CROSSING = 24  # frames in which a thing comes in, or goes out, entirely
RECENT = 8  # frames for which a thing has "just" left
SIDES = {"left of": (-1, 0), "right of": (1, 0), "above": (0, -1), "below": (0, 1)}


def sign_word(at: Context) -> Truth | None:
    sign = at.moment.scene.sign
    if sign is None or sign.word is None:
        return None
    return Truth(sign.word, chance_of(sign.word), held_out=sign.held_out)


def sign_number(at: Context) -> Truth | None:
    sign = at.moment.scene.sign
    return Truth(sign.number, chance_of(sign.number)) if sign and sign.number else None


def card_value(at: Context) -> Truth | None:
    card = at.moment.card
    if card is None:
        return None
    fields = {"sort": "number" if is_number(card.value) else "word"}
    return Truth(card.value, chance_of(card.value), fields, held_out=card.key in HELD_OUT_PAIRS)


def card_icon(at: Context) -> Truth | None:
    card = at.moment.card
    if card is None:
        return None
    return Truth(name(card.key), 1 / len(pairs(at.split)), held_out=card.key in HELD_OUT_PAIRS)


def colour(at: Context) -> Truth | None:
    sight = _pick(at, _alone(at, lambda thing: thing.shape))
    return sight and _about(sight, sight.thing.colour, 1 / len(COLOURS), shape=sight.thing.shape)


def shape(at: Context) -> Truth | None:
    sight = _pick(at, _alone(at, lambda thing: thing.colour))
    return sight and _about(sight, sight.thing.shape, 1 / len(SHAPES), colour=sight.thing.colour)


def beside(at: Context) -> Truth | None:
    """What is on one side of a thing, where that is one thing and no other is near that line."""
    anchor, sights = _pick(at, _alone(at, lambda thing: thing.shape)), clear(at)
    if anchor is None or sights is None:
        return None
    others = [sight for sight in sights if sight is not anchor]
    found = [(side, _only(others, anchor, way)) for side, way in SIDES.items()]
    options = [(side, sight) for side, sight in found if sight]
    if not options:
        return None
    side, sight = options[at.rng.integers(len(options))]
    return _about(sight, sight.thing.shape, 1 / len(SHAPES), side=side, shape=anchor.thing.shape)


def count(at: Context) -> Truth | None:
    sights = clear(at)
    return Truth(str(len(sights)), COUNT_CHANCE) if sights else None


def extreme(at: Context) -> Truth | None:
    """The largest or the smallest thing, where it is one of at least two."""
    sights, largest = clear(at), at.coin()
    if sights is None or len(sights) < 2:
        return None
    sights = sorted(sights, key=lambda sight: sight.thing.size, reverse=largest)
    if sights[0].thing.size == sights[1].thing.size:
        return None
    degree = "largest" if largest else "smallest"
    return _about(sights[0], sights[0].thing.shape, 1 / len(SHAPES), degree=degree)


def place(at: Context) -> Truth | None:
    sight = _pick(at, _alone(at, lambda thing: thing.shape))
    if sight is None or min(abs(sight.x - UNIT / 2), abs(sight.y - UNIT / 2)) < APART:
        return None
    row, column = "top" if sight.y < UNIT / 2 else "bottom", "left" if sight.x < UNIT / 2 else "right"
    return _about(sight, f"{row} {column}", 1 / 4, shape=sight.thing.shape)


def sign_place(at: Context) -> Truth | None:
    sign = at.moment.scene.sign
    return Truth(sign.position, 1 / 4, held_out=sign.held_out) if sign else None


def direction(at: Context) -> Truth | None:
    sight = _pick(at, [s for s in _watched(at) if _steady(at, s.thing)])
    return sight and _about(sight, way(at, sight.thing), 1 / 4, shape=sight.thing.shape)


def moving(at: Context) -> Truth | None:
    watched, still = _watched(at), at.coin()
    wanted = [s for s in watched if (s.thing.motion == "still" if still else _steady(at, s.thing))]
    sight = _pick(at, wanted)
    return sight and _about(sight, "still" if still else "moving", 1 / 2, shape=sight.thing.shape)


def left(at: Context) -> Truth | None:
    """The one thing that went out of the frame in the last frames, and was clearly visible before."""
    gone = [thing for thing, outside in _crossings(at) if outside[-1] and not all(outside)]
    if len(gone) != 1 or not undisturbed(at, RECENT):
        return None
    thing = gone[0]
    shown = [i for i in range(at.index - CROSSING, at.index) if _visible(at, i, thing) > 0]
    if not shown or at.index - shown[-1] > RECENT or max(_visible(at, i, thing) for i in shown) < CLEAR:
        return None
    held_out = thing.pair in HELD_OUT_PAIRS
    return Truth(name(thing.pair), 1 / len(pairs(at.split)), age=at.index - shown[-1], held_out=held_out)


def entered(at: Context) -> Truth | None:
    """The one thing that was out of the frame some frames ago, and now is clearly visible."""
    come = [thing for thing, outside in _crossings(at) if not outside[-1] and any(outside)]
    if len(come) != 1 or not undisturbed(at, GLANCE) or _visible(at, at.index, come[0]) < CLEAR:
        return None
    pair = come[0].pair
    return Truth(name(pair), 1 / len(pairs(at.split)), held_out=pair in HELD_OUT_PAIRS)


def way(at: Context, thing: Thing) -> str:
    """Where it went in the last frames, `still` or, where that is not clear, nothing."""
    if thing.motion == "still":
        return "still"
    if not _steady(at, thing):
        return ""
    forward = _path(at, thing)[-1] > _path(at, thing)[0]
    return (("left", "right") if thing.axis == 0 else ("up", "down"))[forward]


def name(pair: tuple[str, str]) -> str:
    return f"{pair[1]} {pair[0]}"


def _about(sight: Sight, answer: str, chance: float, **fields: str) -> Truth:
    return Truth(answer, chance, fields, held_out=sight.thing.pair in HELD_OUT_PAIRS)


def _shown(at: Context) -> list[Sight]:
    """Things in the frame, hidden or not; none while a card is shown, whose icon would be another thing."""
    return [] if at.moment.card else [sight for sight in at.moment.sights if not sight.outside]


def clear(at: Context) -> list[Sight] | None:
    """All things in the frame, or None if there is none or one is hardly visible."""
    sights = _shown(at)
    return sights if sights and all(sight.visible >= CLEAR for sight in sights) else None


def _alone(at: Context, trait: Callable[[Thing], str]) -> list[Sight]:
    """Clearly visible things that share a trait with no other thing in the frame."""
    sights = _shown(at)
    times = Counter(trait(sight.thing) for sight in sights)
    return [s for s in sights if s.visible >= CLEAR and times[trait(s.thing)] == 1]


def _only(others: list[Sight], anchor: Sight, way: tuple[int, int]) -> Sight | None:
    """The one thing on this side of the anchor; None if there are more, or one is not clearly beside it."""
    far = [way[0] * (other.x - anchor.x) + way[1] * (other.y - anchor.y) for other in others]
    there = [other for other, distance in zip(others, far, strict=True) if distance > 0]
    return there[0] if len(there) == 1 and min(map(abs, far)) >= APART else None


def _pick(at: Context, sights: list[Sight]) -> Sight | None:
    return sights[at.rng.integers(len(sights))] if sights else None


def undisturbed(at: Context, frames: int) -> bool:
    """Whether this frame and so many before it belong to one scene and show no card."""
    first = at.index - frames
    same = first >= at.moment.scene.start
    return same and not any(at.world.card(i) for i in range(first, at.index + 1))


def _watched(at: Context) -> list[Sight]:
    """Things that were clearly visible in all the last frames, with no other of their shape about."""
    if not undisturbed(at, GLANCE):
        return []
    frames = range(at.index - GLANCE, at.index)
    about = {sight.thing for i in frames for sight in at.world.sights(i) if not sight.outside}
    shapes = Counter(thing.shape for thing in about)
    alone = [s for s in _alone(at, lambda thing: thing.shape) if shapes[s.thing.shape] == 1]
    return [s for s in alone if all(_visible(at, i, s.thing) >= CLEAR for i in frames)]


def _path(at: Context, thing: Thing) -> list[float]:
    t = at.index - at.moment.scene.start
    return [thing.at(i)[thing.axis] for i in range(t - GLANCE, t + 1)]


def _steady(at: Context, thing: Thing) -> bool:
    """Whether it moved clearly, and one way, in the last frames."""
    path = _path(at, thing)
    steps = [b - a for a, b in pairwise(path)]
    return min(steps) >= STEP or max(steps) <= -STEP


def _visible(at: Context, index: int, thing: Thing) -> float:
    if index < at.moment.scene.start:
        return 0.0
    return next(sight.visible for sight in at.world.sights(index) if sight.thing is thing)


def _crossings(at: Context) -> list[tuple[Thing, list[bool]]]:
    """Every thing, and whether it was outside in each of the last frames, of this scene alone."""
    scene = at.moment.scene
    times = range(max(scene.start, at.index - CROSSING) - scene.start, at.index - scene.start + 1)
    return [(thing, [thing.outside(t) for t in times]) for thing in scene.things]
