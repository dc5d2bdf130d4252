"""The film of the demo: StreamWorld with cards in its first seconds alone, and questions to its end."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from infinitevl.data.streamworld import Play, Question, World
from infinitevl.data.streamworld.asking import Asker, Due
from infinitevl.data.streamworld.cards import listed
from infinitevl.data.streamworld.disk import write_video
from infinitevl.data.streamworld.episodes import FPS
from infinitevl.data.streamworld.layout import mixed
from infinitevl.data.streamworld.vocabulary import generator

SPLIT = "test"  # worlds that no training has seen
CARDS, CARD_SECONDS = 8, 10
NOW = ("read", "see", "move")
EVERY_SECOND = ("recall", "recall", "order")  # besides one of NOW
LAYING, ASKING = 101, 102  # tags of randomness


@dataclass(frozen=True)
class Film:
    """tokens: of a frame; questions: in the order of their times, each asked right after the frame at its time."""

    path: Path
    seed: int
    tokens: int
    questions: tuple[Question, ...]


def make_film(path: Path, seed: int, seconds: int) -> Film:
    """Write `seconds` of StreamWorld to `path`, an mp4 of FPS frames a second, with four questions a second."""
    frames = round(seconds * FPS)
    shown = min(round(CARD_SECONDS * FPS), frames // 2)
    cards = mixed(generator(seed, SPLIT, LAYING), SPLIT, shown, min(CARDS, shown // 8))
    world = World(seed, SPLIT, cards=listed(cards))
    asker = Asker(world, _due(seconds), generator(seed, SPLIT, ASKING), FPS, frames - 1)
    episode = Play(world, asker.step, FPS, frames).episode()
    write_video(path, episode.frames, FPS)
    return Film(path, seed, world.tokens, episode.questions)


def _due(seconds: int) -> Iterator[Due]:
    for second in range(1, seconds + 1):
        groups = (NOW[second % 3], *EVERY_SECOND)
        yield from ((round(second * FPS) - 1, group) for group in groups)
