import pytest
import torch

from infinitevl import ops
from interpreter import DEVICE

pytest.importorskip("infinitevl.ops.triton.counters")


@pytest.mark.parametrize("backend", ["eager", "triton"])
@pytest.mark.parametrize("time", [1, 7, 1100])
@pytest.mark.parametrize("slots", [None, [2, -1, 4, 0, -1]])
@pytest.mark.parametrize("ragged", [False, True])
def test_counters(backend: str, time: int, slots: list[int] | None, ragged: bool):
    """Text, images, both, nothing; positions that are a view of others and fall behind the stream's own."""
    vision = torch.rand(5, time, device=DEVICE) < torch.tensor([0, 0.5, 0.01, 1, 0.5], device=DEVICE)[:, None]
    positions = torch.randint(0, 3000, (5, time, 3), device=DEVICE).permute(2, 0, 1)
    rows = {
        "lengths": torch.tensor([time, time // 2, time, 0, 1], device=DEVICE) if ragged else None,
        "slots": None if slots is None else torch.tensor(slots, device=DEVICE),
    }
    found = torch.randint(0, 2000, (3, 5), device=DEVICE)
    expected = found.clone()
    for counters, name in ((found, backend), (expected, "reference")):
        run, position, count = counters
        ops.advance(run, position, count, positions, vision, **rows, backend=name)
    assert torch.equal(found, expected)
