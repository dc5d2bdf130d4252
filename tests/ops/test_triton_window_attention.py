import pytest
import torch
from torch import Tensor

from helpers import assert_close, poison, ragged, unpad
from infinitevl import ops
from interpreter import DEVICE

wa = pytest.importorskip("infinitevl.ops.triton.attention")
write_ring = pytest.importorskip("infinitevl.ops.triton.finish").write_ring
pytestmark = pytest.mark.usefixtures("poisoned_memory")

WINDOW, WIDTH = 20, 16
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}
NAN = float("nan")


def tokens(batch: int, time: int, heads: int, groups: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """q, k and v, slices of one projection."""
    joint = torch.randn(batch, time, heads + 2 * groups, WIDTH, device=DEVICE, dtype=dtype)
    return list(joint.split([heads, groups, groups], dim=2))


def rings_after(counts: list[int], slots: int, sinks: int, groups: int, dtype: torch.dtype = torch.float32):
    """Rings into which row b wrote counts[b] random tokens, NaN wherever none was written, and the counts."""
    rings = torch.full((2, len(counts), groups, slots, WIDTH), NAN, device=DEVICE, dtype=dtype)
    _, k, v = tokens(len(counts), max(counts), groups, groups, dtype)
    written = torch.tensor(counts, device=DEVICE)
    ops.write_ring(*rings, k, v, torch.zeros_like(written), sinks=sinks, lengths=written, backend="eager")
    return [*rings, written]


def compare(inputs: list[Tensor], plan: "wa.Plan | None" = None, lengths: Tensor | None = None, **options) -> None:
    wide = [x.double() if x.is_floating_point() else x for x in inputs]
    expected = ops.window_attention(*wide, **options, lengths=lengths, backend="reference")
    if plan is None:
        o = wa.window_attention(*inputs, **options, lengths=lengths)
    else:
        o = wa.attend(*inputs, *[None] * (6 - len(inputs)), **options, lengths=lengths, plan=plan)
    assert o.dtype == inputs[0].dtype
    assert o.isfinite().all()
    assert_close(unpad(o, lengths), unpad(expected, lengths), TOLERANCE[o.dtype])


@pytest.mark.parametrize("time, sinks, spare, step", [(1, 3, 5, 2), (1, 0, -1, 5), (25, 3, 0, 9), (25, 0, -1, 9)])
def test_every_fill_level(time: int, sinks: int, spare: int, step: int):
    """From empty to three windows, a row each. A chunk of 25 is longer than the window."""
    fills = [*range(0, 3 * WINDOW + 3, step)]
    rings = rings_after(fills, sinks + WINDOW + spare, sinks, groups=1)
    plan = wa.Plan(16 if time == 1 else 64, 16, splits=2)
    compare([*tokens(len(fills), time, 2, 1), *rings], plan, window=WINDOW, sinks=sinks)


@pytest.mark.parametrize("window", range(17, 33))
def test_every_place_of_the_oldest_token_in_its_block(window: int):
    """Of which blocks need a mask, for a tile of 8 queries."""
    compare([*tokens(1, 8, 2, 1), *rings_after([80], window, 0, groups=1)], wa.Plan(16, 16, 1), window=window, sinks=0)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("heads, groups, splits", [(2, 2, 1), (4, 2, 4), (8, 1, 4), (3, 1, 2)])
def test_heads_splits_lengths(heads: int, groups: int, splits: int, dtype: torch.dtype):
    """Several tiles of queries, padding of NaN; of 4 parts, some have nothing to do."""
    lengths = ragged(7).to(DEVICE)
    inputs = [poison(x, lengths) for x in tokens(3, 7, heads, groups, dtype)]
    rings = rings_after([0, 7, 50], WINDOW + 2, 2, groups, dtype)
    compare([*inputs, *rings], wa.Plan(16, 16, splits), lengths, window=WINDOW, sinks=2)


@pytest.mark.parametrize("window, sinks, splits", [(WINDOW, 0, 1), (5, 30, 2), (40, 3, 1), (None, 0, 2)])
def test_long_chunk(window: int | None, sinks: int, splits: int):
    """Tiles that see nothing of the ring but its sinks, or have sinks in the chunk; with and without a ring."""
    plan, options = wa.Plan(64, 16, splits), {"window": window, "sinks": sinks}
    inputs = tokens(2, 101, 2, 1)
    compare(inputs, plan, **options)
    slots = 70 if window is None else window + sinks
    compare([*inputs, *rings_after([4, 70], slots, sinks, groups=1)], plan, **options)


@pytest.mark.parametrize("sinks", [0, 3])
@pytest.mark.parametrize("time", [1, 19])
@pytest.mark.parametrize("padded", [False, True])
def test_write_ring(time: int, sinks: int, padded: bool):
    counts = torch.tensor([0, 2, 15, 19, 70], device=DEVICE)
    lengths = torch.tensor([time, time // 2, 0, 1, time - 1], device=DEVICE) if padded else None
    _, k, v = (poison(x, lengths) for x in tokens(5, time, 2, 2))
    rings = torch.randn(2, 5, 2, sinks + 16, WIDTH, device=DEVICE)
    expected, found = rings.clone(), rings.clone()
    ops.write_ring(*expected, k, v, counts, sinks=sinks, lengths=lengths, backend="reference")
    write_ring(*found, k, v, counts, sinks=sinks, lengths=lengths)
    assert torch.equal(found, expected)
    assert not torch.equal(found, rings)


@pytest.mark.parametrize(
    "batch, time, rows, splits",
    [(1, 256, 64, 4), (1, 32, 64, 16), (1, 1, 16, 64), (8, 1, 16, 8), (64, 1, 16, 1), (16, 256, 128, 1)],
)
def test_plan_fills_the_processors(batch: int, time: int, rows: int, splits: int, monkeypatch: pytest.MonkeyPatch):
    """Of an H200, at the 4B model's sizes."""
    monkeypatch.setattr(wa, "_processors", lambda device: 132)
    q = torch.empty(batch, time, 16, 128, dtype=torch.bfloat16, device="meta")
    plan = wa.plan_of(q, 2, 8192 + time)
    assert (plan.block_m, plan.splits) == (rows, splits)


def test_ring_by_the_memory_accelerator():
    """Past the seam, sinks, a second row whose keys are few."""
    inputs, rings = tokens(2, 3, 4, 2), rings_after([150, 9], 70, 2, groups=2)
    compare([*inputs, *rings], wa.Plan(16, 16, 2, tma=True), window=68, sinks=2)


def test_unsupported():
    q, k, v = tokens(1, 3, 2, 1)
    cases = [
        ({"seq_idx": torch.zeros(1, 3, dtype=torch.int64)}, (q, k, v), "packed"),
        ({}, (q.requires_grad_(), k, v), "gradient"),
        ({}, (q.double(), k, v), "float64"),
        ({}, (q[..., :12], k[..., :12], v[..., :12]), "12 wide"),
    ]
    for options, inputs, message in cases:
        inputs = inputs if message == "gradient" else [x.detach() for x in inputs]
        with pytest.raises(NotImplementedError, match=message):
            wa.window_attention(*inputs, window=WINDOW, **options)
    strided = torch.zeros(1, 1, WINDOW, 2 * WIDTH, device=DEVICE)[..., :WIDTH]
    with pytest.raises(ValueError, match="contiguous"):
        write_ring(strided, strided, k, v, torch.zeros(1, dtype=torch.int64, device=DEVICE))
