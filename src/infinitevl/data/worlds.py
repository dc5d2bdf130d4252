"""StreamWorld as training data: the batch of every step is a function of the recipe and the step alone."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from infinitevl.data.encode import Encoded, Encoder
from infinitevl.data.forking import started
from infinitevl.data.packing import Batch, fill_row, pack
from infinitevl.data.sample import VIDEO_MARK, BadSample, Sample
from infinitevl.data.streamworld.episodes import Episode, clip, episode, sample, stream, text_questions
from infinitevl.data.streamworld.layout import SHORTEST
from infinitevl.data.streamworld.questions import Question
from infinitevl.errors import InfiniteVLError

VISUAL = ("read", "see", "move")
GLANCE = ("describe", "read", "read", "see")  # what one frame shows
MEMORY = ("recall", "order")
MOST_CARDS = 16  # of a test of memory
MOST_REFUSED = 64  # episodes in a row that do not fit

Kind = Literal["sample", "test", "clip", "endless", "text"]


@dataclass(frozen=True)
class Part:
    """One kind of episode in a mixture.

    kind: "sample", with questions on the way; "test", of memory: all questions after the last frame, whose answers the
    key alone tells, since all values are numbers, or all are words; "clip", which ends where its groups have something
    to ask, so that no text parts its frames: movement is seen in frames that follow each other; "endless": cards come
    all the time, keys with ever new values, one in 12 to 64 frames, and `questions` are asked together, after 24 to
    512 frames without a word, again and again; "text": questions alone.
    frames: shortest and longest; questions: per episode; groups: of StreamWorld, for tests and text their own; cards:
    facts to remember in a sample or a test, None for a random number; rebound: in what share of the tests, of three
    cards and more, the key asked about first had another value before.
    during: from which part of the steps to which it comes, 0 the first and 1 the end; what else comes keeps its
    weight.
    """

    weight: float
    kind: Kind = "sample"
    frames: tuple[int, int] = (1, 8)
    questions: int = 4
    groups: tuple[str, ...] = VISUAL
    cards: int | None = None
    rebound: float = 0.0
    during: tuple[float, float] = (0.0, 1.0)


class WorldBatches(Dataset):
    """Batch `step` of a mixture of StreamWorld episodes of the training split."""

    def __init__(
        self, parts: tuple[Part, ...], encoder: Encoder, *, rows: int, tokens: int, steps: int, seed: int, size: int
    ):
        self.parts, self.encoder = parts, encoder
        self.rows, self.tokens, self.steps, self.seed, self.size = rows, tokens, steps, seed, size
        self.rank = 0

    def shard(self, rank: int, world_size: int) -> "WorldBatches":
        """Itself, from now on making only this rank's rows, which depend on the number of ranks."""
        self.rows, self.rank = self.rows // world_size, rank
        return self

    def batches(self, start: int, state: None, workers: int) -> Iterator[tuple[Batch, None]]:
        """From step `start` on; nothing but the step matters, so that there is no state."""
        order, ahead = range(start, self.steps), 4 if workers else None
        loader: Any = DataLoader(
            self, batch_size=None, sampler=order, num_workers=workers, prefetch_factor=ahead,
            pin_memory=torch.cuda.is_available(),
        )  # fmt: skip
        return ((batch, None) for batch in started(loader))

    def __getitem__(self, step: int) -> Batch:
        samples, waiting = self._samples(step), list[Encoded]()
        return pack([fill_row(samples, self.tokens, waiting) for _ in range(self.rows)], self.tokens)

    def _samples(self, step: int) -> Iterator[Encoded]:
        """Without end; episodes that leave nothing to ask, or are too long, are passed over, since there are always
        more."""
        rng = np.random.default_rng((self.seed, step, self.rank))
        chances, refused = self._chances(step), 0
        while refused < MOST_REFUSED:
            part = self.parts[rng.choice(len(self.parts), p=chances)]
            try:
                encoded, refused = self.encoder(world_sample(part, rng, self.size)), 0
            except BadSample as error:
                reason, refused = error, refused + 1
            else:
                yield encoded
        raise InfiniteVLError(f"{refused} episodes in a row do not fit into a batch: {reason}")

    def _chances(self, step: int) -> np.ndarray:
        """Of every part, to be the kind of an episode."""
        done = step / self.steps
        weights = np.array([part.weight * (part.during[0] <= done < part.during[1]) for part in self.parts])
        return weights / weights.sum()


def world_sample(part: Part, rng: np.random.Generator, size: int) -> Sample:
    """A conversation about a new episode of this kind; without a message where it leaves nothing to ask."""
    seed, frames = int(rng.integers(2**48)), int(rng.integers(part.frames[0], part.frames[1] + 1))
    made: Episode
    match part.kind:
        case "text":
            return conversation(None, text_questions(seed, "train", part.questions))
        case "test":
            cards = min(part.cards or int(rng.integers(1, MOST_CARDS + 1)), max(1, frames // (SHORTEST + 1)))
            updated = cards > 2 and bool(rng.random() < part.rebound)
            asked = min(part.questions, cards - updated)
            made = episode(
                seed, "train", frames=frames, cards=cards, updated=updated, asked=asked, alike=True, size=size
            )
        case "clip":
            made = clip(seed, "train", frames=part.frames, questions=part.questions, groups=part.groups, size=size)
        case "endless":
            asked = {"every": _drawn(rng, 24, 512), "questions": part.questions, "groups": part.groups}
            made = stream(seed, "train", frames=frames, card_every=_drawn(rng, 12, 64), size=size, **asked).episode()
        case "sample":
            made = sample(
                seed, "train", frames=frames, questions=part.questions, groups=part.groups, cards=part.cards, size=size
            )
    return conversation(made, made.questions)


def _drawn(rng: np.random.Generator, least: int, most: int) -> int:
    """Every order of magnitude as likely."""
    return round(least * (most / least) ** rng.random())


def conversation(made: Episode | None, questions: Sequence[Question]) -> Sample:
    """The episode as a stream that is asked on the way and remembers what it said.

    What is shown after the last question is left out. Without questions it is a sample that `check` refuses.
    """
    messages, videos, start = [], [], 0
    for question in questions:
        mark = ""
        if made is not None and question.frame >= start:
            videos.append(made.frames[start : question.frame + 1])
            start, mark = question.frame + 1, VIDEO_MARK
        messages.append({"role": "user", "content": mark + question.question})
        messages.append({"role": "assistant", "content": question.answer})
    name, fps = ("StreamWorld text", 1.0) if made is None else (f"StreamWorld {made.seed}", made.fps)
    return Sample(messages, videos=videos, fps=fps, name=name)
