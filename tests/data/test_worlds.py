"""StreamWorld as training data."""

import pickle
from typing import Any

import numpy as np
import pytest
from torch.utils.data import DataLoader

from infinitevl.data import worlds
from infinitevl.data.encode import Encoder
from infinitevl.data.packing import Batch
from infinitevl.data.worlds import MEMORY, VISUAL, Part, WorldBatches, conversation, world_sample
from infinitevl.errors import InfiniteVLError
from infinitevl.model.random_model import random_model

SIZE = 112  # the encoder makes 56 of it, 4 tokens a frame
PARTS = (
    Part(0.5, frames=(1, 4)),
    Part(0.2, frames=(16, 24), groups=(*VISUAL, *MEMORY)),
    Part(0.2, frames=(8, 24), questions=2, at_end=True),
    Part(0.1, groups=("text",)),
)


def world(seed: int = 0, tokens: int = 600, parts: tuple[Part, ...] = PARTS) -> WorldBatches:
    model = random_model(num_hidden_layers=1)
    encoder = Encoder(model.processor, model.config, max_tokens=tokens, min_pixels=784, max_pixels=56 * 56)
    return WorldBatches(parts, encoder, rows=2, tokens=tokens, steps=4, seed=seed, size=SIZE)


def content(batch: Batch) -> bytes:
    values = {name: value for name, value in vars(batch).items() if name != "frames"}
    return pickle.dumps(
        [*(v.numpy().tobytes() for v in values.values()), *(f.numpy().tobytes() for f in batch.frames)]
    )


def test_a_batch_is_a_function_of_its_step():
    """In any order, from another object, made by other processes; each is another."""
    expected = [content(batch) for batch in (world()[step] for step in range(4))]
    assert len(set(expected)) == 4
    assert content(world()[2]) == expected[2]
    for workers in (0, 2):
        loader: Any = DataLoader(world(), batch_size=None, sampler=range(1, 4), num_workers=workers)
        assert [content(batch) for batch in loader] == expected[1:]
    assert content(world(seed=1)[0]) != expected[0]


def test_only_the_training_split(monkeypatch: pytest.MonkeyPatch):
    splits, questions = set(), []

    def spied(make: Any) -> Any:
        def spy(seed: int, split: str, *rest: Any, **options: Any) -> Any:
            made = make(seed, split, *rest, **options)
            splits.add(split)
            questions.extend(made if isinstance(made, list) else made.questions)
            return made

        return spy

    for name in ("sample", "episode", "text_questions"):
        monkeypatch.setattr(worlds, name, spied(getattr(worlds, name)))
    rng = np.random.default_rng(0)
    for part in PARTS * 5:
        world_sample(part, rng, SIZE)
    assert splits == {"train"}
    assert len({question.group for question in questions}) == 6
    assert not any(question.held_out for question in questions)


def test_a_conversation_shows_every_frame_once():
    made = worlds.sample(0, "train", frames=40, questions=6, size=SIZE)
    told = conversation(made, made.questions).check()
    shown = np.concatenate(told.videos)
    assert np.array_equal(shown, made.frames[: len(shown)])
    seen = 0
    for question, asked, answered in zip(made.questions, told.messages[::2], told.messages[1::2], strict=True):
        if asked["content"].startswith("<video>"):
            seen += len(told.videos.pop(0))
        assert seen == question.frame + 1
        assert asked["content"].removeprefix("<video>") == question.question
        assert answered == {"role": "assistant", "content": question.answer}
    assert told.fps == made.fps


def test_text_needs_no_frames():
    told = world_sample(PARTS[-1], np.random.default_rng(0), SIZE).check()
    assert told.videos == []
    assert len(told.messages) == 8


def test_episodes_that_cannot_fit():
    """Those that are too long are passed over, but not for ever."""
    mixed = world(tokens=120, parts=(Part(1, frames=(1, 40), questions=2),))
    assert all(0 < length <= 120 for length in mixed[0].lengths.tolist())
    with pytest.raises(InfiniteVLError, match=r"64 episodes in a row do not fit into a batch: StreamWorld .* tokens"):
        world(tokens=60)[0]


def test_an_episode_without_questions_is_passed_over(monkeypatch: pytest.MonkeyPatch):
    made = iter([worlds.sample(seed, "train", frames=2, questions=seed % 2, size=SIZE) for seed in range(200)])
    monkeypatch.setattr(worlds, "sample", lambda *_, **__: next(made))
    batch = world(parts=PARTS[:1])[0]
    assert (batch.lengths > 200).all()
