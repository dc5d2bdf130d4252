"""Weights in float8: what rounding costs, and the kernels against float64 with the same rounded numbers."""

import pytest
import torch
from torch import Tensor

from helpers import assert_close, relative
from infinitevl import ops
from infinitevl.ops.mixing import DeltaInputs, DeltaWeights
from infinitevl.ops.rounding import FEW, FP8, LARGEST, Rounded, round_rows
from interpreter import DEVICE

fp8 = pytest.importorskip("infinitevl.ops.triton.fp8")
linear = pytest.importorskip("infinitevl.ops.triton.linear")
pointwise = pytest.importorskip("infinitevl.ops.triton.pointwise")
pytestmark = pytest.mark.usefixtures("poisoned_memory")

TYPICAL = 0.0265  # relative error of a number whose logarithm is evenly spread: 3 bits of mantissa, to nearest
BFLOAT16 = 1e-2
PLANS = [
    (1, linear.Rows(4, 32)),
    (1, linear.Rows(1, 128)),
    (21, linear.Tiles(16, 16, 32)),
    (21, linear.Tiles(32, 32, 16, splits=3)),
    (5, linear.Tiles(16, 32, 64, splits=2)),
]


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, device=DEVICE).bfloat16()


def weight(n: int, k: int) -> Rounded:
    """Rows of sizes far apart, a slice of a wider tensor."""
    values, scale = round_rows(normal(n, k) * 10 ** torch.linspace(-3, 3, n, device=DEVICE)[:, None])
    wide = torch.full((n, k + 16), 77.0, device=DEVICE).to(FP8)
    wide[:, :k] = values
    return Rounded(wide[:, :k], scale)


def off(found: Rounded, exact: Tensor) -> float:
    """The largest error of rounding, in units of what it may be: half of the last place."""
    scale, exact = found.scale[..., None].double(), exact.double()
    return float(((found.to(torch.float64) - exact).abs() / torch.maximum(exact.abs() / 16, scale / 1024)).max())


@pytest.mark.parametrize("size", [1e-6, 1.0, 1e6])
def test_rounding(size: float):
    x = size * torch.randn(50, 301, device=DEVICE)
    x[0] = 0
    found = round_rows(x)
    assert found.values.dtype == FP8 and found.scale.dtype == torch.float32 and found.shape == x.shape
    assert off(found, x) <= 1 + 1e-5
    assert 0.9 * TYPICAL < relative(found.to(torch.float32), x) < 1.1 * TYPICAL
    assert torch.equal(found.values[1:].float().abs().amax(1), torch.full((49,), LARGEST, device=DEVICE))
    assert not found.to(torch.float32)[0].any()


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("m, plan", PLANS, ids=str)
def test_few_rows(m: int, plan: linear.Rows | linear.Tiles, gated: bool):
    """Exact but for bfloat16: x is not rounded."""
    if gated and isinstance(plan, linear.Tiles) and plan.splits > 1:
        pytest.skip("the parts of a gate cannot be added after it")
    n, k = 19, 77
    x, (w, scale) = normal(m, k), weight(n * (1 + gated), k)
    for bias, residual in ((None, None), (normal(len(w)), None if gated else normal(m, n))):
        found = linear.multiply(x, w, bias, residual, scale, plan=plan, gated=gated)
        given = [None if y is None else y.double() for y in (x, w, bias)]
        if gated:
            exact = ops.swiglu(*given, scale, backend="reference")
        else:
            exact = ops.linear(*given, None if residual is None else residual.double(), scale, backend="reference")
        assert found.dtype == torch.bfloat16
        for column in range(n):
            assert_close(found[:, column], exact[:, column], BFLOAT16)


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("plan", [linear.Tiles(16, 16, 32), linear.Tiles(32, 16, 32, splits=2)], ids=str)
def test_many_rows_in_tiles(plan: linear.Tiles, gated: bool):
    """float8 on both sides, scales on both sides."""
    if gated and plan.splits > 1:
        pytest.skip("the parts of a gate cannot be added after it")
    m, n, k = 21, 19, 77
    x, (w, scale) = round_rows(normal(m, k)), weight(n * (1 + gated), k)
    bias, residual = normal(len(w)), None if gated else normal(m, n)
    found = linear.multiply(x, w, bias, residual, scale, plan=plan, gated=gated)
    given = x.to(torch.float64), w, bias
    if gated:
        exact = ops.swiglu(*given, scale, backend="reference")
    else:
        exact = ops.linear(*given, residual, scale, backend="reference")
    assert found.dtype == torch.bfloat16
    for column in range(n):
        assert_close(found[:, column], exact[:, column], BFLOAT16)


@pytest.mark.parametrize("m", [FEW + 1, 32, 33, fp8.TILED, fp8.TILED + 1])
def test_gates_of_many_rows(m: int):
    """As they are dispatched, whether one kernel makes them or two: x and weights in float8, with biases."""
    x, (w, scale), bias = round_rows(normal(m, 48)), weight(64, 48), normal(64)
    exact = ops.swiglu(x.to(torch.float64), w, bias.double(), scale, backend="reference")
    assert_close(ops.swiglu(x, w, bias, scale, backend="triton"), exact, 2 * BFLOAT16)
    found = ops.swiglu(x, w, bias, scale, rounded=True, backend="triton")
    assert isinstance(found, Rounded) or m <= fp8.TILED
    assert relative(found.to(torch.float64), exact) < 1.1 * TYPICAL


def test_parts_with_the_norm_of_the_sum():
    """To the bit what product and norm are one after the other, x rounded before or here."""
    m, n, k = FEW + 1, 32, 4096
    assert linear.plan_of(m, n, k, fp8=True).splits > 1
    x, (w, scale), residual, norm = normal(m, k), weight(n, k), normal(m, n), normal(n)
    expected = linear.linear(x, w, None, residual, scale)
    for given in (x, round_rows(x)):
        total, normed = linear.linear_norm(given, w, None, residual, scale, norm, 1e-5)
        assert torch.equal(total, expected) and torch.equal(normed, pointwise.rms_norm(expected, norm, 1e-5))
    exact = ops.linear(round_rows(x).to(torch.float64), w, None, residual, scale, backend="reference")
    assert_close(expected, exact, BFLOAT16)


def test_plans():
    """Of the 4B model, as measured: of a frame, K is split where the weight has few long rows, and tiles are small
    where it has few short ones; what is long and wide is cuBLAS's, and all that has many rows. Of answers, K is split
    where the weight has few rows, and a gate's never. One row is read by what is fastest for how many rows the weight
    has, and how long they are."""
    few = (2048, 2048), (2048, 4096), (2048, 11008)
    for n, k in few:
        assert linear.plan_of(64, n, k, fp8=True).splits > 1 and linear.plan_of(4096, n, k, fp8=True) is None
    assert all(linear.plan_of(256, n, k, fp8=True).splits > 1 for n, k in few[1:])
    small = {linear.plan_of(256, n, 2048, fp8=True) for n in (2048, 2560)}
    assert [plan.splits * plan.block_m for plan in small] == [64]
    assert linear.plan_of(256, 22016, 2048, gated=True, fp8=True) is linear.plan_of(256, 12320, 2048, fp8=True) is None
    vision = [linear.plan_of(1024, 1280, k, fp8=True) for k in (1280, 3456)]
    assert len({*vision, linear.plan_of(1024, 3840, 1280, fp8=True)}) == 2 and None not in vision
    assert all(linear.plan_of(m, 22016, 2048, gated=True, fp8=True).splits == 1 for m in range(17, 65))
    shapes = (2048, 2048), (151936, 2048), (2048, 4096), (2048, 11008)
    plans = [linear.plan_of(1, n, k, fp8=True) for n, k in shapes]
    assert len({*plans, linear.plan_of(1, 22016, 2048, gated=True, fp8=True)}) == 5


def test_many_rows():
    """Exact with x rounded, too, rounded here or by who made it; twice the error of one rounding in square."""
    shape, n, k = (5, 13), 32, 48
    assert FEW < 5 * 13
    x, (w, scale), bias, residual = normal(*shape, k), weight(n, k), normal(n), normal(*shape, n)
    rounded = round_rows(x)
    exact = ops.linear(rounded.to(torch.float64), w, bias, residual, scale, backend="reference")
    for given in (x, rounded):
        assert_close(ops.linear(given, w, bias, residual, scale, backend="triton"), exact, BFLOAT16)
    assert_close(ops.linear(rounded, w, bias, residual, scale, backend="eager"), exact, BFLOAT16)
    gated = ops.swiglu(rounded, w, None, scale, backend="triton")
    exact = ops.swiglu(rounded.to(torch.float64), w, None, scale, backend="reference")
    assert_close(gated, exact, 2 * BFLOAT16)
    again = ops.swiglu(x, w, None, scale, rounded=True, backend="triton")
    assert isinstance(again, Rounded) and again.shape == gated.shape and off(again, gated) < 1.2
    plain = normal(n, k)
    w, scale = round_rows(plain)
    found = ops.linear(x, w, None, None, scale, backend="triton")
    assert relative(found, ops.linear(x.double(), plain.double())) < 1.6 * TYPICAL


@pytest.mark.parametrize("size", [1e-4, 1e4])
def test_results_that_are_rounded(size: float):
    """Whatever is rounded where it is made is within half of the last place of what it is elsewhere."""
    x, norm = size * normal(5, 13, 72), normal(72)
    assert off(fp8.round_rows(x[0]), x[0]) <= 1 + 1e-5
    found = pointwise.rms_norm(x, norm, 1e-6, rounded=True)
    assert isinstance(found, Rounded) and found.shape == x.shape and found.scale.shape == x.shape[:2]
    assert off(found, ops.rms_norm(x.double(), norm.double(), 1e-6)) < 1 + 1e-3
    assert isinstance(pointwise.rms_norm(x[0], norm, 1e-6, rounded=True), Tensor)
    assert isinstance(pointwise.rms_norm(x.float(), norm.float(), 1e-6, rounded=True), Tensor)


@pytest.mark.parametrize("piece", [8192, 10])
def test_gated_norms_that_are_rounded(piece: int, monkeypatch: pytest.MonkeyPatch):
    """Of all heads of a token together, however long a prompt is: what it is in bfloat16, within half of the last
    place, and zeros at padding and in rows that rest. One token a row, and few in all, stay as they are."""
    monkeypatch.setattr("infinitevl.ops.triton.frame.PIECE", piece)
    heads, key, value = 3, 16, 32
    widths = [heads * n for n in (key, key, value, value, 1, 1)]
    weights = DeltaWeights(
        *(normal(heads * n, 4) for n in (key, key, value)), normal(heads), normal(heads), normal(value).abs(), 1e-5
    )
    lengths, slots = torch.tensor([15, 4, 15], device=DEVICE), torch.tensor([3, 0, -1], device=DEVICE)

    def mixed(time: int, rounded: bool) -> Tensor | Rounded:
        torch.manual_seed(time)
        parts = normal(3, time, sum(widths)).split(widths, dim=-1)
        x = DeltaInputs(*(y.unflatten(-1, (heads, -1)) for y in parts[:4]), *parts[4:])
        memory, tail = torch.randn(4, heads, key, value, device=DEVICE), normal(4, 3, heads * (2 * key + value))
        memory[[1, 2]], tail[[1, 2]] = float("nan"), float("nan")
        rows = {"lengths": lengths.clamp(max=time), "slots": slots}
        return ops.delta_mixer(x, weights, memory, tail, **rows, rounded=rounded, backend="triton")

    found, exact = mixed(15, True), mixed(15, False)
    assert isinstance(found, Rounded) and found.shape == exact.shape == (3, 15, heads * value)
    numbers = found.to(torch.float32)
    assert off(found, exact) < 1.2 and not numbers[1, 4:].any() and not numbers[2].any() and numbers[0].any(-1).all()
    assert all(torch.equal(mixed(time, True), mixed(time, False)) for time in (1, FEW // 3))


def test_unsupported():
    """Sizes that are no multiples of 16 bytes, with more rows than tiles take: the eager operation takes them."""
    x, (w, scale) = normal(fp8.TILED + 1, 40), weight(24, 40)
    with pytest.raises(NotImplementedError, match="multiples of 16"):
        ops.linear(x, w, None, None, scale, backend="triton")
    assert_close(ops.linear(x[:3], w, None, None, scale, backend="triton"), ops.linear(x[:3], w, scale=scale), 1e-2)
    rounded = round_rows(x[: FEW + 1])
    exact = ops.linear(rounded.to(torch.float64), w, scale=scale, backend="reference")
    assert_close(ops.linear(rounded, w, None, None, scale, backend="triton"), exact, BFLOAT16)
    exact = ops.linear(x.double(), w, scale=scale, backend="reference")
    assert_close(ops.linear(x, w, scale=scale, backend="eager"), exact, BFLOAT16)
