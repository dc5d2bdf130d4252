"""One function of the tokens, however they are fed: whole, in chunks, padded, packed, forked, restored, far away."""

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from helpers import (
    HYBRID,
    IMAGE,
    MIXED,
    RELATIVE,
    VIDEO,
    VISION_END,
    VISION_START,
    assert_close,
    assert_same_state,
    even,
    feed,
    relative,
    text_ids,
    tiny_model,
)  # fmt: skip
from infinitevl.model.modeling import InfiniteVLForConditionalGeneration as Model
from infinitevl.model.state import State

TOTAL, WINDOW = 260, 32
FILLS = (5, WINDOW - 1, WINDOW, WINDOW + 1, 150)  # before, at and past the window
MODELS = {"hybrid": (HYBRID, 0), "sinks": (HYBRID, 5), "mixed": (MIXED, 3)}


@pytest.fixture(scope="module", params=[(m, d) for d in RELATIVE for m in MODELS], ids=lambda p: f"{p[0]}-{p[1]}"[:14])
def model(request: pytest.FixtureRequest) -> Model:
    name, dtype = request.param
    torch.manual_seed(len(name))
    layers, sinks = MODELS[name]
    return tiny_model(layers, dtype, attention_sinks=sinks, sliding_window=WINDOW)


@pytest.fixture(autouse=True)
def no_grad():
    with torch.no_grad():
        yield


def close(found: Tensor, expected: Tensor) -> None:
    assert_close(found, expected, RELATIVE[expected.dtype])


@pytest.mark.parametrize("size", [1, 3, 16, 63, 64, 65, 100, 257])
def test_chunks(model: Model, size: int):
    ids, state = text_ids(2, TOTAL), model.allocate_state(2)
    close(feed(model, ids, state, even(TOTAL, size)), model(ids).logits)
    whole = model(ids, use_cache=True).past_key_values
    assert_same_state(state, whole, RELATIVE[model.dtype])


@settings(max_examples=12, deadline=None)
@given(st.lists(st.integers(1, 80), min_size=1, max_size=8), st.integers(0, 2**31))
def test_any_chunks(model: Model, sizes: list[int], seed: int):
    torch.manual_seed(seed)
    with torch.no_grad():
        ids = text_ids(1, sum(sizes))
        close(feed(model, ids, model.allocate_state(), sizes), model(ids).logits)


def test_outputs_depend_on_the_whole_past(model: Model):
    """Negative controls: what the other tests compare is far from what a cut memory or shifted positions give."""
    ids = text_ids(1, TOTAL)
    whole, state = model(ids).logits, model.allocate_state()
    model(ids[:, :150], past_key_values=state)
    places = torch.arange(150, TOTAL)[None]

    def rest(change: Callable[[State], object], shift: int = 0) -> float:
        branch = state.fork()
        change(branch)
        logits = model(ids[:, 150:], past_key_values=branch, position_ids=places + shift).logits
        return float((logits - whole[:, 150:]).abs().max())

    assert rest(lambda s: None) < 1e-4
    assert rest(lambda s: s.reset()) > 1e-3
    assert rest(lambda s: None, shift=3) > 1e-3
    assert rest(lambda s: s.count.add_(1)) > 1e-3
    for name in state.tensors().keys() - set(State.COUNTERS):
        assert rest(lambda s, name=name: s.tensors()[name].zero_()) > 1e-3, name


@pytest.mark.parametrize("side", ["left", "right", "holes"])
def test_padded_batch(model: Model, side: str):
    """Rows of other lengths in one batch, NaN embeddings at the padding, whole and in chunks."""
    lengths = (200, 97, 20)
    mask = torch.zeros(3, 200, dtype=torch.int64)
    for row, n in zip(mask, lengths, strict=True):
        places = {"left": range(200 - n, 200), "right": range(n), "holes": torch.randperm(200)[:n].tolist()}
        row[list(places[side])] = 1
    ids = text_ids(3, 200)
    embeds = model.get_input_embeddings()(ids).masked_fill((mask == 0)[..., None], float("nan"))
    whole, state = model(inputs_embeds=embeds, attention_mask=mask).logits, model.allocate_state(3)
    pieces = zip(embeds.split(70, 1), mask.split(70, 1), strict=True)
    logits = [model(inputs_embeds=e, attention_mask=m, past_key_values=state).logits for e, m in pieces]
    for b in range(3):
        alone = model(ids[b : b + 1, mask[b] == 1]).logits[0]
        close(whole[b, mask[b] == 1], alone)
        close(torch.cat(logits, 1)[b, mask[b] == 1], alone)
    assert state.count.tolist() == state.position.tolist() == list(lengths)
    assert all(tensor.isfinite().all() for tensor in state.tensors().values())


@pytest.mark.parametrize("padded", [False, True])
def test_packed(model: Model, padded: bool):
    rows = [(1, 33, 150, 2, 40), (100, 1, 1, 64)]
    ids = [[text_ids(1, n) for n in row] for row in rows]
    packed, numbers = text_ids(2, 240), torch.zeros(2, 240, dtype=torch.int64)
    mask = torch.zeros(2, 240, dtype=torch.int64)
    for b, row in enumerate(rows):
        used = 226 if not padded else sum(row)
        packed[b, : sum(row)] = torch.cat(ids[b], 1)
        numbers[b] = torch.repeat_interleave(torch.arange(len(row) + 1), torch.tensor([*row, 240 - sum(row)]))
        mask[b, :used] = 1
    logits = model(packed, seq_idx=numbers, attention_mask=mask if padded else None).logits
    for b, row in enumerate(rows):
        for found, alone in zip(logits[b, : sum(row)].split(row), ids[b], strict=True):
            close(found, model(alone).logits[0])


@pytest.mark.parametrize("fill", FILLS)
def test_fork(model: Model, fill: int):
    """Both branches go on from the same past, neither sees the other."""
    past, one, other = text_ids(2, fill), text_ids(2, 70), text_ids(2, 70)
    state = model.allocate_state(2)
    model(past, past_key_values=state)
    branch = state.fork()
    first = torch.cat([model(x, past_key_values=state).logits for x in one.split(35, 1)], 1)
    second = torch.cat([model(x, past_key_values=branch).logits for x in other.split(35, 1)], 1)
    close(first, model(torch.cat([past, one], 1)).logits[:, fill:])
    close(second, model(torch.cat([past, other], 1)).logits[:, fill:])


@pytest.mark.parametrize("fill", FILLS)
def test_save_and_load(model: Model, fill: int, tmp_path: Path):
    past, rest = text_ids(2, fill), text_ids(2, 70)
    state, restored = model.allocate_state(2), model.allocate_state(2)
    model(past, past_key_values=state)
    state.save(tmp_path / "state", {"note": "here"})
    model(text_ids(2, 9), past_key_values=restored)  # what it held before does not matter
    assert restored.load(tmp_path / "state") == {"note": "here"}
    assert_same_state(restored, state)
    close(model(rest, past_key_values=restored).logits, model(torch.cat([past, rest], 1)).logits[:, fill:])


@pytest.mark.parametrize("offset", [10**6, 10**9, 2**40])
def test_only_differences_of_positions_matter(model: Model, offset: int):
    ids = text_ids(1, 150)
    places = torch.arange(150)[None]
    whole, state = model(ids).logits, model.allocate_state()
    close(model(ids, position_ids=places + offset).logits, whole)
    pieces = zip(ids.split(40, 1), (places + offset).split(40, 1), strict=True)
    close(torch.cat([model(x, position_ids=p, past_key_values=state).logits for x, p in pieces], 1), whole)
    assert int(state.position) == offset + 150
    more = text_ids(1, 20)
    expected = model(torch.cat([ids, more], 1)).logits[:, 150:]
    close(model(more, past_key_values=state).logits, expected)  # goes on where the state is


def test_rows_in_different_states(model: Model):
    """A batch whose rows are before, at and past the window equals each row alone; so do rows that are reset."""
    lengths = (5, WINDOW, 120)
    past, rest = text_ids(3, 120), text_ids(3, 60)
    mask = (torch.arange(120) < torch.tensor(lengths)[:, None]).long()
    state = model.allocate_state(3)
    model(past, attention_mask=mask, past_key_values=state)
    alone = [model(torch.cat([past[b, :n], rest[b]])[None]).logits[0, n:] for b, n in enumerate(lengths)]
    fresh = [model(rest[b : b + 1]).logits[0] for b in range(3)]
    reset = state.fork().reset(torch.tensor([False, True, False]))
    swapped = state.fork()
    swapped.reorder_cache(torch.tensor([2, 0, 0]))
    copied = model.allocate_state(3)
    model(text_ids(3, 7), past_key_values=copied)
    copied.copy_(state)
    for start in (state, copied):
        for found, expected in zip(model(rest, past_key_values=start).logits, alone, strict=True):
            close(found, expected)
    for found, expected in zip(model(rest, past_key_values=reset).logits, [alone[0], fresh[1], alone[2]], strict=True):
        close(found, expected)
    logits = model(rest[[2, 0, 0]], past_key_values=swapped).logits
    for found, expected in zip(logits, [alone[2], alone[0], alone[0]], strict=True):
        close(found, expected)


IMAGES, VIDEOS = ((1, 4, 6), (1, 8, 4)), ((3, 4, 4),)


def prompt() -> dict[str, Tensor]:
    """Text, an image, text, another image, text, a video, text."""
    image = [torch.full((1, h * w // 4), IMAGE) for _, h, w in IMAGES]
    video = [torch.full((1, t * h * w // 4), VIDEO) for t, h, w in VIDEOS]
    begin, end = torch.tensor([[VISION_START]]), torch.tensor([[VISION_END]])
    parts = [text_ids(1, 7), begin, image[0], end, text_ids(1, 4), begin, image[1], end, text_ids(1, 30)]
    return {
        "input_ids": torch.cat([*parts, begin, video[0], end, text_ids(1, 11)], 1),
        "pixel_values": torch.randn(sum(t * h * w for t, h, w in IMAGES), 1176),
        "image_grid_thw": torch.tensor(IMAGES),
        "pixel_values_videos": torch.randn(sum(t * h * w for t, h, w in VIDEOS), 1176),
        "video_grid_thw": torch.tensor(VIDEOS),
        "second_per_grid_ts": [1.5],
    }


def part(whole: dict[str, Tensor], start: int, stop: int) -> dict[str, Tensor]:
    """Tokens start..stop of the prompt, with the images and videos that lie there."""
    ids = whole["input_ids"][:, start:stop]
    piece: dict = {"input_ids": ids}
    for token, pixels, grid in (
        (IMAGE, "pixel_values", "image_grid_thw"),
        (VIDEO, "pixel_values_videos", "video_grid_thw"),
    ):
        before, inside = int((whole["input_ids"][:, :start] == token).sum()), int((ids == token).sum())
        if inside:
            ends = (whole[grid].prod(1) // 4).cumsum(0)
            piece[pixels] = whole[pixels][4 * before : 4 * (before + inside)]
            piece[grid] = whole[grid][(ends > before) & (ends <= before + inside)]
    if "video_grid_thw" in piece:
        piece["second_per_grid_ts"] = whole["second_per_grid_ts"]
    return piece


@pytest.mark.parametrize("text_chunk", [1, 5, 64])
@pytest.mark.parametrize("joined", [False, True])
def test_multimodal_turns(model: Model, text_chunk: int, joined: bool):
    """Turns that end anywhere but inside a picture; `joined`: a picture comes in a chunk with the text before it."""
    whole = prompt()
    vision = (whole["input_ids"][0] >= IMAGE) & (whole["input_ids"][0] <= VIDEO)
    edges = [0, *(torch.nonzero(vision.diff())[:, 0] + 1).tolist(), len(vision)]
    cuts = {0, len(vision)}
    for start, stop in pairwise(edges):
        if not vision[start]:
            cuts |= set(range(start + (3 if start else 0), stop, text_chunk)) | (set() if joined else {start, stop})
    cuts = sorted(cuts)
    state, logits = model.allocate_state(), []
    for start, stop in pairwise(cuts):
        logits.append(model(**part(whole, start, stop), past_key_values=state).logits)
    expected = model(**whole, use_cache=True)
    close(torch.cat(logits, 1), expected.logits)
    assert_same_state(state, expected.past_key_values, RELATIVE[model.dtype])
    changed = {**whole, "pixel_values": torch.randn_like(whole["pixel_values"])}
    assert relative(model(**changed).logits, expected.logits) > 1e-3


def test_multimodal_rows(model: Model):
    """Prompts with other pictures in one padded batch, after other pasts, equal each alone."""
    whole = prompt()
    total = whole["input_ids"].shape[1]
    pieces = [part(whole, 0, 14), part(whole, 14, 40), part(whole, 50, total)]
    past, length = text_ids(3, 50), max(p["input_ids"].shape[1] for p in pieces)
    ids, mask = text_ids(3, length), torch.zeros(3, length, dtype=torch.int64)
    for b, piece in enumerate(pieces):
        n = piece["input_ids"].shape[1]
        ids[b, length - n :], mask[b, length - n :] = piece["input_ids"][0], 1
    batch = {
        name: torch.cat([p[name] for p in pieces if name in p])
        for name in ("pixel_values", "image_grid_thw", "pixel_values_videos", "video_grid_thw")
    }
    state = model.allocate_state(3)
    lengths = torch.tensor([50, 3, 33])
    model(past, attention_mask=(torch.arange(50) < lengths[:, None]).long(), past_key_values=state)
    out = model(ids, attention_mask=mask, past_key_values=state, second_per_grid_ts=[1.5], **batch).logits
    for b, piece in enumerate(pieces):
        single = model.allocate_state()
        model(past[b : b + 1, : lengths[b]], past_key_values=single)
        close(out[b, mask[b] == 1], model(**piece, past_key_values=single).logits[0])
