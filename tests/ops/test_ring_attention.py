"""What an attention layer does between its products, by every backend, against the references in float64."""

import pytest
import torch
from torch import Tensor

from helpers import assert_close, poison, unpad
from infinitevl import ops
from interpreter import DEVICE

wa = pytest.importorskip("infinitevl.ops.triton.attention")
ring = pytest.importorskip("infinitevl.ops.triton.ring")
pytestmark = pytest.mark.usefixtures("poisoned_memory", "two_parts")

WINDOW, SINKS, WIDTH, HEADS, GROUPS = 20, 3, 16, 4, 2
FILLS = (0, 1, 2, WINDOW - 1, WINDOW, WINDOW + 1, 3 * WINDOW + 17)
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2e-2}
BACKENDS = [("eager", torch.float64), ("triton", torch.float32), ("triton", torch.bfloat16)]
NOTHING = {torch.float64: 100.0, torch.float32: float("nan"), torch.bfloat16: float("nan")}  # where no token is


@pytest.fixture
def two_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """So few keys would not be split."""
    monkeypatch.setattr(ring, "plan_for", lambda q, *_: wa.Plan(16 if q.shape[1] < 9 else 64, 16, splits=2))


def chunk(batch: int, time: int, dtype: torch.dtype) -> list[Tensor]:
    """q, k and v, slices of one product, and angles."""
    joint = torch.randn(batch, time, (HEADS + 2 * GROUPS) * WIDTH, device=DEVICE, dtype=dtype)
    q, k, v = (x.unflatten(-1, (-1, WIDTH)) for x in joint.split([HEADS * WIDTH, GROUPS * WIDTH, GROUPS * WIDTH], -1))
    angle = torch.rand(batch, time, 1, WIDTH // 2, device=DEVICE, dtype=torch.float64) * 7
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    return [q, k, v, angle.cos().to(wide), angle.sin().to(wide)]


def filled(fills: list[int], slots: Tensor, places: int, sinks: int, dtype: torch.dtype) -> Tensor:
    """Rings [2, places, ...] into which row b wrote fills[b] tokens."""
    rings = torch.full((2, places, GROUPS, sinks + WINDOW, WIDTH), NOTHING[dtype], device=DEVICE, dtype=dtype)
    counts = torch.tensor(fills, device=DEVICE)
    k, v = torch.randn(2, len(fills), max(*fills, 1), GROUPS, WIDTH, device=DEVICE, dtype=dtype)
    rows = rings[:, slots]
    ops.write_ring(*rows, k, v, torch.zeros_like(counts), sinks=sinks, lengths=counts, backend="eager")
    rings[:, slots] = rows
    return rings


def compare(inputs: list[Tensor], rings: Tensor, count: Tensor, backend: str, **options) -> None:
    """Outputs and rings, those of rows that rest and of padding included."""
    exact = rings.double().clone()
    wide = [x.double() for x in inputs]
    expected = ops.ring_attention(*wide, *exact, count, **options, backend="reference")
    o = ops.ring_attention(*inputs, *rings, count, **options, backend=backend)
    tolerance, lengths = TOLERANCE[o.dtype], options.get("lengths")
    assert o.dtype == inputs[0].dtype
    assert o.isfinite().all()
    assert_close(unpad(o, lengths), unpad(expected, lengths), tolerance)
    assert torch.equal(rings.isnan(), exact.isnan())
    assert_close(rings.nan_to_num(), exact.nan_to_num(), tolerance)


@pytest.mark.parametrize("backend, dtype, time, sinks", [
    *((*BACKENDS[i], time, sinks) for i in (0, 1) for time, sinks in ((1, SINKS), (5, 0), (WINDOW + 7, SINKS))),
    (*BACKENDS[2], 3, 0),
])  # fmt: skip
def test_every_fill_level(backend: str, dtype: torch.dtype, time: int, sinks: int):
    fills = list(FILLS if time == 1 else FILLS[::3])
    rings = filled(fills, torch.arange(len(fills), device=DEVICE), len(fills), sinks, dtype)
    count = torch.tensor(fills, device=DEVICE)
    compare(chunk(len(fills), time, dtype), rings, count, backend, window=WINDOW, sinks=sinks)


@pytest.mark.parametrize("backend, dtype", BACKENDS)
def test_places_in_a_pool(backend: str, dtype: torch.dtype):
    """Out of order, rows that rest among them, padding; places that no row has stay as they are."""
    slots = torch.tensor([5, -1, 0, 3, -7], device=DEVICE)
    fills, lengths = [WINDOW + 9, 0, 7, 2, 0], torch.tensor([9, 9, 4, 0, 5])
    awake = slots >= 0
    rings = filled([f for f, s in zip(fills, slots.tolist(), strict=True) if s >= 0], slots[awake], 7, SINKS, dtype)
    inputs = [poison(x, lengths) for x in chunk(5, 9, dtype)]
    lengths, count = lengths.to(DEVICE), torch.tensor(fills, device=DEVICE)
    compare(inputs, rings, count, backend, window=WINDOW, sinks=SINKS, lengths=lengths, slots=slots)


@pytest.mark.parametrize("backend, dtype", BACKENDS[:2])
def test_stream_equals_one_chunk(backend: str, dtype: torch.dtype):
    """Frames and tokens through a ring from empty to past three windows, against one chunk without a ring."""
    sizes = [1, 9, 1, 27, 9, 9, 1]
    whole = chunk(1, sum(sizes), dtype)
    rings = torch.full((2, 1, GROUPS, WINDOW, WIDTH), NOTHING[dtype], device=DEVICE, dtype=dtype)
    count, found = torch.zeros(1, dtype=torch.int64, device=DEVICE), []
    for piece in zip(*(x.split(sizes, dim=1) for x in whole), strict=True):
        found.append(ops.ring_attention(*piece, *rings, count, window=WINDOW, backend=backend))
        count += piece[0].shape[1]
    empty = torch.zeros(2, 1, GROUPS, sum(sizes), WIDTH, device=DEVICE, dtype=torch.float64)
    exact = ops.ring_attention(
        *(x.double() for x in whole), *empty, torch.zeros_like(count), window=WINDOW, backend="reference"
    )
    assert_close(torch.cat(found, dim=1), exact, TOLERANCE[dtype])


def test_gradient_is_not_lost():
    inputs, rings, count = chunk(1, 2, torch.float32), filled([4], torch.tensor([0]), 1, 0, torch.float32), [4]
    inputs[0] = inputs[0].detach().requires_grad_()
    with pytest.raises(NotImplementedError, match="no gradient"):
        ops.ring_attention(*inputs, *rings, torch.tensor(count, device=DEVICE), window=WINDOW, backend="triton")


@pytest.mark.skipif(DEVICE.type != "cuda", reason="needs a GPU")
@pytest.mark.parametrize("time", [1, 9])
def test_graph_is_exact_at_every_fill_level(time: int):
    """One graph of a pool of streams, captured on empty rings, replayed over three windows; a row falls asleep."""
    inputs, slots = chunk(3, time, torch.float32), torch.tensor([2, 0, 3], device=DEVICE)
    rings = torch.full((2, 4, GROUPS, SINKS + WINDOW, WIDTH), NOTHING[torch.float32], device=DEVICE)
    exact, count = rings.double(), torch.zeros(3, dtype=torch.int64, device=DEVICE)
    options = {"window": WINDOW, "sinks": SINKS, "slots": slots}

    def step() -> Tensor:
        o = ops.ring_attention(*inputs, *rings, count, **options, backend="triton")
        count.add_(time)
        return o

    step()
    rings.fill_(NOTHING[torch.float32])
    count.zero_()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = step()
    for i in range(3 * WINDOW // time + 2):
        for x in inputs[:3]:
            x.normal_()
        if i == 5:
            slots[1] = -1
        expected = ops.ring_attention(*(x.double() for x in inputs), *exact, count, **options, backend="reference")
        graph.replay()
        assert_close(found, expected, 1e-5)
    assert torch.equal(rings.isnan(), exact.isnan())
    assert_close(rings.nan_to_num(), exact.nan_to_num(), 1e-5)
