import pytest
import torch

from helpers import assert_close
from infinitevl import ops
from interpreter import DEVICE

pytestmark = pytest.mark.usefixtures("poisoned_memory")
MEAN, STD = (0.48, 0.46, 0.41), (0.27, 0.26, 0.28)


def pictures(*shape: int) -> torch.Tensor:
    return torch.randint(256, shape, dtype=torch.uint8, device=DEVICE)


@pytest.mark.parametrize("backend", ["eager", "triton"])
@pytest.mark.parametrize(
    "frames, patch, merge", [((2, 1, 12, 8), 2, 2), ((1, 2, 15, 30), 5, 3), ((3, 3, 7, 14), 7, 1)]
)
def test_it_is_the_reference(frames: tuple[int, ...], patch: int, merge: int, backend: str):
    given = pictures(*frames, 3)
    exact = ops.patches(given, patch, merge, MEAN, STD, torch.float64, backend="reference")
    found = ops.patches(given, patch, merge, MEAN, STD, torch.float32, backend=backend)
    assert found.dtype == torch.float32
    assert_close(found, exact, 1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_the_kernel_is_exact(dtype: torch.dtype):
    """To the bit, for frames that repeat, and that lie in memory by colour, or inside larger ones."""
    whole = pictures(2, 3, 20, 40)
    for frames in (whole[:, None].permute(0, 1, 3, 4, 2), whole.permute(0, 2, 3, 1)[:, None, 4:16, 8:32]):
        repeated = frames.expand(-1, 2, -1, -1, -1)
        found, expected = (
            ops.patches(repeated, 2, 2, MEAN, STD, dtype, backend=backend) for backend in ("triton", "eager")
        )
        assert found.dtype == dtype and torch.equal(found, expected)


def test_other_colours():
    with pytest.raises(NotImplementedError, match="three colours"):
        ops.patches(pictures(1, 1, 4, 4, 4), 2, 2, (*MEAN, 0.5), (*STD, 0.2), torch.float32, backend="triton")
