"""Tests of memory: exactly so many cards, and a question of exactly the age that was asked for."""

import numpy as np
import pytest

from infinitevl.data.streamworld import Recall, episode, recall
from infinitevl.errors import InfiniteVLError


@pytest.mark.parametrize("seed", range(6))
def test_cards_age_and_facts_between_are_exact(seed: int) -> None:
    made = episode(seed, "test", frames=120, cards=8, age=50, between=3)
    (question,) = made.questions
    target = made.cards[4]
    assert len(made.cards) == len({c.key for c in made.cards}) == len({c.value for c in made.cards}) == 8
    assert (question.kind, question.frame, question.age, question.facts) == ("card", 119, 50, 3)
    assert question.answer == target.value and target.stop - 1 == 119 - 50
    assert " ".join(target.key[::-1]) in question.question
    assert made.moments[-1].card is None


@pytest.mark.parametrize("seed", range(6))
def test_an_updated_fact_has_an_older_value_of_the_same_sort(seed: int) -> None:
    made = episode(seed, "train", frames=90, cards=6, updated=True)
    (question,) = made.questions
    named = [c for c in made.cards if " ".join(c.key[::-1]) in question.question]
    assert question.kind == "updated" and len(named) == 2 and len(made.cards) == 6
    assert question.answer == named[1].value != named[0].value
    assert named[0].value.isdigit() == named[1].value.isdigit()


def test_what_is_not_given_is_random_but_fits() -> None:
    ages, between = set(), set()
    for seed in range(60):
        made = recall(seed, "train", Recall(frames=40, cards=8, age=None if seed % 2 else seed // 2))
        questions = made_questions(made)
        ages.add(questions[0].age)
        between.add(questions[0].facts)
    assert set(range(1, 30)) <= ages and between == set(range(8))


def made_questions(play) -> list:
    return [question for tick in play for question in tick.questions]


def test_several_questions_are_about_different_cards() -> None:
    questions = episode(2, "validation", cards=8, asked=8).questions
    assert len({question.answer for question in questions}) == 8
    assert {question.facts for question in questions} == set(range(8))


@pytest.mark.parametrize("seed", range(8))
def test_of_values_alike_only_the_key_tells_one(seed: int) -> None:
    made = episode(seed, "train", cards=8, asked=8, alike=True)
    assert len({card.key for card in made.cards}) == len({card.value for card in made.cards}) == 8
    assert len({card.value.isdigit() for card in made.cards}) == 1
    assert {question.rivals for question in made.questions} == {7}


def test_lazily_the_same_as_at_once() -> None:
    ticks = list(recall(5, "test", Recall(age=20), size=224))
    made = recall(5, "test", Recall(age=20), size=224).episode()
    assert np.array_equal(np.stack([tick.frame for tick in ticks]), made.frames)
    assert ticks[-1].questions == made.questions and not any(tick.questions for tick in ticks[:-1])
    assert made.questions[0].age_tokens == 20 * 64


def test_age_zero_is_reading() -> None:
    made = episode(1, "train", age=0)
    assert made.questions[0].age == 0 and made.moments[-1].card == made.cards[-1]


@pytest.mark.parametrize(
    "test",
    [
        Recall(frames=10, cards=8),
        Recall(cards=0),
        Recall(cards=60, frames=999),
        Recall(age=64),
        Recall(age=63),
        Recall(age=10, between=5),
        Recall(between=8),
        Recall(between=7, updated=True),
        Recall(cards=1, updated=True),
        Recall(asked=9),
        Recall(asked=0),
        Recall(age=-1),
    ],
)
def test_what_does_not_fit_is_an_error(test: Recall) -> None:
    with pytest.raises(InfiniteVLError):
        recall(0, "train", test)
