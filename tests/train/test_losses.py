"""Losses chunk by chunk equal the plain ones, in float64."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from helpers import assert_close, assert_same_gradients
from infinitevl.data.encode import IGNORED
from infinitevl.train import losses

CHUNK, WIDTH, VOCABULARY = 8, 5, 11
LENGTHS = (1, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK, 3 * CHUNK + 2)


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(losses, "CHUNK", CHUNK)


def inputs(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


def scattered(count: int) -> Tensor:
    """[3, count]: True at `count` places."""
    return (torch.randperm(3 * count) < count).view(3, count)


def same(found: Callable[[], Tensor], expected: Callable[[], Tensor], *leaves: Tensor) -> None:
    values = [found(), expected()]
    gradients = [torch.autograd.grad(value, leaves) for value in values]
    assert_close(*values, 1e-12)
    assert_same_gradients(*gradients, 1e-12)


@pytest.mark.parametrize("learnt", LENGTHS)
def test_cross_entropy(learnt: int):
    hidden, head = inputs(3, learnt, WIDTH), inputs(VOCABULARY, WIDTH)
    targets = torch.randint(VOCABULARY, (3, learnt)).masked_fill(~scattered(learnt), IGNORED)
    same(
        lambda: losses.cross_entropy(hidden, head, targets),
        lambda: F.cross_entropy((hidden @ head.T).flatten(0, 1), targets.flatten(), ignore_index=IGNORED),
        hidden,
        head,
    )


@pytest.mark.parametrize("learnt", LENGTHS)
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_distillation(learnt: int, temperature: float):
    student, teacher, head = inputs(3, learnt, WIDTH), inputs(3, learnt, WIDTH + 1), inputs(VOCABULARY, WIDTH)
    teacher_head, real = inputs(VOCABULARY, WIDTH + 1), scattered(learnt)

    def plain() -> Tensor:
        p = (teacher @ teacher_head.T / temperature).softmax(-1)
        q = (student @ head.T / temperature).softmax(-1)
        return temperature**2 * (p * (p / q).log()).sum(-1)[real].mean()

    def chunked() -> Tensor:
        return losses.distillation(student, teacher, head, teacher_head, real, temperature)

    same(chunked, plain, student, head)


def test_a_layer_is_compared_at_real_tokens_only():
    found, wanted, real = inputs(2, 6, WIDTH), inputs(2, 6, WIDTH), torch.rand(2, 6) < 0.5
    real[0, 0] = True
    with torch.no_grad():
        found[~real] = float("nan")
    loss = losses.layer_distance(found, wanted, real)
    by_hand = [((found[b, t] - wanted[b, t]) ** 2).mean() for b, t in real.nonzero().tolist()]
    assert_close(loss, torch.stack(by_hand).mean(), 1e-12)
    (gradient,) = torch.autograd.grad(loss, found)
    assert (gradient[~real] == 0).all()
    assert (gradient[real] != 0).all()


def test_nothing_to_learn():
    hidden, head, none = inputs(2, 4, WIDTH), inputs(VOCABULARY, WIDTH), torch.zeros(2, 4, dtype=torch.bool)
    for loss in (
        losses.cross_entropy(hidden, head, torch.full((2, 4), IGNORED)),
        losses.distillation(hidden, hidden.detach(), head, head.detach(), none, 2.0),
        losses.layer_distance(hidden, hidden.detach(), none),
    ):
        gradients = torch.autograd.grad(loss, (hidden, head), allow_unused=True, materialize_grads=True)
        assert loss == 0
        assert all((gradient == 0).all() for gradient in gradients)


def test_half_precision_sums_in_float32():
    hidden, head = torch.randn(64, WIDTH).bfloat16(), torch.randn(VOCABULARY, WIDTH).bfloat16()
    loss = losses.cross_entropy(hidden, head, torch.randint(VOCABULARY, (64,)))
    assert loss.dtype == torch.float32


class Largest(TorchDispatchMode):
    """How many numbers the largest tensor of any operation has, forward and backward."""

    numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        made = [x.numel() for x in tree_leaves(found) if isinstance(x, Tensor) and x.is_floating_point()]
        self.numbers = max(self.numbers, *made, 0)
        return found


@pytest.mark.parametrize("loss", ["cross_entropy", "distillation"])
def test_logits_of_all_tokens_never_exist(loss: str):
    """Those of a chunk are the largest tensor."""
    tokens, vocabulary = 40 * CHUNK, 20 * WIDTH
    hidden, other = inputs(tokens, WIDTH), inputs(tokens, WIDTH).detach()
    head, teachers = inputs(vocabulary, WIDTH), inputs(vocabulary, WIDTH).detach()
    with Largest() as largest:
        if loss == "cross_entropy":
            losses.cross_entropy(hidden, head, torch.randint(vocabulary, (tokens,))).backward()
        else:
            real = torch.ones(tokens, dtype=torch.bool)
            losses.distillation(hidden, other, head, teachers, real, 2.0).backward()
    assert hidden.grad is not None and hidden.grad.any()
    assert largest.numbers == max(CHUNK * vocabulary, tokens * WIDTH)
