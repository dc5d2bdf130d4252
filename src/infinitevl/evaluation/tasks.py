"""What is asked of a model, cell by cell: StreamWorld episodes of the test split that end with a question."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from infinitevl.data.streamworld import Question, Recall, Split, recall
from infinitevl.data.streamworld.episodes import sample
from infinitevl.errors import InfiniteVLError

PERCEPTION = ("read", "see", "move")
MOST_TRIES = 64  # episodes tried for a question of a rare kind


@dataclass(frozen=True)
class Cell:
    """One entry of a table: `frames` frames, then a question of `group`.

    group: of PERCEPTION, whose answer is in these frames, or "recall": the question is about a card last seen `age`
    frames before the last, one of `cards` cards. forget_at: the frame before which the Gated DeltaNet memory is
    emptied (None: never).
    """

    name: str
    group: str
    frames: int
    cards: int = 1
    age: int | None = None
    forget_at: int | None = None

    def __post_init__(self) -> None:
        if self.group not in (*PERCEPTION, "recall"):
            raise ValueError(f"no cells of group {self.group}: its answers depend on the whole past")

    def episode(self, seed: int, split: Split, size: int) -> tuple[np.ndarray, Question]:
        """Frames uint8 [frames, size, size, 3] and the question asked after the last of them."""
        if self.group == "recall":
            play = recall(seed, split, Recall(self.frames, self.cards, self.age), size=size)
            episode = play.episode()
            return episode.frames, episode.questions[0]
        return self._asked_last(seed, split, size)

    def _asked_last(self, seed: int, split: Split, size: int) -> tuple[np.ndarray, Question]:
        """An episode twice as long, cut after a question that comes late enough for `frames` frames before it."""
        twice = {"frames": 2 * self.frames, "questions": 2, "groups": (self.group,), "size": size}
        for attempt in range(MOST_TRIES):
            made = sample(seed * MOST_TRIES + attempt, split, **twice)
            for question in made.questions:
                start, stop = question.frame + 1 - self.frames, question.frame + 1
                if start >= 0 and question.age < self.frames:
                    return made.frames[start:stop], question
        raise InfiniteVLError(f"no question of group {self.group} in {MOST_TRIES} episodes of {self.frames} frames")


class Episodes(Dataset):
    """The first `count` episodes of a cell."""

    def __init__(self, cell: Cell, count: int, split: Split, size: int) -> None:
        self.cell, self.count, self.size = cell, count, size
        self.split: Split = split

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Tensor, Question]:
        frames, question = self.cell.episode(index, self.split, self.size)
        return torch.from_numpy(np.ascontiguousarray(frames)), question


def batches(episodes: Episodes, rows: int, workers: int) -> Iterator[tuple[Tensor, list[Question]]]:
    """Frames uint8 [B, frames, size, size, 3] and B questions at a time."""
    items = iter(DataLoader(episodes, batch_size=None, num_workers=workers))
    while group := list(islice(items, rows)):
        yield torch.stack([frames for frames, _ in group]), [question for _, question in group]
