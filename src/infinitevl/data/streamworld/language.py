"""Questions that need no picture, so that language stays alive: copy, order, small sums, instructions."""

from infinitevl.data.streamworld.truths import Context, Truth
from infinitevl.data.streamworld.vocabulary import WORDS, draw_word

ORDINALS = ("first", "second", "third")


def copy(at: Context) -> Truth:
    word = draw_word(at.rng)
    return Truth(word, 1 / len(WORDS), {"word": word})


def sort(at: Context) -> Truth:
    numbers = [int(n) for n in at.rng.choice(90, 3, replace=False) + 10]
    return Truth(_join(sorted(numbers)), 1 / 6, {"list": _join(numbers)})


def total(at: Context) -> Truth:
    a, b = (int(n) for n in at.rng.integers(1, 50, 2))
    return Truth(str(a + b), 1 / 49, {"a": str(a), "b": str(b)})


def backwards(at: Context) -> Truth:
    words = _words(at)
    return Truth(_join(words[::-1]), 1 / 6, {"list": _join(words)})


def pick(at: Context) -> Truth:
    words, place = _words(at), int(at.rng.integers(3))
    return Truth(words[place], 1 / 3, {"list": _join(words), "place": ORDINALS[place]})


def larger(at: Context) -> Truth:
    a, b = (int(n) for n in at.rng.choice(990, 2, replace=False) + 10)
    return Truth(str(max(a, b)), 1 / 2, {"a": str(a), "b": str(b)})


def repeat(at: Context) -> Truth:
    word, times = draw_word(at.rng), int(at.rng.integers(2, 5))
    return Truth(_join([word] * times), 1 / (3 * len(WORDS)), {"word": word, "times": str(times)})


def _words(at: Context) -> list[str]:
    return [WORDS[i] for i in at.rng.choice(len(WORDS), 3, replace=False)]


def _join(items: list[str] | list[int]) -> str:
    return " ".join(str(item) for item in items)
