"""What StreamWorld can show and say, what the test split keeps to itself, and where randomness comes from."""

import zlib
from functools import cache
from itertools import product
from typing import Literal

import numpy as np

from infinitevl.errors import InfiniteVLError

Split = Literal["train", "validation", "test"]
Pair = tuple[str, str]  # (shape, colour): of an object, and the key of a card
Value = str  # what a card binds to a key: a lower-case word, or a number of 2 to 4 digits

SPLITS: tuple[Split, ...] = ("train", "validation", "test")
SHAPES = ("circle", "square", "triangle", "diamond", "star", "heart", "cross", "moon")
COLOURS = {
    "red": (214, 32, 36),
    "orange": (235, 128, 20),
    "yellow": (235, 222, 40),
    "green": (30, 150, 48),
    "cyan": (64, 214, 224),
    "blue": (32, 62, 216),
    "purple": (126, 36, 168),
    "pink": (235, 130, 196),
}
POSITIONS = ("top left", "top right", "bottom left", "bottom right")

WORD_LIST = """
able acid aged also area army atom away baby back bake ball band bank barn base bath beach bean bear beat
bell belt bend best bird bite blow boat body bold bolt bone book boot bowl brave bread brick bride brief
bring brush build bulb bunch cabin cable cake calm camp candy cape cargo carry cave chair chalk cheek chess
chief child chin city clay clean clerk cliff clock cloud coach coal coast coat coin cook corn couch cover
crab craft crane crew crisp crow crowd cube curve daily dance dark dawn deal deer desk dirt dish dock doll
door dough draft dream dress drift drill drum duck dust eagle earth east echo edge elbow empty entry equal
event extra fact fair farm feast fence fern fever field film fish flag flame flock flour flute foam fog fold
fork fox frame fresh frog frost fruit game gate ghost giant gift glass glove goat grain grape grass guard
guest habit half hand harp hawk hill hint honey hood hook horn horse hotel house hut ice idea inch iron jade
jam jazz jelly joke judge juice jump kayak keen king kite knee knife knot lake lamp lawn leaf lemon level
lily lime lion list loaf lock loft lucky lunch magic maple march mask maze medal melon metal mild milk mint
model month motor mouse mud music nail nest night noise north oak oasis ocean olive onion opera owl oxen
paint panda park path peach pearl piano pilot pipe plant plum poem pond prize pupil queen quick quiet quilt
radio raft rain ranch reef rice river road robot rock roof rope rose rug sail salt sand scarf seed shade
shelf shirt skate smoke snake soap sofa solid spoon steam storm sugar swan table taxi thumb tiger toast
torch towel tower train truck tulip uncle unit valve van vase voice wagon watch wave wheat wolf wool yacht
yard yeast young zebra zone
"""
WORDS = tuple(WORD_LIST.split())

ALL_PAIRS: tuple[Pair, ...] = tuple(product(SHAPES, COLOURS))
HELD_OUT_PAIRS = frozenset((shape, tuple(COLOURS)[(3 * i + 1) % 8]) for i, shape in enumerate(SHAPES))
BEST_NUMBER_GUESS = 1 / 270  # two digits are as likely as three or four, and there are ninety of them


@cache
def pairs(split: Split) -> tuple[Pair, ...]:
    """The (shape, colour) pairs that may be shown: all in test, elsewhere those that are not held out."""
    return tuple(pair for pair in ALL_PAIRS if split == "test" or pair not in HELD_OUT_PAIRS)


def word_held_out(word: str, position: str) -> bool:
    """Whether only the test split may show a sign with this word at this position: one pair in eight."""
    return zlib.crc32(f"{word} {position}".encode()) % 8 == 0


def generator(seed: int, split: Split, *tags: int) -> np.random.Generator:
    """Randomness of one purpose (`tags`) in one world; no two splits share any, whatever the seeds."""
    return np.random.default_rng([world_number(seed, split), *tags])


def world_number(seed: int, split: Split) -> int:
    """One integer for each world: the splits take turns on the number line, so they are disjoint."""
    if split not in SPLITS or seed < 0:
        raise InfiniteVLError(f"no world {split!r} {seed}: a split is one of {SPLITS}, a seed is 0 or more")
    return len(SPLITS) * seed + SPLITS.index(split)


def draw_word(rng: np.random.Generator) -> str:
    return WORDS[rng.integers(len(WORDS))]


def draw_number(rng: np.random.Generator) -> str:
    """2, 3 or 4 digits, equally likely, no leading zero; uniform for each length."""
    digits = int(rng.integers(2, 5))
    return str(rng.integers(10 ** (digits - 1), 10**digits))


def is_number(value: Value) -> bool:
    return value.isdigit()


def chance_of(value: Value) -> float:
    """How often the best blind guess of a word, or of a number, is right."""
    return BEST_NUMBER_GUESS if is_number(value) else 1 / len(WORDS)
