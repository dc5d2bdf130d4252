"""The film of the demo: StreamWorld with cards in its first seconds alone, and questions to its end."""

from collections.abc import Iterable, Iterator
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
CARDS, CARD_SECONDS = 3, 4
NOW = ("read", "see")
REPEATED = 2.0
LAYING, ASKING = 101, 102  # tags of randomness


@dataclass(frozen=True)
class Film:
    """tokens: of a frame; cards: how many; questions: in order, each asked right after the frame of its time."""

    path: Path
    seed: int
    tokens: int
    cards: int
    questions: tuple[Question, ...]


def make_film(path: Path, seed: int, seconds: int) -> Film:
    """Write `seconds` of StreamWorld to `path`, an mp4 of FPS frames a second, with up to two questions a second."""
    frames = round(seconds * FPS)
    shown = min(round(CARD_SECONDS * FPS), frames // 2)
    cards = mixed(generator(seed, SPLIT, LAYING), SPLIT, shown, min(CARDS, shown // 8))
    world = World(seed, SPLIT, cards=listed(cards))
    asker = Asker(world, _due(seconds), generator(seed, SPLIT, ASKING), FPS, frames - 1)
    episode = Play(world, asker.step, FPS, frames).episode()
    write_video(path, episode.frames, FPS)
    return Film(path, seed, world.tokens, len(cards), tuple(_varied(episode.questions)))


def _varied(questions: Iterable[Question]) -> Iterator[Question]:
    """Without those that ask for the same as one less than REPEATED seconds before."""
    asked: dict[tuple[str, str], float] = {}
    for question in questions:
        key = question.kind, question.answer
        if question.time - asked.get(key, -REPEATED) >= REPEATED:
            asked[key] = question.time
            yield question


def _due(seconds: int) -> Iterator[Due]:
    """Each second a question of NOW, in turn, and one about what is gone."""
    for second in range(1, seconds + 1):
        yield from ((round(second * FPS) - 1, group) for group in (NOW[second % len(NOW)], "recall"))
