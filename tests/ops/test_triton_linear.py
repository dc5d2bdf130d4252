"""Linear maps, RMSNorm and SwiGLU in Triton against float64, at sizes that no block divides."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from helpers import assert_close
from infinitevl import ops
from interpreter import DEVICE

linear = pytest.importorskip("infinitevl.ops.triton.linear")
pointwise = pytest.importorskip("infinitevl.ops.triton.pointwise")
pytestmark = pytest.mark.usefixtures("poisoned_memory")

DTYPES = pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.bfloat16, 1e-2)], ids=str)
PLANS = [
    (1, linear.Rows(4, 32)),
    (1, linear.Rows(1, 128)),
    (21, linear.Tiles(16, 16, 32)),
    (21, linear.Tiles(32, 32, 16, splits=3)),
    (5, linear.Tiles(16, 32, 64, splits=2)),
    (5, None),
]


def wide(*tensors: Tensor | None) -> list[Tensor | None]:
    return [None if x is None else x.double() for x in tensors]


def normal(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(*shape, device=DEVICE).to(dtype)


@DTYPES
@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("m, plan", PLANS, ids=str)
def test_products(m: int, plan: linear.Rows | linear.Tiles | None, gated: bool, dtype: torch.dtype, tolerance: float):
    """x, the weight and the residual are slices of wider tensors; what is beside them is NaN."""
    n, k = 19, 77
    if gated and plan is None:
        pytest.skip("gates by cuBLAS are two steps of `swiglu`")
    if gated and isinstance(plan, linear.Tiles):
        plan = replace(plan, splits=1)  # the parts of a gate cannot be added after it
    x, residual = (torch.full((m, 96), float("nan"), dtype=dtype, device=DEVICE)[:, 5 : 5 + s] for s in (k, n))
    weight = torch.full((n * (1 + gated), 88), float("nan"), dtype=dtype, device=DEVICE)[:, 3 : 3 + k]
    for tensor in (x, residual, weight):
        tensor.copy_(normal(*tensor.shape, dtype=dtype))
    for bias, added in ((None, None), (normal(len(weight), dtype=dtype), None if gated else residual)):
        found = linear.multiply(x, weight, bias, added, plan=plan, gated=gated)
        run = ops.swiglu if gated else ops.linear
        given = wide(x, weight, bias) + ([] if gated else wide(added))
        assert found.dtype == dtype
        assert_close(found, run(*given, backend="reference"), tolerance)


@pytest.mark.parametrize("shape", [(70,), (1, 1, 70), (2, 3, 70), (7, 11, 70)])
def test_as_operations(shape: tuple[int, ...]):
    """Whatever the plan for the shape is."""
    x, weight = normal(*shape, dtype=torch.bfloat16), normal(24, 70, dtype=torch.bfloat16)
    residual, bias = normal(*shape[:-1], 24, dtype=torch.bfloat16), normal(24, dtype=torch.bfloat16)
    found = ops.linear(x, weight, bias, residual, backend="triton")
    assert_close(found, ops.linear(*wide(x, weight, bias, residual), backend="reference"), 1e-2)
    assert_close(
        ops.swiglu(x, weight, bias, backend="triton"), ops.swiglu(*wide(x, weight, bias), backend="reference"), 1e-2
    )


def test_plans():
    """Of the 4B model: where the weight has few long rows, K is split, but never that of a gate."""
    assert linear.plan_of(1, 151936, 2048) == linear.Rows() != linear.plan_of(1, 2048, 11008)
    assert all(linear.plan_of(m, 2048, 11008).splits > 1 for m in (2, 16, 64))
    assert linear.plan_of(256, 2048, 11008) is None and linear.plan_of(256, 2048, 11008, fp8=True).splits > 1
    assert all(linear.plan_of(m, 22016, 2048, gated=True).splits == 1 for m in range(2, 65))
    assert linear.plan_of(256, 22016, 2048, gated=True) is None
    assert linear.plan_of(32768, 2048, 11008) is None and linear.plan_of(0, 2048, 11008) is None


@DTYPES
@pytest.mark.parametrize("scale", [1e-4, 1e4])
@pytest.mark.parametrize("shape", [(24,), (3, 24), (2, 5, 700)])
def test_rms_norm(shape: tuple[int, ...], scale: float, dtype: torch.dtype, tolerance: float):
    x = scale * normal(*shape[:-1], shape[-1] + 9, dtype=dtype)[..., 4 : 4 + shape[-1]]
    weight = normal(shape[-1], dtype=dtype)
    found = pointwise.rms_norm(x, weight, 1e-6)
    assert found.dtype == dtype and found.shape == x.shape
    assert_close(found, ops.rms_norm(*wide(x, weight), 1e-6, backend="reference"), tolerance)


def test_unsupported():
    x, w = torch.randn(2, 24, device=DEVICE).bfloat16(), torch.randn(6, 24, device=DEVICE).bfloat16()
    cases = [(x.float(), w), (x.double(), w.double()), (x, w.clone().requires_grad_()), (x.T, w[:, :2])]
    for inputs in cases:
        for run in (linear.linear, linear.swiglu):
            with pytest.raises(NotImplementedError, match="Triton"):
                run(*inputs)
    with torch.autocast(DEVICE.type), pytest.raises(NotImplementedError, match="autocast"):
        linear.linear(x, w)
    for inputs in ((x, w[0].float()), (x.double(), w[0].double()), (x.clone().requires_grad_(), w[0])):
        with pytest.raises(NotImplementedError, match="Triton"):
            pointwise.rms_norm(*inputs, 1e-6)


@pytest.mark.parametrize("m, n, k", [(1, 24, 70), (5, 24, 8192), (5, 24, 70), (70, 24, 70)])
def test_with_the_norm_of_the_sum(m: int, n: int, k: int):
    """One row, parts of a split product, tiles, cuBLAS: to the bit what product and norm are one after the other."""
    x, weight, residual = (normal(*s, dtype=torch.bfloat16) for s in ((m, k), (n, k), (m, 1, 2 * n)))
    bias, norm = (normal(n, dtype=torch.bfloat16) for _ in range(2))
    residual = residual[..., n:]
    for b in (None, bias):
        total, normed = linear.linear_norm(x[:, None], weight, b, residual, None, norm, 1e-5)
        expected = linear.linear(x[:, None], weight, b, residual)
        assert torch.equal(total, expected)
        assert torch.equal(normed, pointwise.rms_norm(expected, norm, 1e-5))
        wanted = ops.linear_norm(
            *wide(x[:, None], weight, b, residual), None, norm.double(), 1e-5, backend="reference"
        )
        for found, exact in zip((total, normed), wanted, strict=True):
            assert found.shape == exact.shape == (m, 1, n)
            assert_close(found, exact, 1e-2)
