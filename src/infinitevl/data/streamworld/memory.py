"""Questions about what is gone: facts of cards and signs (recall), and their order and number (order)."""

import math
from collections.abc import Sequence

from infinitevl.data.streamworld.log import CardFact, SignFact
from infinitevl.data.streamworld.perception import name
from infinitevl.data.streamworld.truths import Context, Truth
from infinitevl.data.streamworld.vocabulary import (
    HELD_OUT_PAIRS,
    Value,
    chance_of,
    is_number,
    pairs,
)

MOST_COUNTED = 12  # of scenes and cards: more nobody is asked to count
COUNT_CHANCE = 0.4  # share of the commonest number, as measured in samples of 64 frames; less in longer ones


def card(at: Context) -> Truth | None:
    """The value of a key that was shown once."""
    fact = _of_some_age(at, [fact for fact in _gone(at) if fact.showings == 1])
    return fact and value_of(at, fact)


def updated(at: Context) -> Truth | None:
    """The newest value of a key that was shown more than once."""
    fact = _of_some_age(at, [fact for fact in _gone(at) if fact.showings > 1])
    return fact and value_of(at, fact)


def card_key(at: Context) -> Truth | None:
    """The key of a value that one key alone was ever bound to."""
    fact = _of_some_age(at, [fact for fact in _gone(at) if len(at.log.keys_of[fact.value]) == 1])
    if fact is None:
        return None
    fields = {"sort": _sort(fact.value), "value": fact.value}
    return _of_card(at, fact, name(fact.key), 1 / len(pairs(at.split)), fields, len(at.log.cards) - 1)


def first_card(at: Context) -> Truth | None:
    fact = at.log.first_card
    return value_of(at, fact) if fact and fact.last < at.index else None


def last_card(at: Context) -> Truth | None:
    fact = at.log.last_card
    return value_of(at, fact) if fact and fact.last < at.index else None


def first_sign(at: Context) -> Truth | None:
    fact = at.log.first_sign
    return _sign(at, fact) if fact and fact.last < at.index else None


def previous_sign(at: Context) -> Truth | None:
    fact = at.log.sign_before()
    return _sign(at, fact) if fact else None


def first(at: Context) -> Truth | None:
    """Which of two cards, each shown once, came first."""
    two = _two(at, [fact for fact in _gone(at) if fact.showings == 1])
    return _compared(at, two, min(two, key=lambda fact: fact.start)) if two else None


def later(at: Context) -> Truth | None:
    """Which of two cards was shown more recently."""
    two = _two(at, _gone(at))
    return _compared(at, two, max(two, key=lambda fact: fact.start)) if two else None


def scenes(at: Context) -> Truth | None:
    number = at.log.scenes
    if number > MOST_COUNTED:
        return None
    return Truth(str(number), COUNT_CHANCE, age=at.index, facts=at.log.card_count)


def cards(at: Context) -> Truth | None:
    number, oldest = at.log.card_count, at.log.first_card
    if number > MOST_COUNTED:
        return None
    age = at.index - oldest.last if oldest else at.index
    return Truth(str(number), COUNT_CHANCE, age=age, facts=max(0, number - 1))


def appeared(at: Context) -> Truth | None:
    """Whether a coloured shape, on a card or elsewhere, was ever there; as often yes as no."""
    seen = {**at.log.sighted, **{key: fact.last for key, fact in at.log.cards.items()}}
    never = [pair for pair in pairs(at.split) if pair not in at.log.present]
    if not seen or not never:
        return None
    yes = at.coin()
    options = list(seen) if yes else never
    pair = options[at.rng.integers(len(options))]
    last = max(seen[pair], at.log.sighted.get(pair, 0)) if yes else 0
    thing = f"{'an' if pair[1] == 'orange' else 'a'} {name(pair)}"
    held_out = pair in HELD_OUT_PAIRS
    return Truth("yes" if yes else "no", 1 / 2, {"thing": thing}, at.index - last, held_out=held_out)


def value_of(at: Context, fact: CardFact) -> Truth:
    """The truth about the value of a card that was shown."""
    sort = _sort(fact.value)
    rivals = {other.value for other in at.log.cards.values() if _sort(other.value) == sort} - {fact.value}
    fields = {"sort": sort, "key": name(fact.key)}
    return _of_card(at, fact, fact.value, chance_of(fact.value), fields, len(rivals))


def _of_card(
    at: Context,
    fact: CardFact,
    answer: str,
    chance: float,
    fields: dict[str, str],
    rivals: int,
) -> Truth:
    since, held_out = at.log.card_count - fact.number, fact.key in HELD_OUT_PAIRS
    return Truth(answer, chance, fields, at.index - fact.last, since, rivals, held_out)


def _sign(at: Context, fact: SignFact) -> Truth:
    lines = fact.sign.lines
    line = lines[at.rng.integers(len(lines))]
    held_out = fact.sign.held_out and not is_number(line)
    age, facts = at.index - fact.last, at.log.sign_count - fact.number
    fields = {"sort": _sort(line)}
    return Truth(line, chance_of(line), fields, age, facts, at.log.sign_count - 1, held_out)


def _sort(value: Value) -> str:
    return "number" if is_number(value) else "word"


def _gone(at: Context) -> list[CardFact]:
    """The newest card of every key, without the one that is shown now."""
    return [fact for fact in at.log.cards.values() if fact.last < at.index]


def _of_some_age(at: Context, facts: Sequence[CardFact]) -> CardFact | None:
    """One of the facts, such that short and long ages are as likely on a logarithmic scale."""
    if not facts:
        return None
    wanted = at.rng.random() * math.log(at.index + 1)
    return min(facts, key=lambda fact: abs(math.log(at.index - fact.last) - wanted))


def _two(at: Context, facts: Sequence[CardFact]) -> list[CardFact] | None:
    return [facts[i] for i in at.rng.permutation(len(facts))[:2]] if len(facts) > 1 else None


def _compared(at: Context, two: list[CardFact], answer: CardFact) -> Truth:
    oldest = min(two, key=lambda fact: fact.last)
    fields = {"one": name(two[0].key), "other": name(two[1].key)}
    held_out = any(fact.key in HELD_OUT_PAIRS for fact in two)
    since = at.log.card_count - oldest.number
    return Truth(name(answer.key), 1 / 2, fields, at.index - oldest.last, since, 1, held_out)
