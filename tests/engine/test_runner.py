"""Prompts in the slots of a pool, beside rows that rest, are those of copies."""

import pytest

from infinitevl.engine.pool import Seat
from infinitevl.engine.prompt import TextPrompt
from infinitevl.engine.runner import CHUNK, Prefill, Runner
from infinitevl.model.modeling import InfiniteVLForConditionalGeneration as Model
from infinitevl.streaming.text import Sampling

LENGTHS = (5, CHUNK + 9, 17)  # three rows of four


def written(model: Model, in_slots: bool) -> list[list[int | None]]:
    """What comes of every step: two of prompts, one of a token of all."""
    runner = Runner(model, 4)
    runner.pool.in_slots = in_slots  # as on a GPU
    samplings = [Sampling()] * len(LENGTHS)
    prompts = [Prefill(Seat(), TextPrompt([(n + i) % 100 for i in range(n)], 1000)) for n in LENGTHS]
    first = runner.prefill(prompts, samplings)
    assert [prompt.done for prompt in prompts] == [5, CHUNK, 17]
    rest = runner.prefill(prompts[1:2], samplings[:1])
    tokens = [first[0], rest[0], first[2]]
    chosen = runner.write([prompt.seat for prompt in prompts], [token or 0 for token in tokens], samplings)
    return [first, rest, chosen.tolist()[: len(LENGTHS)]]


@pytest.fixture(scope="module")
def copied(model: Model) -> list[list[int | None]]:
    return written(model, in_slots=False)


def test_in_slots_as_in_copies(model: Model, copied: list[list[int | None]]):
    assert copied[0][1] is None and None not in (copied[0][0], copied[0][2], copied[1][0])
    assert written(model, in_slots=True) == copied
