import pytest
import torch

from infinitevl import ops
from infinitevl.model.rope import frequencies
from interpreter import DEVICE

pytest.importorskip("infinitevl.ops.triton.rotary")


@pytest.mark.parametrize("backend", ["eager", "triton"])
@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 2e-15), (torch.float32, 1e-7)])
@pytest.mark.parametrize("far", [0, -(2**20), 2**40])
def test_angles(far: int, dtype: torch.dtype, tolerance: float, backend: str):
    """Against fractions; positions as a slice of more, and a number of frequencies that is no power of two."""
    positions = torch.randint(0, 200_000, (3, 2, 9), device=DEVICE)[:, :, 2:] + far
    f = frequencies(24, 1e6, DEVICE)
    axes = torch.randint(3, (12,), device=DEVICE)
    expected = ops.rotary_table(positions, f, axes, torch.float64, backend="reference")
    found = ops.rotary_table(positions, f, axes, dtype, backend=backend)
    for mine, exact in zip(found, expected, strict=True):
        assert mine.dtype == dtype and mine.shape == (2, 7, 1, 12)
        assert (mine.double() - exact).abs().max() < tolerance
