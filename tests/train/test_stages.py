"""What trains in each stage, and on which loss."""

from copy import deepcopy

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from train_kit import HYBRID, backward_step, mixed_batch, small_model, small_teacher, stage

from helpers import assert_close
from infinitevl.model.modeling import InfiniteVLForConditionalGeneration as Model
from infinitevl.train.stages import embed, gradient_norms, select, summary

LINEAR = [i for i, kind in enumerate(HYBRID) if kind == "linear_attention"]


@pytest.fixture
def student() -> Model:
    return small_model(dtype=torch.float64)


@pytest.fixture
def teacher() -> Model:
    return small_teacher(torch.float64).requires_grad_(False)


def trained(model: Model) -> set[str]:
    """The parameters with a gradient."""
    return {name for name, parameter in model.named_parameters() if parameter.grad is not None}


@pytest.mark.parametrize("tied", [True, False])
def test_what_trains(tied: bool):
    model = small_model()
    if not tied:
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    everything = {name for name, _ in model.named_parameters()}
    language = {name for name in everything if name.startswith("model.language_model.")}
    mixers = tuple(f"model.language_model.layers.{i}.self_attn." for i in LINEAR)
    wanted = {
        "all": everything,
        "language": language - {"model.language_model.embed_tokens.weight"},
        "delta": {name for name in everything if name.startswith(mixers)},
    }
    assert ("lm_head.weight" in everything) is not tied
    for trains in ("all", "delta", "language"):
        assert set(select(model, trains)) == wanted[trains]
        assert {name for name, p in model.named_parameters() if p.requires_grad} == wanted[trains]
    assert len(wanted["delta"]) == 13 * len(LINEAR)


def test_the_summary_counts_what_trains():
    model = small_model()
    lines = summary(model, select(model, "delta")).splitlines()
    assert lines[0].endswith("language_model.layers.N.self_attn, N = 1 2 4")
    count = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert lines[-1].split()[:2] == [f"{count:,}", "of"]


def test_cross_entropy_of_a_batch(student: Model):
    select(student, "all")
    batch = mixed_batch(student)
    loss = backward_step(stage(), student, None, batch)
    inputs = embed(student, batch)
    logits = student.lm_head(inputs.decode(student.model.language_model))
    learnt = batch.targets >= 0
    assert_close(loss, F.cross_entropy(logits[learnt], batch.targets[learnt]), 1e-10)
    assert trained(student) == {name for name, _ in student.named_parameters()}


def test_layerwise(student: Model, teacher: Model):
    """Every replaced layer, by hand, alone, on what enters the teacher's; only they count, without padding."""
    select(student, "delta")
    batch = mixed_batch(student)
    loss = backward_step(stage(loss="layerwise", trains="delta"), student, teacher, batch)
    found = {
        name: parameter.grad.clone() for name, parameter in student.named_parameters() if name in trained(student)
    }
    assert set(found) == set(select(student, "delta"))
    student.zero_grad()
    by_hand = layers_by_hand(student, teacher, batch)
    assert_close(loss, by_hand, 1e-10)
    by_hand.backward()
    for name, gradient in found.items():
        assert_close(gradient, student.get_parameter(name).grad, 1e-8)


def layers_by_hand(student: Model, teacher: Model, batch) -> Tensor:
    hidden: list[Tensor] = []
    inputs = embed(teacher, batch)
    inputs.decode(teacher.model.language_model, hidden)
    decoder = student.model.language_model
    chunk = decoder.chunk(inputs.embeds, inputs.positions, inputs.lengths, inputs.seq_idx, None)
    errors = []
    for i in LINEAR:
        difference = decoder.layers[i](hidden[i], chunk) - hidden[i + 1]
        errors.append(torch.cat([row[:n] for row, n in zip(difference, batch.lengths, strict=True)]).square().mean())
    return torch.stack(errors).mean()


def test_distillation(student: Model, teacher: Model):
    """KL over real text; a student that is its teacher has nothing to learn."""
    select(student, "delta")
    batch = mixed_batch(student)
    kind = stage(loss="distillation", trains="delta", temperature=2.0)
    loss = backward_step(kind, student, teacher, batch)
    assert trained(student) == set(select(student, "delta"))
    p, q = (
        (model.lm_head(embed(model, batch).decode(model.model.language_model)) / 2).log_softmax(-1)
        for model in (teacher, student)
    )
    kl = 4 * (p.exp() * (p - q)).sum(-1)
    text = [
        kl[b, t] for b in range(2) for t in range(int(batch.lengths[b])) if not is_vision(student, batch.ids[b, t])
    ]
    assert_close(loss, torch.stack(text).mean(), 1e-10)
    assert abs(float(backward_step(kind, student, deepcopy(student), batch))) < 1e-10


def is_vision(model: Model, token: Tensor) -> bool:
    return int(token) in (model.config.image_token_id, model.config.video_token_id)


def test_a_teacher_is_needed(student: Model):
    with pytest.raises(ValueError, match="needs a teacher"):
        backward_step(stage(loss="layerwise"), student, None, mixed_batch(student))


def test_the_norms_of_gradients(student: Model):
    select(student, "all")
    backward_step(stage(), student, None, mixed_batch(student))
    norms = gradient_norms(student)
    layer = [
        p.grad
        for n, p in student.named_parameters()
        if n.startswith("model.language_model.layers.2.") and p.grad is not None
    ]
    assert norms["language_model.layers.2"] == pytest.approx(
        float(torch.cat([g.flatten() for g in layer]).norm()), rel=1e-5
    )
    assert "visual.blocks.0" in norms
