"""The Triton kernels of the gated delta rule against the equations in float64, every new tensor full of NaN."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from helpers import assert_close, poison, ragged, segments, unpad
from infinitevl import ops
from interpreter import DEVICE

BATCH, HEADS, KEY, VALUE = 3, 2, 32, 16
ALL = "state lengths seq_idx"
Case = tuple[list[Tensor], dict[str, Tensor]]


@pytest.fixture(autouse=True)
def nan_in_new_tensors() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def gates(kind: str, *shape: int) -> Tensor:
    usual = -0.3 * torch.randn(shape).exp()
    match kind:
        case "usual":
            return usual
        case "keeps everything":
            return torch.zeros(shape)
        case "forgets":
            return -20 - 10 * torch.rand(shape)
        case "wipes":
            return torch.full(shape, -1e4)
        case "wipes sometimes":
            return torch.where(torch.rand(shape) < 0.2, -1e4, usual)
    raise ValueError(kind)


def make_case(
    time: int, variant: str = ALL, kind: str = "usual", dtype: torch.dtype = torch.float32, value: int = VALUE
) -> Case:
    """q, k, v, g, beta and maybe the initial state; lengths and seq_idx, then of more rows. Padding is NaN."""
    batch = BATCH if {"lengths", "seq_idx"} & set(variant.split()) else 1
    q, k = torch.randn(2, batch, time, HEADS, KEY).unbind()
    v, beta = torch.randn(batch, time, HEADS, value), torch.rand(batch, time, HEADS)
    rows = {}
    if "lengths" in variant:
        rows["lengths"] = ragged(time)
    if "seq_idx" in variant:
        rows["seq_idx"] = segments(batch, time)
    wide, narrow = (q, k, v), (gates(kind, *beta.shape), beta)
    inputs = [poison(x, rows.get("lengths")) for x in (*(x.to(dtype) for x in wide), *narrow)]
    return inputs + ([torch.randn(batch, HEADS, KEY, value)] if "state" in variant else []), rows


def run(backend: str, case: Case, weights: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """o of the real tokens and the last state, then the gradients of all inputs, of their sum with these weights."""
    device, dtype = (DEVICE, None) if backend == "triton" else (torch.device("cpu"), torch.float64)
    inputs, rows = case
    leaves = [x.to(device, dtype or x.dtype, copy=True).requires_grad_() for x in inputs]
    o, state = ops.gated_delta_rule(*leaves, **{name: x.to(device) for name, x in rows.items()}, backend=backend)
    assert o.isfinite().all()
    results = [unpad(o, rows.get("lengths")), state]
    factors = [unpad(weights[0], rows.get("lengths")), weights[1]]
    loss = sum((x * w.to(x)).sum() for x, w in zip(results, factors, strict=True))
    found = torch.autograd.grad(loss, leaves)  # type: ignore[arg-type]
    assert [x.dtype for x in found] == [x.dtype for x in leaves]
    return [x.detach().cpu() for x in results], [x.cpu() for x in found]


def compare(case: Case, tolerance: float) -> None:
    """Outputs within the tolerance, gradients within thrice that; those that nearly vanish, absolutely."""
    v = case[0][2]
    weights = [torch.randn(v.shape).to(v.dtype), torch.randn(len(v), HEADS, KEY, v.shape[-1])]
    (outputs, found), (exact, expected) = (run(backend, case, weights) for backend in ("triton", "reference"))
    assert outputs[0].dtype == v.dtype and outputs[1].dtype == torch.float32
    for mine, theirs in zip(outputs, exact, strict=True):
        assert_close(mine, theirs, tolerance)
    for name, mine, theirs in zip(("q", "k", "v", "g", "beta", "state"), found, expected, strict=False):
        distance = float((mine.double() - theirs).norm() / theirs.norm().clamp(min=1))
        assert distance <= 3 * tolerance, f"{name}: {distance:.2e}"  # zero at NaN padding, too


@pytest.mark.parametrize("time", [1, 3, 63, 64, 65])
def test_equals_reference(time: int):
    compare(make_case(time), 1e-5)


@pytest.mark.parametrize("variant", ["plain", "state", "lengths", "seq_idx"])
def test_variants(variant: str):
    compare(make_case(70, variant), 1e-5)


@pytest.mark.parametrize("kind", ["keeps everything", "forgets", "wipes", "wipes sometimes"])
def test_gates(kind: str):
    compare(make_case(70, "state", kind), 1e-5)


@pytest.mark.parametrize("kind", ["usual", "keeps everything", "wipes sometimes"])
def test_bfloat16(kind: str):
    compare(make_case(100, ALL, kind, torch.bfloat16), 5e-3)


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.bfloat16, 1e-2)])
def test_equal_keys(dtype: torch.dtype, tolerance: float):
    """The hardest inverse: it has two diagonals, but its powers reach 1e14."""
    (q, k, v, g, beta, state), rows = make_case(70, "state", "keeps everything", dtype)
    compare(([q, k[:, :1].expand_as(k), v, g, torch.ones_like(beta), state], rows), tolerance)


def test_many_values():
    """Several blocks of value columns, in every kernel."""
    compare(make_case(66, "state", value=128), 1e-5)


def test_no_gradient_of_the_state_alone():
    """A loss of one result only."""
    (q, *rest), _ = make_case(5, "state")
    leaf = q.to(DEVICE).requires_grad_()
    for result in ops.gated_delta_rule(leaf, *(x.to(DEVICE) for x in rest), backend="triton"):
        assert torch.autograd.grad(result.sum(), leaf, retain_graph=True)[0].isfinite().all()


def test_slices_are_read_where_they_lie():
    """q, k and v as parts of one projection, or with the heads before the tokens: the same to the bit."""
    inputs, _ = make_case(66, "state")
    q, k, v, *rest = (x.to(DEVICE) for x in inputs)
    expected = ops.gated_delta_rule(q, k, v, *rest, backend="triton")
    parts = torch.cat([x.flatten(2) for x in (q, k, v)], dim=-1).split([HEADS * KEY, HEADS * KEY, HEADS * VALUE], -1)
    sliced = [x.unflatten(-1, (HEADS, -1)) for x in parts]
    transposed = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k, v)]
    for given in (sliced, transposed):
        for mine, theirs in zip(ops.gated_delta_rule(*given, *rest, backend="triton"), expected, strict=True):
            assert torch.equal(mine, theirs)


@pytest.mark.parametrize(
    "width, value, dtype, options",
    [
        (16, 16, torch.float32, {"delta": False}),
        (16, 16, torch.float64, {}),
        (8, 16, torch.float32, {}),
        (16, 48, torch.float32, {}),
        (256, 16, torch.float32, {}),
    ],
)
def test_what_is_not_supported_is_refused(width: int, value: int, dtype: torch.dtype, options: dict):
    q, v = (torch.randn(1, 2, 1, n, dtype=dtype) for n in (width, value))
    with pytest.raises(NotImplementedError):
        ops.gated_delta_rule(q, q, v, -q[..., 0].abs(), q[..., 0], backend="triton", **options)
