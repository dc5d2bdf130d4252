from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from helpers import IMAGE, VIDEO, assert_close, text_ids, tiny_model
from infinitevl.model.modeling import InfiniteVLForConditionalGeneration as Model
from infinitevl.model.positions import PositionRule
from infinitevl.model.rope import frequencies, rotary_table
from infinitevl.ops.rows import rotate

CPU = torch.device("cpu")
SECTIONS = (2, 3, 3)


@pytest.mark.skipif(np.finfo(np.longdouble).nmant < 63, reason="no extended precision here")
@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(-(2**40), 2**40), min_size=3, max_size=3), st.sampled_from([1e4, 1e6]))
def test_angles_are_exact(place: list[int], theta: float):
    """Against 80-bit arithmetic, in which these products are exact."""
    cos, sin = rotary_table(torch.tensor(place).view(3, 1, 1), 16, theta, SECTIONS, torch.float64)
    axis = np.repeat([0, 1, 2], SECTIONS)
    angle = np.array(place, np.longdouble)[axis] * frequencies(16, theta, CPU).numpy().astype(np.longdouble)
    assert np.abs(cos[0, 0, 0].numpy() - np.cos(angle)).max() < 1e-15
    assert np.abs(sin[0, 0, 0].numpy() - np.sin(angle)).max() < 1e-15


def test_sections_take_axes_in_turn():
    """Six sections: frequency i of section s follows axis s mod 3, and no other."""
    sections, positions = (1, 2, 1, 2, 1, 1), torch.randint(1, 500, (3, 1, 4))
    whole = rotary_table(positions, 16, 1e4, sections, torch.float64)[0]
    for axis in range(3):
        moved = positions.clone()
        moved[axis] += 7
        changed = (rotary_table(moved, 16, 1e4, sections, torch.float64)[0] != whole)[0, :, 0].all(0)
        assert changed.tolist() == [s % 3 == axis for s, n in enumerate(sections) for _ in range(n)]


@pytest.mark.parametrize("far", [0, 12_345, 10**9])
def test_rotation(far: int):
    """Keeps lengths, pairs i with i + D / 2, and products depend on differences of positions."""
    q, k = torch.randn(2, 1, 5, 2, 16, dtype=torch.float64).unbind()
    places = torch.randint(0, 100, (3, 1, 5))

    def scores(offset: int) -> Tensor:
        cos, sin = rotary_table(places + offset, 16, 1e4, SECTIONS, torch.float64)
        return torch.einsum("bihd,bjhd->bhij", rotate(q, cos, sin), rotate(k, cos, sin))

    cos, sin = rotary_table(places + far, 16, 1e4, SECTIONS, torch.float64)
    turned = torch.complex(q[..., :8], q[..., 8:]) * torch.complex(cos, sin)
    assert_close(rotate(q, cos, sin), torch.cat([turned.real, turned.imag], -1), 1e-14)
    assert_close(scores(far), scores(0), 1e-13)
    assert (scores(0) - torch.einsum("bihd,bjhd->bhij", q, k)).abs().max() > 1e-2


def test_rule_by_hand():
    """4 text tokens, an image of 1 x 2 x 3 merged patches, 2 text tokens, a video of 2 steps 3 apart, text."""
    rule = PositionRule()
    pieces = [rule.text(4), rule.vision([0], 2, 3), rule.text(2), rule.vision([0, 3], 1, 2), rule.text(2)]
    expected = [
        [0, 1, 2, 3, *[8] * 6, 11, 12, 15, 15, 18, 18, 19, 20],
        [0, 1, 2, 3, 8, 8, 8, 9, 9, 9, 11, 12, 15, 15, 15, 15, 19, 20],
        [0, 1, 2, 3, 8, 9, 10, 8, 9, 10, 11, 12, 15, 16, 15, 16, 19, 20],
    ]
    assert torch.cat(pieces, 1).tolist() == expected


@pytest.fixture(scope="module")
def model() -> Model:
    return tiny_model(["linear_attention"])


def pictures(draw: list[tuple]) -> tuple[Tensor, list, list]:
    """ids, image grids and video grids (in patches) of (text before, is it a video, t, h, w)."""
    ids, grids = [], {IMAGE: [], VIDEO: []}
    for text, video, t, h, w in draw:
        token, steps = (VIDEO, t) if video else (IMAGE, 1)
        grids[token].append((steps, 2 * h, 2 * w))
        ids += [1] * text + [token] * (steps * h * w)
    return torch.tensor([[*ids, 2, 3]]), grids[IMAGE], grids[VIDEO]


ITEMS = st.tuples(st.integers(0, 6), st.booleans(), *[st.integers(1, 4)] * 3)


@settings(max_examples=40, deadline=None)
@given(st.lists(ITEMS, min_size=1, max_size=4), st.integers(0, 4), st.integers(0, 2**31))
def test_state_continues_the_rule(model: Model, items: list[tuple], cut: int, seed: int):
    """Positions of any turn, given the state of the turns before it, are those of the whole prompt."""
    generator = np.random.default_rng(seed)
    ids, images, videos = pictures(items)
    grids = (torch.tensor(g) if g else None for g in (images, videos))
    expected, delta = model.get_rope_index(ids, *grids)
    assert int(delta) == int(expected.max()) + 1 - ids.shape[1]
    state, start = model.allocate_state(), 0
    for text, video, t, h, w in [*items, (2, None, 0, 0, 0)]:
        inside = 0 if video is None else (t if video else 1) * h * w
        cuts = sorted({0, text + inside, *generator.integers(0, text + 1, cut).tolist()})
        for a, b in pairwise(cuts):
            piece, has = ids[:, start + a : start + b], b > text
            grid = torch.tensor([[t if video else 1, 2 * h, 2 * w]]) if has else None
            vision = (piece == IMAGE) | (piece == VIDEO)
            places, _ = model._positions(
                piece, vision, None, state, None, grid if not video else None, grid if video else None, None
            )
            assert torch.equal(places, expected[:, :, start + a : start + b])
            state.advance(places, vision, None)
        start += text + inside
    assert int(state.count) == ids.shape[1]


@pytest.mark.parametrize(
    "tokens, images",
    [
        ([1] + [IMAGE] * 5, [[1, 4, 6]]),
        ([1] + [IMAGE] * 6, []),
        ([IMAGE] * 3 + [1] + [IMAGE] * 3, [[1, 4, 6]]),
        ([VIDEO] * 6, [[1, 4, 6]]),
    ],
)
def test_tokens_that_do_not_match_the_grids(model: Model, tokens: list[int], images: list):
    with pytest.raises(ValueError, match="do not match the grids"):
        model.get_rope_index(torch.tensor([tokens]), torch.tensor(images) if images else None)


def test_seconds_of_every_video(model: Model):
    ids, grid = torch.tensor([[VIDEO] * 12]), torch.tensor([[3, 4, 4]])
    assert model.get_rope_index(ids, None, grid, [1.25])[0][0, 0, ::4].tolist() == [0, 2, 5]
    with pytest.raises(ValueError, match="2 second_per_grid_ts for 1 videos"):
        model.get_rope_index(ids, None, grid, [1.0, 1.0])


def test_picture_tokens_without_a_grid_count_as_text(model: Model):
    """So that decoding goes on when a model writes one."""
    ids = torch.tensor([[1, 2, IMAGE, 3, VIDEO, 4]])
    state, positions = model.allocate_state(), []
    for piece in ids.split(1, 1):
        places, _ = model._positions(piece, piece >= IMAGE, None, state, None, None, None, None)
        state.advance(places, piece >= IMAGE, None)
        positions.append(places)
    assert torch.equal(torch.cat(positions, 2), torch.arange(6).expand(3, 1, 6))


def test_padding_has_no_position(model: Model):
    ids = text_ids(2, 9)
    mask = torch.tensor([[0, 0, 1, 1, 0, 1, 1, 1, 1], [1] * 9])
    state = model(ids, attention_mask=mask, use_cache=True).past_key_values
    assert state.position.tolist() == state.run.tolist() == [6, 9]
