"""What a maker of questions is given, and what it finds out."""

from dataclasses import dataclass, field

import numpy as np

from infinitevl.data.streamworld.log import Log
from infinitevl.data.streamworld.vocabulary import Split
from infinitevl.data.streamworld.world import Moment, World


@dataclass(frozen=True, slots=True)
class Context:
    """A frame at which something is to be asked. `log` has observed it last; `rng` chooses what to ask."""

    world: World
    log: Log
    rng: np.random.Generator

    @property
    def index(self) -> int:
        return self.log.index

    @property
    def split(self) -> Split:
        return self.world.split

    @property
    def moment(self) -> Moment:
        return self.world.moment(self.index)

    def coin(self) -> bool:
        return bool(self.rng.random() < 0.5)


@dataclass(frozen=True, slots=True)
class Truth:
    """An answer, and what of the question is not its phrasing.

    `fields` fill the phrases; `chance` is how often the best guess is right that knows what answers there are
    but no picture; `age` is the number of frames since the evidence was last visible (of several pieces, the
    oldest); `facts` counts the cards, or for signs the signs, that began since (0 where neither is asked
    about); `rivals` counts the other answers that the stream has shown and that would fit the question;
    `held_out` says that the pair asked about is never shown in training.
    """

    answer: str
    chance: float
    fields: dict[str, str] = field(default_factory=dict)
    age: int = 0
    facts: int = 0
    rivals: int = 0
    held_out: bool = False
