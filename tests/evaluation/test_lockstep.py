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
        together.see(moment[:, None])
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


@pytest.mark.parametrize(("count", "longest"), [(0, None), (1, None), (33, None), (33, 1.2), (24, 1.2), (25, 1.2)])
def test_the_same_answers_and_memory(model: Model, monkeypatch: pytest.MonkeyPatch, count: int, longest: float | None):
    """33 frames are more than a window and, at 10 frames/s, more than 3 seconds."""
    monkeypatch.setattr(model.processor.settings, "max_video_seconds", longest)
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


@pytest.mark.parametrize("longest", [None, 0.5])
@pytest.mark.parametrize("pieces", [[33], [1, 30, 2], [5, 28]])
def test_frames_at_once_are_frames_one_by_one(
    model: Model, monkeypatch: pytest.MonkeyPatch, pieces: list[int], longest: float | None
):
    monkeypatch.setattr(model.processor.settings, "max_video_seconds", longest)
    shown = frames(2, 33).transpose(0, 1)
    one_by_one, at_once = Lockstep(model, 2, FPS), Lockstep(model, 2, FPS)
    for stream, sizes in ((one_by_one, [1] * 33), (at_once, pieces)):
        for piece in shown.split(sizes, dim=1):
            stream.see(piece)
    for name, tensor in one_by_one.state.tensors().items():
        assert_close(at_once.state.tensors()[name].double(), tensor.double(), 1e-5)


def test_rows_may_share_frames(model: Model):
    shown = frames(2, 3)
    together, _ = both(model, shown[:, [1, 0, 1]])
    shared = Lockstep(model, 3, FPS)
    shared.see(shown.transpose(0, 1), [1, 0, 1])
    for name, tensor in together.state.tensors().items():
        assert_close(shared.state.tensors()[name].double(), tensor.double(), 1e-5)


@pytest.mark.parametrize("layer_types", [None, ["full_attention", "linear_attention"]], ids=["hybrid", "grows"])
def test_streams_are_taken_and_joined(layer_types: list[str] | None):
    """Of different times and, where the state grows, of different sizes."""
    options = {"layer_types": layer_types, "num_hidden_layers": 2} if layer_types else {}
    model = random_model(0, sliding_window=48, **{"num_hidden_layers": 5, **options})
    randomise(model)
    early, late = Lockstep(model, 2, FPS), Lockstep(model, 3, FPS)
    early.see(frames(2, 2).transpose(0, 1))
    late.see(frames(3, 150).transpose(0, 1))
    joined = Lockstep.join([early.take([1]), late.take([2, 0])])
    answers = [early.ask([QUESTIONS[0]] * 2, 6), late.ask([QUESTIONS[2], "", QUESTIONS[1]], 6)]
    expected = [answers[0][1], answers[1][2], answers[1][0]]
    before = {name: tensor.clone() for name, tensor in late.state.tensors().items()}
    assert joined.answer(QUESTIONS, 6) == expected
    assert all(torch.equal(tensor, before[name]) for name, tensor in late.state.tensors().items())


@pytest.mark.parametrize(("factor", "rows"), [(0.0, None), (0.0, [2, 0]), (0.5, [1]), (0.5, None)])
def test_fade(model: Model, factor: float, rows: list[int] | None):
    """Memory, and where it is emptied the convolutions' inputs, of these rows alone; the attention windows stay."""
    together, _ = both(model, frames(3, 4))
    before = {name: tensor.clone() for name, tensor in together.state.tensors().items()}
    delta = [layer for layer in together.state.layers if isinstance(layer, DeltaState)]
    expected = torch.stack([layer.memory.flatten(2).norm(dim=-1).mean(1) for layer in delta])
    assert (expected > 0).all()
    assert_close(together.memory_norm(), expected, 1e-6)
    together.fade(factor, rows)
    faded = range(3) if rows is None else rows
    for name, tensor in together.state.tensors().items():
        parts = ("memory",) if factor else ("memory", "tail")
        scale = torch.tensor([factor if name.endswith(parts) and row in faded else 1.0 for row in range(3)])
        wanted = before[name] * scale.view(-1, *[1] * (tensor.dim() - 1)).to(tensor.dtype)
        assert torch.equal(tensor, wanted), name
    assert sum(isinstance(layer, AttentionState) for layer in together.state.layers) == 2


def test_an_answer_depends_on_the_frames(model: Model):
    shown = frames(3, 6)
    together, _ = both(model, shown)
    other = Lockstep(model, 3, FPS)
    for moment in np.roll(shown.numpy(), 1, axis=1):
        other.see(torch.from_numpy(moment)[:, None])
    assert together.ask([QUESTIONS[0]] * 3) != other.ask([QUESTIONS[0]] * 3)
