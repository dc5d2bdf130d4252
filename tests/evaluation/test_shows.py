"""What is shown and asked: exact truths, exact ages, the same however it is made."""

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
import torch

from infinitevl.data.streamworld.cards import Card
from infinitevl.errors import InfiniteVLError
from infinitevl.evaluation import shows
from infinitevl.evaluation.feeding import Cast, feed
from infinitevl.evaluation.plan import CLIPS, EPISODES
from infinitevl.evaluation.scores import Ask, Cell
from infinitevl.evaluation.shows import Clip, Endless, Facts, Show, Shown

CLIP = Clip(Cell("perception", "see"), 4)
FACTS = Facts(4, (0.5, 1, 3), window=6)
ENDLESS = Endless((64, 256), (1, 2, 5), window=8, asking=48)


@pytest.fixture(scope="module")
def played() -> Callable[[Show, int], list[Shown]]:
    kept: dict[tuple[Show, int], list[Shown]] = {}

    def play(show: Show, seed: int) -> list[Shown]:
        if (show, seed) not in kept:
            kept[show, seed] = list(show.play(seed))
        return kept[show, seed]

    return play


def asked(shown: list[Shown]) -> list[tuple[int, Ask]]:
    return [(index, ask) for index, moment in enumerate(shown) for ask in moment.asks]


@pytest.mark.parametrize("group", [*CLIPS, *EPISODES])
def test_clips(group: str):
    """The evidence is in them, kinds differ, and all of a group come up."""
    count = 1 if group in CLIPS else 3
    clip = Clip(Cell("test", group), CLIPS.get(group, 40), count)
    kinds = set()
    for seed in range(16):
        shown = list(clip.play(seed))
        questions = [ask.question for _, ask in asked(shown)]
        assert len(shown) == clip.length
        assert len(shown[-1].asks) == len(questions) == len({q.kind for q in questions}) == count
        assert all(q.group == group and q.frame == clip.length - 1 and q.age < clip.length for q in questions)
        kinds |= {q.kind for q in questions}
    assert len(kinds) >= 4


def test_clips_are_the_same_again():
    first, again, other = (list(CLIP.play(seed)) for seed in (3, 3, 4))
    assert all(np.array_equal(a.frame, b.frame) and a.asks == b.asks for a, b in zip(first, again, strict=True))
    assert not np.array_equal(first[0].frame, other[0].frame)


def test_a_clip_without_an_answer(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(shows, "MOST_TRIES", 0)
    with pytest.raises(InfiniteVLError, match="in 0 clips of 4 frames"):
        next(CLIP.play(0))


@pytest.mark.parametrize("facts", [1, 4, 9])
def test_cards_of_facts(facts: int):
    """So many keys, a quarter of them bound before to another value of the same sort."""
    cards = Facts(facts, (1,), 4).lay_out(5)
    newest = {card.key: card for card in cards}
    assert (len(newest), len(cards)) == (facts, facts + facts // 4)
    for card in cards:
        if card is not newest[card.key]:
            assert card.stop < newest[card.key].start
            assert card.value != newest[card.key].value
            assert card.value.isdigit() == newest[card.key].value.isdigit()


@pytest.mark.parametrize("seed", range(3))
def test_every_fact_is_asked_about_at_every_age(seed: int, played: Callable):
    shown, newest = played(FACTS, seed), {card.key: card for card in FACTS.lay_out(seed)}
    found = asked(shown)
    assert len(shown) == FACTS.length
    assert len(found) == 4 * 3
    for index, ask in found:
        card = _card_of(ask, list(newest.values()))
        frames = {0.5: 3, 1: 6, 3: 18}[ask.cell.windows or 0]
        assert index == ask.question.frame == card.stop - 1 + frames
        assert (ask.question.age, ask.question.answer) == (frames, card.value)
        assert ask.cell == Cell("memory", "recall", windows=ask.cell.windows, cards=4)
    assert sum(ask.question.kind == "updated" for _, ask in found) == 3
    edges = {index for index, moment in enumerate(shown) if moment.edge}
    assert edges == {index - 5 for index, _ in found if index >= 5}


@pytest.mark.parametrize("seed", range(2))
def test_a_stream_without_end(seed: int, played: Callable):
    """Newest cards at exact ages, before each checkpoint alone, and the frames show what is claimed."""
    shown, found = played(ENDLESS, seed), asked(played(ENDLESS, seed))
    assert len(shown) == 256
    deck = ENDLESS._deck(seed)
    cards = [deck(block) for block in range(16)]
    assert all(a.stop <= b.start for a, b in pairwise(cards))
    assert {card.stop for card in cards} == {ENDLESS._deck(7)(block).stop for block in range(16)}
    assert {ask.cell.windows for _, ask in found} == {1, 2, 5}
    for index, ask in found:
        checkpoint = 64 if index < 64 else 256
        assert checkpoint - 48 <= index < checkpoint
        assert ask.cell.tokens == 16 * checkpoint
        frames = 8 * int(ask.cell.windows or 0)
        before = [card for card in cards if card.start <= index and _card_of(ask, [card], None)]
        assert before[-1].stop - 1 == index - frames
        assert (ask.question.age, ask.question.answer) == (frames, before[-1].value)
        assert (ask.question.kind == "updated") == (len(before) > 1)


@pytest.mark.parametrize("show", [CLIP, FACTS, ENDLESS])
def test_workers_make_the_same(show: Show, played: Callable):
    casts = [Cast(show, range(3)), Cast(CLIP, range(2, 3))]
    device = torch.device("cpu")
    alone, shared = list(feed(casts, 0, device)), list(feed(casts, 2, device))
    assert len(alone) == len(shared) == sum(len(cast.starts()) for cast in casts)
    for (frames, notes), (others, other) in zip(alone, shared, strict=True):
        assert torch.equal(frames, others)
        assert sorted(notes.asks, key=str) == sorted(other.asks, key=str)
        assert sorted(notes.edges) == sorted(other.edges)
    whole = torch.cat([frames for frames, _ in alone[: len(casts[0].starts())]], dim=1)
    for stream in range(3):
        assert np.array_equal(whole[stream].numpy(), np.stack([shown.frame for shown in played(show, stream)]))


def _card_of(ask: Ask, cards: list[Card], default: object = ...) -> Card:
    """The card that a question names."""
    words = ask.question.question.lower()
    return next(
        (card for card in cards if f"{card.key[1]} {card.key[0]}" in words), *([] if default is ... else [default])
    )
