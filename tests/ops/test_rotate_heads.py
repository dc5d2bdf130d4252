import pytest
import torch

from helpers import RELATIVE, assert_close
from infinitevl import ops
from interpreter import DEVICE


@pytest.mark.parametrize("backend", ["eager", "triton"])
@pytest.mark.parametrize(("time", "heads", "width"), [(1, 1, 2), (7, 3, 20), (33, 2, 16)])
def test_it_is_the_reference(backend: str, time: int, heads: int, width: int):
    """Heads of any even width; values stay as they are."""
    qkv, angle = torch.randn(time, 3, heads, width), torch.randn(time, 1, width // 2)
    exact = ops.rotate_heads(qkv.double(), angle.double().cos(), angle.double().sin(), backend="reference")
    found = ops.rotate_heads(*(x.to(DEVICE) for x in (qkv, angle.cos(), angle.sin())), backend=backend)
    for mine, theirs in zip(found, exact, strict=True):
        assert_close(mine.cpu(), theirs, RELATIVE[torch.float32])


def test_it_has_no_gradient_in_triton():
    qkv = torch.randn(2, 3, 1, 4, requires_grad=True, device=DEVICE)
    with pytest.raises(NotImplementedError):
        ops.rotate_heads(qkv, *torch.randn(2, 2, 1, 2, device=DEVICE), backend="triton")
