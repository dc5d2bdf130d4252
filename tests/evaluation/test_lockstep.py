"""Streams in lockstep are the separate streams."""

import numpy as np
import pytest
import torch

from helpers import assert_close, randomise
from infinitevl.evaluation.lockstep import Lockstep
from infinitevl.model.modeling import InfiniteVLForConditionalGeneration as Model
from infinitevl.model.random_model import random_model
from infinitevl.model.state import AttentionState, DeltaState
from infinitevl.streaming.stream import Stream

FPS = 10.0
QUESTIONS = ["What is it?", "  Which number did the red star card show? ", "Why"]
BOUNDS = {"min_pixels": 784, "max_pixels": 56 * 56}


@pytest.fixture(scope="module")
def model() -> Model:
    torch.manual_seed(0)
    made = random_model(0, sliding_window=48, num_hidden_layers=5)
    randomise(made)
    return made


def frames(streams: int, count: int) -> torch.Tensor:
    return torch.randint(256, (count, streams, 56, 28, 3), dtype=torch.uint8)


def both(model: Model, shown: torch.Tensor) -> tuple[Lockstep, list[Stream]]:
    streams = shown.shape[1]
    together, alone = Lockstep(model, streams, FPS), [Stream(model, fps=FPS, **BOUNDS) for _ in range(streams)]
    for moment in shown:
        together.see(moment)
        for stream, frame in zip(alone, moment, strict=True):
            stream.see(frame.numpy())
    return together, alone


def same_memory(together: Lockstep, alone: list[Stream]) -> None:
    for name, tensor in together.state.tensors().items():
        expected = torch.cat([stream.state.tensors()[name] for stream in alone])
        if tensor.dtype == torch.int64:
            assert torch.equal(tensor, expected), name
        else:
            assert_close(tensor, expected, 1e-5)


@pytest.mark.parametrize("count", [0, 1, 33])
def test_the_same_answers_and_memory(model: Model, count: int):
    """33 frames are more than a window and, at 10 frames/s, more than 3 seconds."""
    together, alone = both(model, frames(3, count))
    answers = ["".join(s.ask(q, max_new_tokens=10)) for s, q in zip(alone, QUESTIONS, strict=True)]
    same_memory(together, alone)
    assert together.ask(QUESTIONS, max_new_tokens=10) == answers
    assert len(set(answers)) == 3
    same_memory(together, alone)  # asking leaves no trace
    assert together.ask(QUESTIONS, max_new_tokens=10) == answers


def test_rows_that_end_early(model: Model, monkeypatch: pytest.MonkeyPatch):
    """Answers of different lengths: what a row says does not depend on when another ends."""
    together, alone = both(model, frames(3, 2))
    free = together.ask(QUESTIONS, max_new_tokens=10)
    ends = {model.processor.encode(free[0])[4], model.processor.encode(free[2])[1]}
    monkeypatch.setattr(Model, "end_tokens", lambda self: ends)
    answers = ["".join(s.ask(q, max_new_tokens=10)) for s, q in zip(alone, QUESTIONS, strict=True)]
    assert together.ask(QUESTIONS, max_new_tokens=10) == answers
    assert len({len(answer) for answer in answers}) > 1


def test_forget(model: Model):
    """The memory of the Gated DeltaNet layers alone is emptied."""
    together, _ = both(model, frames(3, 4))
    before = {name: tensor.clone() for name, tensor in together.state.tensors().items()}
    norms = together.memory_norm()
    delta = [layer for layer in together.state.layers if isinstance(layer, DeltaState)]
    assert_close(norms[0], torch.stack([m.norm() for m in delta[0].memory.flatten(0, 1)]).mean(), 1e-5)
    assert (norms > 0).all()
    together.forget()
    assert (together.memory_norm() == 0).all()
    changed = {name for name, tensor in together.state.tensors().items() if not torch.equal(tensor, before[name])}
    assert len(changed) == len(delta) == 3
    assert all(name.endswith("memory") for name in changed)
    assert any(isinstance(layer, AttentionState) for layer in together.state.layers)


def test_an_answer_depends_on_the_frames(model: Model):
    shown = frames(3, 6)
    together, _ = both(model, shown)
    other = Lockstep(model, 3, FPS)
    for moment in np.roll(shown.numpy(), 1, axis=1):
        other.see(torch.from_numpy(moment))
    assert together.ask([QUESTIONS[0]] * 3) != other.ask([QUESTIONS[0]] * 3)
