"""Packed rows equal separate samples, and no sample is lost on the way into a row."""

import pytest
import torch
from torch import Tensor

from helpers import assert_close, assert_same_gradients, randomise
from infinitevl.data.encode import IGNORED, Encoded, Encoder
from infinitevl.data.packing import Batch, fill_row, pack
from infinitevl.data.sample import Sample
from infinitevl.model.modeling import InfiniteVLForConditionalGeneration as Model
from infinitevl.model.random_model import random_model
from infinitevl.train.losses import cross_entropy
from infinitevl.train.stages import embed

HYBRID = ["sliding_attention", "linear_attention", "linear_attention", "sliding_attention", "linear_attention"]


def small_model(kinds: list[str]) -> Model:
    model = random_model(
        0, layer_types=kinds, num_hidden_layers=len(kinds), intermediate_size=64, num_attention_heads=2,
        num_key_value_heads=1, head_dim=32, num_linear_heads=2, linear_head_dim=16, sliding_window=16,
    )  # fmt: skip
    randomise(model)
    return model.double()


def samples(model: Model) -> list[Encoded]:
    encode = Encoder(model.processor, model.config, max_tokens=500, min_pixels=784, max_pixels=56 * 56)
    made = []
    for number, sizes in enumerate([[(3, 56, 28)], [], [(1, 28, 56), (2, 56, 28)], [(2, 56, 28)], []]):
        videos = [torch.randint(256, (*size, 3), dtype=torch.uint8) for size in sizes]
        asked = {"role": "user", "content": "<video>" * len(videos) + "what?" * number}
        messages = [asked, {"role": "assistant", "content": "an answer"[number:]}]
        made.append(encode(Sample(messages, videos=videos, fps=1.0)))
    return made


def outputs(model: Model, batch: Batch) -> Tensor:
    return embed(model, batch).decode(model.model.language_model)


def gradients(model: Model, batches: list[Batch]) -> list[Tensor]:
    """Of the sum of the losses of all tokens that are learnt."""
    model.zero_grad()
    for batch in batches:
        loss = cross_entropy(outputs(model, batch), model.lm_head.weight, batch.targets)
        (loss * (batch.targets != IGNORED).sum()).backward()
    return [p.grad.clone() for p in model.parameters() if p.grad is not None]


@pytest.mark.parametrize("kinds", [HYBRID, ["full_attention"] * 3], ids=["student", "teacher"])
def test_packed_equals_separate(kinds: list[str]):
    model = small_model(kinds)
    a, b, c, d, e = samples(model)
    rows = [[a, b, c], [d, e]]
    tokens = max(sum(map(len, row)) for row in rows) + 7
    packed, separate = pack(rows, tokens), [pack([[sample]], len(sample)) for sample in (a, b, c, d, e)]
    found, alone = outputs(model, packed), [outputs(model, batch)[0] for batch in separate]
    for row, parts in zip(found, ([*alone[:3]], [*alone[3:]]), strict=True):
        expected = torch.cat(parts)
        assert_close(row[: len(expected)], expected, 1e-5)
    assert_same_gradients(gradients(model, [packed]), gradients(model, separate), 1e-5)


def test_a_batch():
    model = small_model(["full_attention"])
    a, b, c, d, _ = samples(model)
    batch = pack([[a, b], [c, d]], 400)
    assert batch.lengths.tolist() == [len(a) + len(b), len(c) + len(d)]
    assert batch.tokens == sum(map(len, (a, b, c, d)))
    assert batch.seq_idx[0, : batch.lengths[0]].tolist() == [0] * len(a) + [1] * len(b)
    assert (batch.targets[0, batch.lengths[0] :] == IGNORED).all()
    assert [tuple(frames.shape) for frames in batch.frames] == [(3, 56, 28, 3), (1, 28, 56, 3), (4, 56, 28, 3)]
    moved = batch.to(torch.device("cpu"))
    assert all(torch.equal(value, getattr(batch, name)) for name, value in vars(moved).items() if name != "frames")


def encoded(number: int, length: int) -> Encoded:
    ids = torch.full((length,), number)
    return Encoded(ids, ids, ids.expand(3, -1), [])


def numbers(row: list[Encoded]) -> list[int]:
    return [int(sample.ids[0]) for sample in row]


def test_no_sample_is_lost():
    """Every one comes once, the oldest that waits first; at most 4 wait."""
    lengths = torch.randint(1, 101, (300,)).tolist()
    stream, waiting, rows = iter([encoded(i, n) for i, n in enumerate(lengths)]), [], []
    while row := fill_row(stream, 100, waiting):
        oldest = min(numbers(waiting), default=300)
        assert numbers(row)[0] < oldest
        assert len(waiting) <= 4
        rows.append(numbers(row))
    assert sorted(number for row in rows for number in row) == list(range(300))
    assert all(sum(lengths[number] for number in row) <= 100 for row in rows)
    assert sum(lengths) / (100 * len(rows)) > 0.85


def test_a_row_takes_what_fits():
    made = [encoded(i, n) for i, n in enumerate([60, 50, 30, 45, 10, 55])]
    waiting: list[Encoded] = []
    assert numbers(fill_row(iter(made), 100, waiting, 2)) == [0, 2]
    assert numbers(waiting) == [1, 3]
    assert numbers(fill_row(iter(made[4:]), 100, waiting, 2)) == [1, 3]
    assert numbers(waiting) == [4, 5]
    assert numbers(fill_row(iter([]), 100, waiting, 2)) == [4, 5]


def test_a_sample_longer_than_a_row():
    with pytest.raises(ValueError, match="101 tokens for rows of 100"):
        fill_row(iter([encoded(0, 101)]), 100)
