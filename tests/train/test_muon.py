"""Muon against PyTorch's own, and the choice of optimisers."""

import pytest
import torch
from train_kit import small_model, stage

from helpers import assert_close
from infinitevl.train.muon import Muon, orthogonal
from infinitevl.train.optimizers import optimizers
from infinitevl.train.stages import select


def test_it_is_that_of_pytorch():
    """Which rounds its products to bfloat16."""
    shapes = [(8, 20), (20, 8), (8, 20), (16, 16), (8, 20)]
    ours = [torch.nn.Parameter(torch.randn(shape)) for shape in shapes]
    theirs = [torch.nn.Parameter(matrix.detach().clone()) for matrix in ours]
    both = (
        Muon(ours, lr=0.02, weight_decay=0.1),
        torch.optim.Muon(theirs, lr=0.02, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
    )
    for _ in range(4):
        for a, b in zip(ours, theirs, strict=True):
            a.grad = torch.randn_like(a)
            b.grad = a.grad.clone()
        before = [matrix.detach().clone() for matrix in ours]
        for optimizer in both:
            optimizer.step()
        for a, b, old in zip(ours, theirs, before, strict=True):
            assert_close(a - old, b - old, 5e-2)
            b.data.copy_(a.data)


def test_a_matrix_without_a_gradient_is_left_alone():
    matrices = [torch.nn.Parameter(torch.randn(4, 6)) for _ in range(2)]
    matrices[0].grad = torch.randn(4, 6)
    before = [matrix.detach().clone() for matrix in matrices]
    Muon(matrices, lr=0.1).step()
    assert not torch.equal(matrices[0], before[0])
    assert torch.equal(matrices[1], before[1])


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])  # as on a CPU, as on a GPU
@pytest.mark.parametrize("shape", [(3, 8, 24), (24, 8), (16, 16)])
def test_orthogonal(shape: tuple[int, ...], dtype: torch.dtype):
    x = torch.randn(shape, dtype=torch.float64)
    u, _, v = torch.linalg.svd(x, full_matrices=False)
    found = orthogonal(x.to(dtype)).double()
    values = torch.linalg.svdvals(found)
    assert values.min() > 0.3
    assert values.max() < 1.5
    agreement = torch.linalg.vecdot((u @ v).flatten(), found.flatten())
    assert agreement > 0.9 * (u @ v).norm() * found.norm()


def test_every_parameter_has_one_optimizer():
    model = small_model()
    for trains in ("all", "delta", "language"):
        names = select(model, trains)
        for method in ("adamw", "muon"):
            found = optimizers(stage(optimizer=method), model)
            held = [p for optimizer, _ in found for group in optimizer.param_groups for p in group["params"]]
            assert len(held) == len(names)
            assert {id(p) for p in held} == {id(p) for p in model.parameters() if p.requires_grad}
    matrices = {id(p) for p in optimizers(stage(optimizer="muon"), model)[0][0].param_groups[0]["params"]}
    assert id(model.get_input_embeddings().weight) not in matrices
