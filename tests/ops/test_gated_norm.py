import pytest
import torch

from helpers import assert_close, assert_same_gradients
from infinitevl import ops


@pytest.mark.parametrize(
    "dtype, tolerance", [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 2e-2)], ids=str
)
@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
@pytest.mark.parametrize("shape", [(1, 1), (3, 65, 2, 24)])
def test_equals_reference(shape: tuple[int, ...], scale: float, dtype: torch.dtype, tolerance: float):
    x, gate = scale * torch.randn(shape, dtype=dtype), 3 * torch.randn(shape, dtype=dtype)
    weight = torch.randn(shape[-1], dtype=dtype)
    expected = ops.gated_rms_norm(x.double(), gate.double(), weight.double(), 1e-5, backend="reference")
    found = ops.gated_rms_norm(x, gate, weight, 1e-5, backend="eager")
    assert found.dtype == dtype
    assert_close(found, expected, tolerance)


def test_gradients():
    inputs = [x.double().requires_grad_() for x in (torch.randn(2, 3, 5), torch.randn(2, 3, 5), torch.randn(5))]
    weight = torch.randn(2, 3, 5).double()
    eager, reference = (
        torch.autograd.grad((ops.gated_rms_norm(*inputs, 1e-5, backend=name) * weight).sum(), inputs)
        for name in ("eager", "reference")
    )
    assert_same_gradients(eager, reference, 1e-12)
    torch.autograd.gradcheck(lambda *x: ops.gated_rms_norm(*x, 1e-5, backend="eager"), inputs)
