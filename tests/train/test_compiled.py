"""Compiled blocks compute what the others do, and are gone at the end."""

import pytest
import torch
from train_kit import HYBRID, backward_step, mixed_batch, small_model, small_teacher, stage

from infinitevl.data.packing import Batch
from infinitevl.model.modeling import InfiniteVLForConditionalGeneration as Model
from infinitevl.train.compiled import compiled_blocks
from infinitevl.train.stages import Stage


def results(kind: Stage, student: Model, teacher: Model, batch: Batch) -> list[torch.Tensor]:
    """The loss and all gradients."""
    loss = backward_step(kind, student, teacher, batch)
    gradients = [p.grad.clone() for p in student.parameters() if p.grad is not None]
    student.zero_grad()
    return [loss, *gradients]


def test_the_same_results():
    student, teacher, kind = small_model(HYBRID[:2]).train(), small_teacher(layers=2), stage(loss="layerwise")
    batch = mixed_batch(student)
    expected = results(kind, student, teacher, batch)
    with compiled_blocks(student, teacher, backend="aot_eager"):
        found = results(kind, student, teacher, batch)
    for x, y in zip(found, expected, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-5)


def test_nothing_is_left():
    model = small_model()
    with pytest.raises(KeyError), compiled_blocks(model):
        assert all("forward" in vars(block) for block in model.model.language_model.layers)
        raise KeyError
    assert all(
        "forward" not in vars(block) for block in (*model.model.language_model.layers, *model.model.visual.blocks)
    )
