import pytest
import torch
from torch import Tensor

from helpers import assert_close, assert_same_gradients, poison, ragged, segments, unpad
from infinitevl import ops

BATCH, CHANNELS, WIDTH = 3, 6, 4


def make_case(
    time: int, variant: str, dtype: torch.dtype = torch.float64
) -> tuple[list[Tensor | None], dict[str, Tensor]]:
    """x, weight and tail; lengths and seq_idx. Padding is NaN."""
    rows = {}
    if "lengths" in variant:
        rows["lengths"] = ragged(time)
    if "seq_idx" in variant:
        rows["seq_idx"] = segments(BATCH, time)
    x = poison(torch.randn(BATCH, time, CHANNELS, dtype=dtype), rows.get("lengths"))
    tail = torch.randn(BATCH, WIDTH - 1, CHANNELS, dtype=dtype) if "tail" in variant else None
    return [x, torch.randn(CHANNELS, WIDTH, dtype=dtype), tail], rows


@pytest.mark.parametrize(
    "dtype, tolerance", [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 2e-2)], ids=str
)
@pytest.mark.parametrize("variant", ["plain", "tail", "tail lengths", "tail seq_idx", "tail lengths seq_idx"])
@pytest.mark.parametrize("time", [1, 2, 3, 4, 65])
def test_equals_reference(time: int, variant: str, dtype: torch.dtype, tolerance: float):
    inputs, rows = make_case(time, variant, dtype)
    wide = [None if x is None else x.double() for x in inputs]
    expected, expected_tail = ops.short_convolution(*wide, **rows, backend="reference")
    y, tail = ops.short_convolution(*inputs, **rows, backend="eager")
    assert y.dtype == tail.dtype == dtype
    assert y.isfinite().all()
    assert_close(unpad(y, rows.get("lengths")), unpad(expected, rows.get("lengths")), tolerance)
    assert torch.equal(tail.double(), expected_tail)


@pytest.mark.parametrize("variant", ["plain", "tail lengths", "tail lengths seq_idx"])
@pytest.mark.parametrize("time", [1, 3, 63, 64, 65, 100])
def test_gradients(time: int, variant: str):
    inputs, rows = make_case(time, variant)
    weight_y, weight_tail = torch.randn_like(inputs[0]), torch.randn(BATCH, WIDTH - 1, CHANNELS).double()
    found = []
    for backend in ("eager", "reference"):
        leaves = [x.clone().requires_grad_() for x in inputs if x is not None]
        y, tail = ops.short_convolution(*leaves, **rows, backend=backend)
        y, weight = (unpad(x, rows.get("lengths")) for x in (y, weight_y))
        found.append(torch.autograd.grad((y * weight).sum() + (tail * weight_tail).sum(), leaves))
    assert_same_gradients(*found, 1e-10)


@pytest.mark.parametrize("packed", [False, True])
def test_gradcheck(packed: bool):
    inputs = [torch.randn(2, 5, 3), torch.randn(3, WIDTH), torch.randn(2, WIDTH - 1, 3)]
    rows = {"lengths": torch.tensor([5, 2]), "seq_idx": segments(2, 5) if packed else None}
    function = lambda *x: ops.short_convolution(*x, **rows, backend="eager")  # noqa: E731
    torch.autograd.gradcheck(function, [x.double().requires_grad_() for x in inputs])
