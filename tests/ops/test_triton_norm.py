import pytest
import torch

from helpers import assert_close
from infinitevl import ops
from interpreter import DEVICE

norm = pytest.importorskip("infinitevl.ops.triton.norm")
pytestmark = pytest.mark.usefixtures("poisoned_memory")


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)], ids=str)
@pytest.mark.parametrize("scale", [1e-4, 1e4])
@pytest.mark.parametrize("shape", [(24,), (3, 24), (2, 5, 3, 24)])
def test_equals_reference(shape: tuple[int, ...], scale: float, dtype: torch.dtype, tolerance: float):
    """The gate is a slice of a wider tensor."""
    x, weight = (scale * torch.randn(s, device=DEVICE, dtype=dtype) for s in (shape, shape[-1]))
    gate = 3 * torch.randn(*shape[:-1], 40, device=DEVICE, dtype=dtype)[..., 7 : 7 + shape[-1]]
    expected = ops.gated_rms_norm(x.double(), gate.double(), weight.double(), 1e-5, backend="reference")
    found = norm.gated_rms_norm(x, gate, weight, 1e-5)
    assert found.dtype == dtype
    assert_close(found, expected, tolerance)


def test_unsupported():
    x = torch.randn(2, 24, device=DEVICE)
    for inputs in ((x.double(), x.double(), x[0].double()), (x.clone().requires_grad_(), x, x[0])):
        with pytest.raises(NotImplementedError, match="Triton"):
            norm.gated_rms_norm(*inputs, 1e-5)
