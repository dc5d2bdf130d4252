import pytest
import torch

from helpers import RELATIVE, assert_close
from infinitevl import ops
from infinitevl.ops.groups import Groups
from interpreter import DEVICE

pytestmark = pytest.mark.usefixtures("poisoned_memory")
TOLERANCE = {torch.float32: 10 * RELATIVE[torch.float32], torch.bfloat16: 2e-2}
RAGGED = Groups(
    2, torch.tensor([[0, 1, 2], [3, 4, 0]]), torch.tensor([0, 1, 2, 3, 4]),
    torch.tensor([[True, True, True], [True, True, False]])[:, None, None],
)  # fmt: skip


def on_device(groups: Groups) -> Groups:
    gather, scatter, mask = (x if x is None else x.to(DEVICE) for x in (groups.gather, groups.scatter, groups.mask))
    return Groups(groups.count, gather, scatter, mask)


def compare(time: int, heads: int, width: int, groups: Groups, backend: str, dtype: torch.dtype) -> None:
    qkv, angle = torch.randn(time, 3, heads, width).to(dtype), torch.randn(time, 1, width // 2)
    exact = ops.group_attention(qkv.double(), angle.double().cos(), angle.double().sin(), groups, backend="reference")
    qkv, cos, sin = (x.to(DEVICE) for x in (qkv, angle.cos(), angle.sin()))
    found = ops.group_attention(qkv, cos, sin, on_device(groups), backend=backend)
    assert found.dtype == dtype
    for token in range(time):
        assert_close(found[token].cpu(), exact[token], TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("backend", ["eager", "triton"])
@pytest.mark.parametrize(
    ("count", "size", "heads", "width"),
    [(3, 1, 1, 2), (2, 7, 3, 20), (1, 64, 2, 80), (2, 33, 1, 16), (1, 65, 2, 16)],
)
def test_it_is_the_reference(count: int, size: int, heads: int, width: int, backend: str, dtype: torch.dtype):
    """Of any even width and any size: of the larger ones only queries and keys are turned by a kernel."""
    compare(count * size, heads, width, Groups(count), backend, dtype)


@pytest.mark.parametrize("backend", ["eager", "triton"])
def test_groups_of_other_sizes(backend: str):
    compare(5, 2, 8, RAGGED, backend, torch.float32)


def test_large_scores():
    """Far beyond what exponentials can hold."""
    qkv = 100 * torch.randn(6, 3, 1, 16)
    angle = torch.zeros(6, 1, 8)
    exact = ops.group_attention(qkv.double(), angle.double().cos(), angle.double(), Groups(2), backend="reference")
    qkv, cos, sin = (x.to(DEVICE) for x in (qkv, angle.cos(), angle))
    found = ops.group_attention(qkv, cos, sin, Groups(2), backend="triton")
    assert_close(found.cpu(), exact, 1e-4)


def test_it_has_no_gradient_in_triton():
    qkv = torch.randn(2, 3, 1, 4, requires_grad=True, device=DEVICE)
    with pytest.raises(NotImplementedError, match="it has no gradient"):
        ops.group_attention(qkv, qkv[:, 0, :, :2], qkv[:, 0, :, :2], Groups(1), backend="triton")
