import pytest
import torch

from infinitevl.model.transfer import copy_bytes


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.bool, torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("shape", [(), (0,), (5,), (2, 3, 4)])
def test_bytes_are_copied(shape: tuple[int, ...], dtype: torch.dtype):
    """Of tensors whose elements lie in another order, too."""
    source = (100 * torch.randn(shape)).to(dtype)
    for given in (source, source.mT.contiguous().mT if source.dim() > 1 else source):
        target = torch.zeros(shape, dtype=dtype)
        copy_bytes(target, given)
        assert torch.equal(target, source)
