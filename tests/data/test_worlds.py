"""StreamWorld as training data."""

import pickle
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from torch.utils.data import DataLoader

from infinitevl import load
from infinitevl.data import worlds
from infinitevl.data.encode import Encoder
from infinitevl.data.packing import Batch
from infinitevl.data.sample import BadSample
from infinitevl.data.streamworld import Episode
from infinitevl.data.streamworld.cards import Card
from infinitevl.data.worlds import MEMORY, VISUAL, Part, WorldBatches, conversation, world_sample
from infinitevl.errors import InfiniteVLError
from infinitevl.model.random_model import random_model
from infinitevl.train.recipes import BINDINGS, CARDS, EVERYTHING, PAIRS, TESTS

SIZE = 112  # the encoder makes 56 of it, 4 tokens a frame
PARTS = (
    Part(0.5, frames=(1, 4)),
    Part(0.2, frames=(16, 24), groups=(*VISUAL, *MEMORY)),
    Part(0.2, "test", frames=(8, 24), questions=2),
    Part(0.1, "text"),
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


@pytest.fixture(scope="module")
def bindings() -> list[Episode]:
    """Of the part of `nano` that teaches them."""
    with pytest.MonkeyPatch.context() as patch:
        kept = keep(patch, "episode")
        for seed in range(300):
            world_sample(BINDINGS, np.random.default_rng(seed), SIZE)
    return kept


def keep(patch: pytest.MonkeyPatch, name: str) -> list[Episode]:
    """What a maker of episodes makes from now on."""
    make, kept = getattr(worlds, name), list[Episode]()

    def spy(*rest: Any, **options: Any) -> Episode:
        kept.append(make(*rest, **options))
        return kept[-1]

    patch.setattr(worlds, name, spy)
    return kept


def asked_places(made: Episode) -> list[int]:
    """Where in the order of showing the cards stand that are asked about."""
    names = [" ".join(card.key[::-1]) for card in made.cards]
    return [next(i for i, name in enumerate(names) if name in question.question) for question in made.questions]


def test_every_card_of_a_binding_is_asked_about_once(bindings: list[Episode]):
    for made in bindings:
        places = asked_places(made)
        assert sorted(places) == list(range(len(made.cards)))
        assert [made.cards[place].value for place in places] == [question.answer for question in made.questions]
        assert len({card.key for card in made.cards}) == len({card.value for card in made.cards}) == len(made.cards)
    cards = [len(made.cards) for made in bindings]
    assert set(cards) == set(range(1, 11)) and np.mean(np.array(cards) > 1) > 0.9


def test_only_the_key_tells_which_value_is_asked_for(bindings: list[Episode]):
    """Not its sort, nor when its card was shown, nor where, nor the value itself."""
    several = [made for made in bindings if len(made.cards) > 1]
    for made in several:
        assert len({card.value.isdigit() for card in made.cards}) == 1
    for trait in (lambda card: card.start, lambda card: card.box[0], lambda card: card.value):
        ranks = [rank(made, trait) for made in several]
        assert abs(np.mean(ranks) - 0.5) < 0.06 and 0.35 < np.mean([r for r in ranks if r in (0, 1)]) < 0.65


def rank(made: Episode, trait: Callable[[Card], Any]) -> float:
    """Which card is asked about first, in the order of a trait: 0 the first, 1 the last."""
    asked = made.cards[asked_places(made)[0]]
    order = sorted(made.cards, key=trait)
    return order.index(asked) / (len(order) - 1)


def test_keys_are_bound_anew(monkeypatch: pytest.MonkeyPatch):
    """In about half of the tests that have cards enough, and then the newest value is right."""
    kept, rebound = keep(monkeypatch, "episode"), list[bool]()
    for seed in range(60):
        world_sample(TESTS, np.random.default_rng(seed), SIZE)
    for made in (made for made in kept if len(made.cards) > 2):
        first, keys = made.questions[0], [card.key for card in made.cards]
        rebound.append(len(set(keys)) < len(keys))
        if rebound[-1]:
            (key,) = {key for key in keys if keys.count(key) > 1}
            values = [card.value for card in made.cards if card.key == key]
            assert first.kind == "updated" and " ".join(key[::-1]) in first.question
            assert first.answer == values[-1] != values[0]
    assert 0.3 < np.mean(rebound) < 0.7


def test_pairs_are_two_cards():
    for seed in range(20):
        told = world_sample(PAIRS, np.random.default_rng(seed), SIZE)
        assert len(told.messages) == 4 and told.messages[1] != told.messages[3]


def test_endless_streams_are_asked_together_about_now_and_long_ago(monkeypatch: pytest.MonkeyPatch):
    """After stretches without a word of many lengths, while keys get ever new values."""
    kept = list[Episode]()
    monkeypatch.setattr(worlds, "conversation", lambda made, asked: kept.append(made) or conversation(made, asked))
    part = Part(1, "endless", frames=(300, 400), questions=6, groups=(*VISUAL, "card", "updated"))
    for seed in range(6):
        told = world_sample(part, np.random.default_rng(seed), SIZE)
        assert len(told.messages) == 2 * len(kept[-1].questions)
    assert all(300 <= len(made.frames) <= 400 for made in kept)
    silent = [len(video) for made in kept for video in conversation(made, made.questions).videos]
    assert max(silent) > 100 and min(silent) < 10
    asked = [[q.group for q in made.questions if q.frame == frame] for made in kept for frame in range(400)]
    together = [groups for groups in asked if len(groups) > 1]
    assert len(together) > 10
    assert any(set(groups) & set(VISUAL) and "recall" in groups for groups in together)
    rebound = [len(made.cards) - len({card.key for card in made.cards}) for made in kept]
    assert np.mean(rebound) > 1
    assert len({round(len(made.cards) / len(made.frames), 2) for made in kept}) > 3


def test_a_part_comes_during_its_steps():
    text = Part(1.0, "text", during=(0.5, 1.0))
    parts = (Part(1.0, frames=(1, 2), during=(0.0, 0.5)), text, Part(0.2, frames=(1, 2), groups=("read",)))
    made = world(parts=parts)
    chances = [made._chances(step).round(3).tolist() for step in range(4)]
    assert chances == [[0.833, 0, 0.167]] * 2 + [[0, 0.833, 0.167]] * 2
    alternating = world(parts=parts[:2])
    assert [bool(alternating[step].frames) for step in range(4)] == [True, True, False, False]


def test_cards_are_read_at_a_glance(monkeypatch: pytest.MonkeyPatch):
    kept = keep(monkeypatch, "sample")
    for seed in range(40):
        world_sample(CARDS, np.random.default_rng(seed), SIZE)
    kinds = [question.kind for made in kept for question in made.questions]
    assert np.mean([kind in ("whole_card", "card_value", "card_icon") for kind in kinds]) > 0.5


SHARES = (28, 15, 28, 25, 25, 6, 12, 2)  # percent of the tokens; pairs come before the other bindings


@pytest.mark.parametrize(("part", "share"), tuple(zip(EVERYTHING, SHARES, strict=True)))
def test_the_shares_of_the_mixture(part: Part, share: int):
    """A weight is a share over the tokens of an episode."""
    model = load()
    encoder = Encoder(model.processor, model.config, max_tokens=1920, min_pixels=784, max_pixels=SIZE**2)
    rng, lengths = np.random.default_rng(0), list[int]()
    while len(lengths) < 80:
        with suppress(BadSample):
            lengths.append(len(encoder(world_sample(part, rng, SIZE))))
    assert part.weight * np.mean(lengths) == pytest.approx(share, rel=0.15)
