"""The world: the same frames from the same seed, and nothing of the test split in training."""

import subprocess
import sys

import numpy as np
import pytest

from infinitevl.data.streamworld import SPLITS, World
from infinitevl.data.streamworld.cards import Card, endless, listed
from infinitevl.data.streamworld.draw import MARGIN, UNIT, sprite
from infinitevl.data.streamworld.glyphs import FACES, text_mask
from infinitevl.data.streamworld.vocabulary import (
    COLOURS,
    HELD_OUT_PAIRS,
    POSITIONS,
    SHAPES,
    WORDS,
    draw_number,
    pairs,
    word_held_out,
    world_number,
)
from infinitevl.errors import InfiniteVLError


def stacked(world: World, start: int, stop: int) -> np.ndarray:
    return np.stack(list(world.frames(start, stop)))


@pytest.mark.parametrize("size", [112, 224])
def test_frames_are_the_same_however_they_are_asked_for(size: int) -> None:
    batch = stacked(World(7, "train", size=size), 0, 90)
    assert batch.dtype == np.uint8 and batch.shape == (90, size, size, 3)
    out = np.empty((size, size, 3), np.uint8)
    world = World(7, "train", size=size)
    for index in (89, 3, 40, 41, 0):  # back and forth, into a given array
        assert world.frame(index, out) is out
        assert np.array_equal(out, batch[index])
    assert np.array_equal(stacked(World(7, "train", size=size), 60, 90), batch[60:])


def test_other_seeds_and_other_splits_are_other_worlds() -> None:
    clips = [stacked(World(seed, split), 0, 3) for seed in (0, 1) for split in SPLITS]
    for i, clip in enumerate(clips):
        assert all(not np.array_equal(clip, other) for other in clips[:i])
    numbers = [world_number(seed, split) for seed in range(1000) for split in SPLITS]
    assert len(set(numbers)) == len(numbers)


def test_what_happens_does_not_depend_on_the_size() -> None:
    small, large = World(3, "test"), World(3, "test", size=224)
    for index in range(0, 200, 7):
        assert small.moment(index) == large.moment(index)


def test_pixels_never_repeat_and_noise_never_wraps() -> None:
    world = World(5, "train", scene_frames=(200, 200), cards=listed(()))
    frames = stacked(world, 0, 60)
    still = [frame.tobytes() for frame in frames]
    assert len(set(still)) == len(still)
    ground = world._paint(world.scene(0))[0].astype(int)
    bare = np.abs(frames.astype(int) - ground).max(axis=-1)
    assert np.median(bare) <= MARGIN  # most of a frame is background


@pytest.mark.parametrize("split", ["train", "validation"])
def test_held_out_pairs_are_shown_in_test_only(split: str) -> None:
    shown, held_out_signs = shown_in(split)
    assert not shown & HELD_OUT_PAIRS and not held_out_signs
    shown, held_out_signs = shown_in("test")
    assert shown & HELD_OUT_PAIRS and held_out_signs


def shown_in(split: str) -> tuple[set, int]:
    """All pairs on cards and in scenes of a long stretch, and the number of held-out signs."""
    world, index, shown, signs = World(11, split), 0, set(), 0
    plan = endless(11, split, 16, (2, 6))
    while index < 8000:
        scene = world.scene(index)
        shown |= {thing.pair for thing in scene.things}
        signs += scene.sign is not None and scene.sign.held_out
        index = scene.stop
    shown |= {card.key for card in map(plan, range(8000)) if card}
    return shown, signs


def test_every_shape_colour_and_word_is_known_from_training() -> None:
    assert {shape for shape, _ in pairs("train")} == set(SHAPES)
    assert {colour for _, colour in pairs("train")} == set(COLOURS)
    assert len(HELD_OUT_PAIRS) == 8 and len(SHAPES) >= 8 and len(COLOURS) >= 8
    assert all(any(not word_held_out(word, place) for place in POSITIONS) for word in WORDS)
    assert len(set(WORDS)) == len(WORDS) >= 300 and all(3 <= len(word) <= 5 for word in WORDS)


def test_numbers_are_as_often_of_each_length() -> None:
    rng = np.random.default_rng(0)
    lengths = np.bincount([len(draw_number(rng)) for _ in range(3000)])
    assert list(lengths[:2]) == [0, 0] and all(900 < times < 1100 for times in lengths[2:])


def test_signs_are_whole_in_their_corner_and_cards_never_cover_them() -> None:
    for seed in range(150):
        world = World(seed, "train")
        sign, card = world.scene(0).sign, next(c for c in map(world.card, range(40)) if c)
        left, top, width, height = card.box
        assert left >= 0 and left + width <= UNIT and top >= 36 and top + height <= 76
        if sign:
            left, top, width, height = sign.box
            assert left >= 0 and left + width <= UNIT
            assert (top >= 0 and top + height <= 36) or (top >= 76 and top + height <= UNIT)
            row, column = sign.position.split()
            assert (row == "top") == (top < 56) and (column == "left") == (left + width / 2 < 56)


def test_every_text_has_high_enough_ink_in_every_face() -> None:
    for face in FACES:
        masks = [text_mask(text, face, 10) for text in (*WORDS[::10], "0123456789")]
        assert all(9 <= mask.shape[0] <= 13 and mask.max() > 200 for mask in masks)
        assert len({mask.tobytes() for mask in masks}) == len(masks)


def test_shapes_differ_and_colours_keep_their_margin() -> None:
    masks = {shape: sprite(shape, "red", 14).mask for shape in SHAPES}
    for shape, mask in masks.items():
        others = [other for name, other in masks.items() if name != shape]
        assert min(np.count_nonzero(mask ^ other) for other in others) >= 20
    for colour in COLOURS:
        rgb = sprite("star", colour, 22).rgb
        assert rgb.min() >= MARGIN and rgb.max() <= 255 - MARGIN


def test_endless_cards_are_the_same_from_any_side() -> None:
    forth, back = endless(4, "train", 16, (2, 6)), endless(4, "train", 16, (2, 6))
    cards = [forth(index) for index in range(160)]
    assert cards == [back(index) for index in reversed(range(160))][::-1]
    assert all(2 <= cards.count(card) <= 6 for card in cards if card)
    assert len({card.start for card in cards if card}) == 10


def test_in_memory_it_needs_neither_a_video_library_nor_torch() -> None:
    code = "import sys; sys.modules.update(av=None, torch=None); from infinitevl.data import streamworld"
    ask = "assert streamworld.sample(0, 'train').questions"
    subprocess.run([sys.executable, "-c", f"{code}; {ask}"], check=True)


def test_mistakes_are_told_in_one_line() -> None:
    for wrong in (
        lambda: World(0, "training"),
        lambda: World(-1, "train"),
        lambda: World(0, "train", size=100),
        lambda: World(0, "train", size=84),
        lambda: World(0, "train", scene_frames=(5, 4)),
        lambda: endless(0, "train", 6, (2, 6)),
        lambda: listed([a_card(4, 8), a_card(7, 9)]),
    ):
        with pytest.raises(InfiniteVLError):
            wrong()


def a_card(start: int, stop: int) -> Card:
    return Card(start, stop, ("star", "red"), "lamp", None, (1, 40, 60, 36))  # type: ignore[arg-type]
