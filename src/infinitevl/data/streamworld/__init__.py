"""StreamWorld: a procedural video world with exact questions, which trains and tests the model in the box.

`sample` and `clip` make episodes to train on, `episode` and `recall` tests of memory, `stream` a stream without end;
`write` puts samples on disk, `contact_sheet` shows them. All is deterministic from a seed and a split.
"""

from infinitevl.data.streamworld.disk import write
from infinitevl.data.streamworld.episodes import (
    Episode,
    Play,
    Tick,
    clip,
    episode,
    recall,
    sample,
    stream,
    text_questions,
)
from infinitevl.data.streamworld.layout import Recall
from infinitevl.data.streamworld.questions import GROUPS, KINDS, Question
from infinitevl.data.streamworld.sheet import contact_sheet
from infinitevl.data.streamworld.vocabulary import SPLITS, Split
from infinitevl.data.streamworld.world import World

__all__ = [
    "GROUPS",
    "KINDS",
    "SPLITS",
    "Episode",
    "Play",
    "Question",
    "Recall",
    "Split",
    "Tick",
    "World",
    "clip",
    "contact_sheet",
    "episode",
    "recall",
    "sample",
    "stream",
    "text_questions",
    "write",
]
