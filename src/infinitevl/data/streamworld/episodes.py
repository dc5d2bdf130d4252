"""Streams with questions: samples to train on, tests of memory, and streams without end."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count

import numpy as np

from infinitevl.data.streamworld.asking import Asker, regular, scattered
from infinitevl.data.streamworld.cards import Card, endless, listed
from infinitevl.data.streamworld.draw import UNIT
from infinitevl.data.streamworld.layout import LONGEST, SHORTEST, Recall, mixed
from infinitevl.data.streamworld.log import Log
from infinitevl.data.streamworld.memory import value_of
from infinitevl.data.streamworld.questions import GROUP_OF, GROUPS, Question, ask, kinds_of, put
from infinitevl.data.streamworld.truths import Context
from infinitevl.data.streamworld.vocabulary import Split, generator
from infinitevl.data.streamworld.world import Moment, World
from infinitevl.errors import InfiniteVLError

FPS = 10.0
SCENE_FRAMES = (8, 64)
CARDS, ASKING, TEXT = 4, 5, 6  # tags of randomness

Step = Callable[[], tuple[Question, ...]]  # observes the next frame, and gives the questions asked after it


@dataclass(frozen=True, slots=True)
class Tick:
    """One frame of a stream, what it shows, and the questions asked right after it."""

    index: int
    time: float  # seconds
    frame: np.ndarray  # uint8 [size, size, 3]
    moment: Moment
    questions: tuple[Question, ...]


@dataclass(frozen=True, slots=True)
class Episode:
    """A whole stream in memory: frames uint8 [n, size, size, 3]; questions in order of their frames."""

    seed: int
    split: Split
    fps: float
    frames: np.ndarray
    questions: tuple[Question, ...]
    moments: tuple[Moment, ...]

    @property
    def cards(self) -> tuple[Card, ...]:
        """Every card shown, in order."""
        return tuple(dict.fromkeys(moment.card for moment in self.moments if moment.card))


class Play:
    """A stream with its questions, made while it is iterated, in constant memory.

    `length` is the number of frames, None for ever. It can be played once.
    """

    def __init__(self, world: World, step: Step, fps: float, length: int | None) -> None:
        self.world, self.fps, self.length = world, fps, length
        self._step = step

    def __iter__(self) -> Iterator[Tick]:
        for index in count() if self.length is None else range(self.length):
            yield self._tick(index, None)

    def episode(self) -> Episode:
        """All of it in memory. InfiniteVLError for a stream without end."""
        if self.length is None:
            raise InfiniteVLError("a stream without end does not fit into memory")
        frames = np.empty((self.length, self.world.size, self.world.size, 3), np.uint8)
        ticks = [self._tick(index, frames[index]) for index in range(self.length)]
        questions = tuple(question for tick in ticks for question in tick.questions)
        moments = tuple(tick.moment for tick in ticks)
        return Episode(self.world.seed, self.world.split, self.fps, frames, questions, moments)

    def _tick(self, index: int, out: np.ndarray | None) -> Tick:
        frame, questions = self.world.frame(index, out), self._step()
        return Tick(index, index / self.fps, frame, self.world.moment(index), questions)


def sample(
    seed: int,
    split: Split,
    *,
    frames: int = 64,
    questions: int = 8,
    groups: tuple[str, ...] = GROUPS,
    cards: int | None = None,
    size: int = UNIT,
    fps: float = FPS,
    scene_frames: tuple[int, int] = SCENE_FRAMES,
) -> Episode:
    """An episode of everything, to train on: up to `questions` questions along the way.

    groups: names of groups, and of kinds, which are as groups of one. They come as often as each other, and kinds
    within a group as often as the frames allow; a question is left out only where its group has nothing to ask until
    the end. The number of cards is random where `cards` does not give it, one in 8 frames at most.
    """
    _check_groups(groups)
    plan = listed(mixed(generator(seed, split, CARDS), split, frames, cards))
    world = World(seed, split, size=size, scene_frames=scene_frames, cards=plan)
    rng = generator(seed, split, ASKING)
    asker = Asker(world, scattered(rng, frames, questions, groups), rng, fps, frames - 1)
    return Play(world, asker.step, fps, frames).episode()


def clip(
    seed: int,
    split: Split,
    *,
    frames: tuple[int, int] = (5, 16),
    questions: int = 8,
    groups: tuple[str, ...] = ("move",),
    size: int = UNIT,
    fps: float = FPS,
) -> Episode:
    """A stream without cards that ends when something can be asked: up to `questions`, all after its last frame.

    frames: the shortest and, greater, the longest. A kind of question is drawn from all of `groups` first, and the
    stream goes on until that one has a clear answer, so that rare kinds come as often as the frames allow; others
    follow it.
    """
    _check_groups(groups)
    world, rng = World(seed, split, size=size, cards=listed(())), generator(seed, split, ASKING)
    at, kinds = Context(world, Log(), rng), [kind for group in groups for kind in kinds_of(group)]
    least, wanted = int(rng.integers(frames[0], frames[1])), kinds[rng.integers(len(kinds))]
    found = None
    while found is None and at.index + 1 < frames[1]:
        at.log.observe(world.moment(at.index + 1))
        found = ask(wanted, at, fps) if at.index + 1 >= least else None
    others = (ask(kinds[i], at, fps) for i in rng.integers(len(kinds), size=2 * questions))
    asked = list({(q.kind, q.question): q for q in (found, *others) if q}.values())[:questions]
    steps = iter([*[()] * at.index, tuple(asked)])
    return Play(world, lambda: next(steps), fps, at.index + 1).episode()


def stream(
    seed: int,
    split: Split,
    *,
    frames: int | None = None,
    every: int = 16,
    questions: int = 1,
    groups: tuple[str, ...] = GROUPS,
    card_every: int = 32,
    size: int = UNIT,
    fps: float = FPS,
    scene_frames: tuple[int, int] = SCENE_FRAMES,
) -> Play:
    """A stream without end, in constant memory: `questions` together in each `every` frames, a card in `card_every`.

    frames: after so many it is no longer played. Keys of cards come again with new values. Recall questions are about
    cards of all ages, as far back as the stream goes.
    """
    _check_groups(groups)
    plan = endless(seed, split, card_every, (SHORTEST, LONGEST))
    world = World(seed, split, size=size, scene_frames=scene_frames, cards=plan)
    rng = generator(seed, split, ASKING)
    return Play(world, Asker(world, regular(rng, every, groups, questions), rng, fps).step, fps, frames)


def recall(
    seed: int,
    split: Split,
    test: Recall,
    *,
    size: int = UNIT,
    fps: float = FPS,
    scene_frames: tuple[int, int] = SCENE_FRAMES,
) -> Play:
    """A test of memory, frame by frame: its questions, the target's first, come after the last frame.

    InfiniteVLError where its cards do not fit into its frames.
    """
    shown, target = test.lay_out(generator(seed, split, CARDS), split)
    world = World(seed, split, size=size, scene_frames=scene_frames, cards=listed(shown))
    at = Context(world, Log(), generator(seed, split, ASKING))

    def step() -> tuple[Question, ...]:
        at.log.observe(world.moment(at.log.index + 1))
        return _ask_at_end(at, test, target, fps) if at.index == test.frames - 1 else ()

    return Play(world, step, fps, test.frames)


def episode(
    seed: int,
    split: Split,
    *,
    frames: int = 64,
    cards: int = 8,
    age: int | None = None,
    between: int | None = None,
    updated: bool = False,
    asked: int = 1,
    alike: bool = False,
    size: int = UNIT,
) -> Episode:
    """A test of memory, see Recall, as an episode."""
    return recall(seed, split, Recall(frames, cards, age, between, updated, asked, alike), size=size).episode()


def text_questions(seed: int, split: Split, number: int) -> list[Question]:
    """Questions that need no picture, asked before the first frame."""
    at = Context(World(seed, split), Log(), generator(seed, split, TEXT))
    kinds = kinds_of("text")
    asked = (ask(kinds[at.rng.integers(len(kinds))], at, FPS) for _ in range(number))
    return [question for question in asked if question]


def _ask_at_end(at: Context, test: Recall, target: Card, fps: float) -> tuple[Question, ...]:
    """The question about the target, then those about others."""
    others = [fact for key, fact in at.log.cards.items() if key != target.key]
    chosen = [others[i] for i in at.rng.permutation(len(others))[: test.asked - 1]]
    facts = [at.log.cards[target.key], *chosen]
    kinds = ["updated" if fact.showings > 1 else "card" for fact in facts]
    pairs = zip(kinds, facts, strict=True)
    return tuple(put(kind, value_of(at, fact), at, fps) for kind, fact in pairs)


def _check_groups(groups: tuple[str, ...]) -> None:
    if unknown := [group for group in groups if group not in (*GROUPS, *GROUP_OF)]:
        raise InfiniteVLError(f"no questions {', '.join(unknown)}: the groups are {', '.join(GROUPS)}")
