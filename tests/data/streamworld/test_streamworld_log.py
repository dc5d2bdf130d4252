"""Age, facts in between and rivals, exactly, on a log made by hand."""

from dataclasses import dataclass

import numpy as np
import pytest

from infinitevl.data.streamworld import memory
from infinitevl.data.streamworld.cards import Card, listed
from infinitevl.data.streamworld.draw import Style
from infinitevl.data.streamworld.log import Log
from infinitevl.data.streamworld.scene import Scene, Sign, Thing
from infinitevl.data.streamworld.truths import Context, Truth
from infinitevl.data.streamworld.world import Moment, Sight

STYLE = Style("plain", 12, (20, 20, 20), (235, 235, 235))
STAR, MOON, HEART = ("star", "red"), ("moon", "blue"), ("heart", "pink")
CARDS = (
    Card(2, 5, STAR, "482", STYLE, (1, 36, 60, 36)),
    Card(8, 10, MOON, "lamp", STYLE, (1, 36, 60, 36)),
    Card(12, 14, STAR, "77", STYLE, (1, 36, 60, 36)),
    Card(16, 18, HEART, "905", STYLE, (1, 36, 60, 36)),
)
CROSS = Thing("cross", "cyan", 1, "still", (50.0, 50.0), 0, 1.0)


def sign(word: str | None, number: str | None) -> Sign:
    return Sign(word, number, "top left", STYLE, (1, 1, 50, 20))


SCENES = (
    Scene(0, 0, 6, (CROSS,), sign("barn", None)),
    Scene(1, 6, 11, (), None),
    Scene(2, 11, 15, (), sign(None, "31")),
    Scene(3, 15, 30, (), sign("wolf", None)),
)


@dataclass
class HandMade:
    """Stands for a world: the log is all that questions about the past look at."""

    split: str = "train"
    tokens: int = 16


def seen(index: int) -> Context:
    """After frame `index` of the world above. The cross is clearly visible in frames 0 to 3."""
    log, plan = Log(), listed(CARDS)
    for i in range(index + 1):
        scene = next(scene for scene in SCENES if i < scene.stop)
        sights = tuple(Sight(thing, 50, 50, 1.0 if i <= 3 else 0.5, False) for thing in scene.things)
        log.observe(Moment(i, scene, plan(i), sights))
    return Context(HandMade(), log, np.random.default_rng(index))  # type: ignore[arg-type]


def told(truth: Truth | None) -> tuple[str, int, int, int]:
    assert truth
    return truth.answer, truth.age, truth.facts, truth.rivals


def test_values_of_cards() -> None:
    at = seen(20)
    assert told(memory.value_of(at, at.log.cards[STAR])) == ("77", 7, 1, 1)  # rival: 905
    assert told(memory.value_of(at, at.log.cards[MOON])) == ("lamp", 11, 2, 0)
    assert told(memory.value_of(at, at.log.cards[HEART])) == ("905", 3, 0, 1)
    assert told(memory.updated(at)) == ("77", 7, 1, 1)
    assert told(memory.first_card(at)) == ("482", 16, 3, 2)
    assert told(memory.last_card(at)) == ("905", 3, 0, 1)


def test_a_key_shown_again_is_asked_about_as_updated_only() -> None:
    assert told(memory.card(seen(7))) == ("482", 3, 0, 0)
    assert memory.updated(seen(7)) is None
    at = seen(20)
    answers = {told(memory.card(at))[0] for _ in range(50)}
    assert answers == {"lamp", "905"}
    keys = {told(memory.card_key(at))[0] for _ in range(50)}
    assert keys == {"blue moon", "red star", "pink heart"}


def test_a_card_is_not_recalled_while_it_is_shown() -> None:
    at = seen(3)
    assert memory.card(at) is memory.first_card(at) is memory.last_card(at) is memory.card_key(at) is None
    assert told(memory.card(seen(9)))[0] == "482"


def test_signs() -> None:
    assert memory.first_sign(seen(5)) is None and memory.previous_sign(seen(5)) is None
    assert told(memory.first_sign(seen(20))) == ("barn", 15, 2, 2)
    assert told(memory.previous_sign(seen(9))) == ("barn", 4, 0, 0)
    assert memory.previous_sign(seen(12)) is None  # the scene before had no sign
    assert told(memory.previous_sign(seen(20))) == ("31", 6, 1, 2)


def test_order_and_number() -> None:
    at = seen(20)
    assert told(memory.scenes(at)) == ("4", 20, 4, 0)
    assert told(memory.cards(at)) == ("4", 16, 3, 0)
    assert told(memory.cards(seen(1))) == ("0", 1, 0, 0)
    assert told(memory.cards(seen(2))) == ("1", 0, 0, 0)
    assert told(memory.first(at)) == ("blue moon", 11, 2, 1)  # the star came twice
    for _ in range(20):
        truth = memory.later(at)
        assert truth
        assert truth.answer == ("pink heart" if "pink heart" in truth.fields.values() else "red star")


def test_what_appeared() -> None:
    at, said = seen(20), {}
    for _ in range(300):
        truth = memory.appeared(at)
        assert truth
        said[truth.fields["thing"]] = (truth.answer, truth.age)
    assert {k: v for k, v in said.items() if v[0] == "yes"} == {
        "a cyan cross": ("yes", 17),
        "a red star": ("yes", 7),
        "a blue moon": ("yes", 11),
        "a pink heart": ("yes", 3),
    }
    assert all(age == 20 for answer, age in said.values() if answer == "no")
    assert not any(thing.startswith("a orange") for thing in said)


def test_frames_come_in_order() -> None:
    with pytest.raises(ValueError, match="frame 2 after frame -1"):
        Log().observe(Moment(2, SCENES[0], None, ()))
