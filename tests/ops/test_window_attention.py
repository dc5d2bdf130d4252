import pytest
import torch
from torch import Tensor

from helpers import assert_close, assert_same_gradients, poison, segments, unpad
from infinitevl import ops

WINDOW, WIDTH = 16, 8
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2e-2}


def stream(batch: int, time: int, heads: int = 4, groups: int = 2, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    return [torch.randn(batch, time, h, WIDTH, dtype=dtype) for h in (heads, groups, groups)]


def rings_after(
    counts: list[int], slots: int, sinks: int, groups: int = 2, dtype: torch.dtype = torch.float64
) -> list[Tensor]:
    """Rings into which row b wrote counts[b] random tokens. What no token was written to is large garbage."""
    rings = [100 * torch.randn(len(counts), groups, slots, WIDTH, dtype=dtype) for _ in range(2)]
    _, k, v = stream(len(counts), max(max(counts), 1), groups=groups, dtype=dtype)
    nothing = torch.zeros(len(counts), dtype=torch.int64)
    ops.write_ring(*rings, k, v, nothing, sinks=sinks, lengths=torch.tensor(counts), backend="reference")
    return [*rings, torch.tensor(counts)]


def compare(inputs: list[Tensor], options: dict, dtype: torch.dtype = torch.float64) -> None:
    wide = [x.double() if x.is_floating_point() else x for x in inputs]
    expected = ops.window_attention(*wide, **options, backend="reference")
    o = ops.window_attention(*inputs, **options, backend="eager")
    assert o.dtype == dtype
    assert o.isfinite().all()
    assert_close(unpad(o, options.get("lengths")), unpad(expected, options.get("lengths")), TOLERANCE[dtype])


@pytest.mark.parametrize("sinks", [0, 3])
@pytest.mark.parametrize("spare", [-1, 0, 5])
@pytest.mark.parametrize("time", [1, 3, 40])
def test_ring_at_every_fill_level(time: int, spare: int, sinks: int):
    """Every row has another fill: empty, within the sinks, before, at and past the window, after several turns."""
    fills = [0, 1, 2, sinks, WINDOW - 1, WINDOW, WINDOW + 1, WINDOW + sinks, 3 * WINDOW + 2]
    rings = rings_after(fills, sinks + WINDOW + spare, sinks)
    compare([*stream(len(fills), time), *rings], {"window": WINDOW, "sinks": sinks})


@pytest.mark.parametrize("time", [1, 63, 64, 65, 100, 257])
@pytest.mark.parametrize("variant", ["plain", "ring", "lengths", "seq_idx", "ring lengths", "ring lengths seq_idx"])
def test_rows(time: int, variant: str):
    options = {"window": WINDOW, "sinks": 2}
    inputs = stream(3, time)
    if "lengths" in variant:
        options["lengths"] = torch.tensor([time, time * 2 // 3, 0])
        inputs = [poison(x, options["lengths"]) for x in inputs]
    if "seq_idx" in variant:  # every sequence has sinks of its own
        options["seq_idx"] = segments(3, time)
    if "ring" in variant:
        inputs += rings_after([5, WINDOW, 50], 2 + WINDOW, 2)
    compare(inputs, options)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("heads, groups", [(4, 4), (4, 2), (6, 1)])
def test_heads_and_dtypes(heads: int, groups: int, dtype: torch.dtype):
    inputs = [*stream(2, 30, heads, groups, dtype), *rings_after([9, 40], 3 + WINDOW, 3, groups, dtype)]
    compare(inputs, {"window": WINDOW, "sinks": 3}, dtype)


@pytest.mark.parametrize("counts", [None, [0, 7, 40]])
def test_without_window(counts: list[int] | None):
    """Sees everything: the slots are as many as the tokens, or more."""
    rings = [] if counts is None else rings_after(counts, 40, 0)
    compare([*stream(3, 33), *rings], {"window": None})


def dense(q: Tensor, k: Tensor, v: Tensor, window: int | None, sinks: int) -> Tensor:
    """One masked softmax over a whole stream."""
    i, j = torch.arange(q.shape[1])[:, None], torch.arange(q.shape[1])
    seen = (j <= i) & ((i - j < window) | (j < sinks)) if window else j <= i
    k, v = (x.repeat_interleave(q.shape[2] // k.shape[2], dim=2) for x in (k, v))
    scores = torch.einsum("bihd,bjhd->bhij", q, k) * q.shape[-1] ** -0.5
    return torch.einsum("bhij,bjhd->bihd", scores.masked_fill(~seen, float("-inf")).softmax(-1), v)


@pytest.mark.parametrize("window, sinks", [(300, 5), (300, 0), (700, 5), (3, 600), (None, 0)])
@pytest.mark.parametrize("before", [0, 2, 450])
def test_long_chunks_equal_one_softmax(window: int | None, sinks: int, before: int):
    """Chunks over several blocks of queries, with and without a ring, against a computation without either."""
    q, k, v = stream(2, before + 1100)
    rings = []
    if before:
        slots = before if window is None else sinks + window
        rings = [torch.zeros(2, 2, slots, WIDTH).double() for _ in range(2)]
        ops.write_ring(*rings, k[:, :before], v[:, :before], torch.zeros(2).long(), sinks=sinks, backend="eager")
        rings.append(torch.full((2,), before))
    chunk = [x[:, before:] for x in (q, k, v)]
    o = ops.window_attention(*chunk, *rings, window=window, sinks=sinks, backend="eager")
    assert_close(o, dense(q, k, v, window, sinks)[:, before:], 1e-12)


@pytest.mark.parametrize("sinks", [0, 3])
@pytest.mark.parametrize("time", [1, 5, 16, 17, 19, 20, 45, 100])
@pytest.mark.parametrize("padded", [False, True])
def test_write_ring_equals_reference(time: int, sinks: int, padded: bool):
    counts = torch.tensor([0, 2, 15, 16, 19, 70])
    lengths = torch.tensor([time, time // 2, 0, 1, time - 1, time]) if padded else None
    _, k, v = (poison(x, lengths) for x in stream(6, time))
    rings = torch.randn(2, 6, 2, sinks + 16, WIDTH, dtype=torch.float64)
    expected, found, before = rings.clone(), rings.clone(), rings.clone()
    ops.write_ring(*expected, k, v, counts, sinks=sinks, lengths=lengths, backend="reference")
    ops.write_ring(*found, k, v, counts, sinks=sinks, lengths=lengths, backend="eager")
    assert torch.equal(found, expected)
    assert not torch.equal(found, before)
    assert found.isfinite().all()


@pytest.mark.parametrize("variant", ["plain", "ring lengths", "lengths seq_idx"])
@pytest.mark.parametrize("time", [1, 63, 64, 65, 100])
def test_gradients_equal_reference(time: int, variant: str):
    options = {"window": WINDOW, "sinks": 2}
    inputs, weight = stream(2, time), torch.randn(2, time, 4, WIDTH, dtype=torch.float64)
    if "lengths" in variant:
        options["lengths"] = torch.tensor([time, time // 2])
        inputs = [poison(x, options["lengths"]) for x in inputs]
    if "seq_idx" in variant:
        options["seq_idx"] = segments(2, time)
    rings = rings_after([5, 50], 2 + WINDOW, 2) if "ring" in variant else []
    found = []
    for backend in ("eager", "reference"):
        leaves = [x.clone().requires_grad_() for x in inputs]
        o = ops.window_attention(*leaves, *rings, **options, backend=backend)
        o, w = (unpad(x, options.get("lengths")) for x in (o, weight))
        found.append(torch.autograd.grad((o * w).sum(), leaves))
    assert_same_gradients(*found, 1e-10)


def test_gradcheck():
    rings = rings_after([2, 9], 1 + 4, sinks=1, groups=1)
    rows = {"lengths": torch.tensor([6, 4]), "window": 4, "sinks": 1}
    function = lambda *x: ops.window_attention(*x, *rings, **rows, backend="eager")  # noqa: E731
    torch.autograd.gradcheck(function, [x.requires_grad_() for x in stream(2, 6, 2, 1)])
