"""The kinds of questions, by group, and how one is asked."""

from collections.abc import Callable
from dataclasses import dataclass

from infinitevl.data.streamworld import captions, language, memory, perception
from infinitevl.data.streamworld.phrases import PHRASES
from infinitevl.data.streamworld.truths import Context, Truth

KINDS: dict[str, dict[str, Callable[[Context], Truth | None]]] = {
    "read": {
        "sign_word": perception.sign_word,
        "sign_number": perception.sign_number,
        "card_value": perception.card_value,
        "card_icon": perception.card_icon,
    },
    "see": {
        "colour": perception.colour,
        "shape": perception.shape,
        "beside": perception.beside,
        "count": perception.count,
        "extreme": perception.extreme,
        "place": perception.place,
        "sign_place": perception.sign_place,
    },
    "move": {
        "direction": perception.direction,
        "moving": perception.moving,
        "left": perception.left,
        "entered": perception.entered,
    },
    "recall": {
        "card": memory.card,
        "updated": memory.updated,
        "card_key": memory.card_key,
        "first_card": memory.first_card,
        "last_card": memory.last_card,
        "first_sign": memory.first_sign,
        "previous_sign": memory.previous_sign,
    },
    "order": {
        "first": memory.first,
        "later": memory.later,
        "scenes": memory.scenes,
        "cards": memory.cards,
        "appeared": memory.appeared,
    },
    "describe": {
        "all_things": captions.things,
        "all_ways": captions.ways,
        "all_spots": captions.spots,
        "whole_sign": captions.sign,
        "whole_card": captions.card,
    },
    "text": {
        "copy": language.copy,
        "sort": language.sort,
        "total": language.total,
        "backwards": language.backwards,
        "pick": language.pick,
        "larger": language.larger,
        "repeat": language.repeat,
    },
}
GROUPS = tuple(KINDS)
GROUP_OF = {kind: group for group, kinds in KINDS.items() for kind in kinds}


def kinds_of(name: str) -> list[str]:
    """The kinds of a group; a kind is the only one of its own."""
    return [name] if name in GROUP_OF else list(KINDS[name])


@dataclass(frozen=True, slots=True)
class Question:
    """One question with its exact answer, asked right after frame `frame`. See Truth for the other fields."""

    group: str
    kind: str
    question: str
    answer: str
    frame: int
    time: float  # seconds
    age: int  # frames
    age_tokens: int  # the same in vision tokens
    facts: int
    rivals: int
    chance: float
    held_out: bool


def ask(kind: str, at: Context, fps: float) -> Question | None:
    """A question of this kind at the frame that the log observed last; None if none has a clear answer."""
    truth = KINDS[GROUP_OF[kind]][kind](at)
    return truth and put(kind, truth, at, fps)


def put(kind: str, truth: Truth, at: Context, fps: float) -> Question:
    """The question with this truth, in one of its phrasings."""
    phrases = PHRASES[kind]
    text = phrases[at.rng.integers(len(phrases))].format(**truth.fields)
    return Question(
        group=GROUP_OF[kind],
        kind=kind,
        question=text,
        answer=truth.answer,
        frame=at.index,
        time=max(0, at.index) / fps,
        age=truth.age,
        age_tokens=truth.age * at.world.tokens,
        facts=truth.facts,
        rivals=truth.rivals,
        chance=truth.chance,
        held_out=truth.held_out,
    )
