"""Between the projections of a Gated DeltaNet layer, in Triton, against the equations in float64."""

import pytest
import torch
from torch import Tensor

from helpers import assert_close, poison
from infinitevl import ops
from infinitevl.ops.mixing import DeltaInputs, DeltaWeights
from interpreter import DEVICE

mixer = pytest.importorskip("infinitevl.ops.triton.mixer")
step = pytest.importorskip("infinitevl.ops.triton.step")
pytestmark = pytest.mark.usefixtures("poisoned_memory")

HEADS, KEY, VALUE, CONV = 2, 16, 32, 4
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2}
NAN = float("nan")
State = tuple[Tensor, Tensor]


def inputs(batch: int, time: int, dtype: torch.dtype = torch.float32, heads: int = HEADS) -> DeltaInputs:
    """Slices of one product."""
    widths = [heads * n for n in (KEY, KEY, VALUE, VALUE, 1, 1)]
    parts = torch.randn(batch, time, sum(widths), device=DEVICE, dtype=dtype).split(widths, dim=-1)
    return DeltaInputs(*(x.unflatten(-1, (heads, -1)) for x in parts[:4]), *parts[4:])


def layer(dtype: torch.dtype = torch.float32, heads: int = HEADS) -> DeltaWeights:
    convs = (torch.randn(heads * n, CONV, device=DEVICE, dtype=dtype) / 2 for n in (KEY, KEY, VALUE))
    A_log, dt_bias = torch.randn(2, heads, device=DEVICE, dtype=dtype)
    return DeltaWeights(*convs, A_log, dt_bias, torch.rand(VALUE, device=DEVICE, dtype=dtype), 1e-5)


def state(places: int, dtype: torch.dtype = torch.float32, heads: int = HEADS) -> State:
    memory = torch.randn(places, heads, KEY, VALUE, device=DEVICE)
    return memory, torch.randn(places, CONV - 1, heads * (2 * KEY + VALUE), device=DEVICE, dtype=dtype)


def counters(memory: Tensor) -> Tensor:
    return torch.zeros(memory.shape[:2], dtype=torch.int32, device=DEVICE)


def exact(x: DeltaInputs, w: DeltaWeights, memory: Tensor, tail: Tensor, **rows: Tensor | None) -> list[Tensor]:
    """o, memory and tail in float64."""
    wide = DeltaWeights(*(y.double() for y in w[:6]), w.eps)
    memory, tail = memory.double(), tail.double()
    o = ops.delta_mixer(DeltaInputs(*(y.double() for y in x)), wide, memory, tail, **rows, backend="reference")
    return [o, memory, tail]


def run(x: DeltaInputs, w: DeltaWeights, memory: Tensor, tail: Tensor, **rows: Tensor | None) -> list[Tensor]:
    """The same by the kernels, on copies."""
    memory, tail, arrived = memory.clone(), tail.clone(), counters(memory)
    o = ops.delta_mixer(x, w, memory, tail, **rows, arrived=arrived, backend="triton")
    assert o.dtype == x.v.dtype
    assert not arrived.any()
    return [o, memory, tail]


def compare(found: list[Tensor], expected: list[Tensor], tolerance: float) -> None:
    for mine, theirs in zip(found[:2], expected[:2], strict=True):
        assert_close(mine, theirs, tolerance)
    assert torch.equal(found[2].double(), expected[2])


@pytest.mark.parametrize("time", [1, 2, 63, 64, 65, 100])
def test_equals_reference(time: int):
    case = inputs(1, time, heads=1), layer(heads=1), *state(1, heads=1)
    compare(run(*case), exact(*case), 1e-5)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("time", [1, 70])
def test_slots_and_lengths(time: int, dtype: torch.dtype):
    """Rows at places out of order among others; one rests, one is empty; what is not read is NaN."""
    slots = torch.tensor([3, -1, 0, 2])
    lengths = torch.tensor([time, time, 0, min(time, 2)])
    real = lengths * (slots >= 0)
    x = DeltaInputs(*(poison(y.cpu(), real).to(DEVICE) for y in inputs(4, time, dtype, 1)))
    memory, tail = state(5, dtype, 1)
    memory[[1, 4]], tail[[1, 4]] = NAN, NAN
    case = x, layer(dtype, 1), memory, tail
    found, expected = (f(*case, slots=slots.to(DEVICE), lengths=lengths.to(DEVICE)) for f in (run, exact))
    assert found[0].isfinite().all() and not found[0][1:3].any()
    for mine, theirs in zip(found[1:], expected[1:], strict=True):
        assert mine[[1, 4]].isnan().all()
        mine[[1, 4]], theirs[[1, 4]] = 0, 0
    compare(found, expected, TOLERANCE[dtype])


def test_pieces_equal_the_whole():
    """A stream in frames, tokens and pairs."""
    x, w, (memory, tail) = inputs(1, 72, heads=1), layer(heads=1), state(1, heads=1)
    expected, arrived, found = exact(x, w, memory, tail), counters(memory), []
    for piece in zip(*(y.split((66, 1, 2, 1, 1, 1), dim=1) for y in x), strict=True):
        found.append(ops.delta_mixer(DeltaInputs(*piece), w, memory, tail, arrived=arrived, backend="triton"))
    compare([torch.cat(found, dim=1), memory, tail], expected, 1e-5)


def test_long_prefills_are_cut(monkeypatch: pytest.MonkeyPatch):
    """Into pieces of any length."""
    monkeypatch.setattr("infinitevl.ops.triton.frame.PIECE", 10)
    lengths = torch.tensor([21, 12], device=DEVICE)
    case = inputs(2, 21, heads=1), layer(heads=1), *state(2, heads=1)
    compare(run(*case, lengths=lengths), exact(*case, lengths=lengths), 1e-5)


@pytest.mark.parametrize("time", [1, 70])
def test_extreme_gates(time: int):
    """Forgets everything or nothing, without overflow."""
    x = inputs(2, time)._replace(
        a=torch.tensor([[300.0, -300.0], [30.0, -30.0]], device=DEVICE)[:, None].expand(-1, time, -1)
    )
    case = x, layer(), *state(2)
    compare(run(*case), exact(*case), 1e-5)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_equal_keys_that_are_kept(dtype: torch.dtype):
    """The hardest inverse."""
    x = inputs(1, 70, dtype, 1)
    x = x._replace(k=x.k[:, :1].expand_as(x.k), a=torch.full_like(x.a, -30), b=torch.full_like(x.b, 20))
    case = x, layer(dtype, 1), *state(1, dtype, 1)
    compare(run(*case), exact(*case), TOLERANCE[dtype])


def test_blocks_of_value_columns():
    """A step cut into more programs."""
    x, w, (memory, tail) = inputs(2, 1), layer(), state(2)
    expected, arrived = exact(x, w, memory, tail), counters(memory)
    o = step.delta_step(x, w, memory, tail, None, None, arrived, block_v=8)
    compare([o, memory, tail], expected, 1e-5)
    assert not arrived.any()


@pytest.mark.parametrize(
    "change, message",
    [
        ({"memory": lambda x: x.double()}, "memory"),
        ({"tail": lambda x: x[:, :2]}, "tail"),
        ({"tail": lambda x: x.transpose(1, 2).contiguous().transpose(1, 2)}, "contiguous"),
        ({"arrived": lambda x: x.long()}, "arrived"),
        ({"arrived": lambda x: x[:1]}, "arrived"),
        ({"slots": lambda x: x[:1]}, "slots"),
    ],
)
def test_checks(change: dict, message: str):
    memory, tail = state(2)
    rest = {"memory": memory, "tail": tail, "arrived": counters(memory), "slots": torch.arange(2, device=DEVICE)}
    rest |= {name: changed(rest[name]) for name, changed in change.items()}
    with pytest.raises(ValueError, match=message):
        ops.delta_mixer(inputs(2, 1), layer(), **rest, backend="triton")


@pytest.mark.parametrize("change", ["float64", "gradient", "rule"])
def test_what_is_not_supported_is_refused(change: str):
    x, rule = inputs(1, 2), "gated_delta"
    if change == "float64":
        x = DeltaInputs(*(y.double() for y in x))
    if change == "gradient":
        x = x._replace(q=x.q.clone().requires_grad_())
    if change == "rule":
        rule = "plain"
    with pytest.raises(NotImplementedError, match="Triton"):
        ops.delta_mixer(x, layer(), *state(1), rule=rule, backend="triton")


@pytest.mark.skipif(DEVICE.type != "cuda", reason="needs a GPU")
@pytest.mark.parametrize("time", [1, 256])
def test_no_race_between_programs(time: int):
    """The same many times over gives the same bits."""
    case = inputs(16, time, torch.bfloat16, 16), layer(torch.bfloat16, 16), *state(16, torch.bfloat16, 16)
    first = run(*case)
    for _ in range(100):
        assert all(torch.equal(x, y) for x, y in zip(run(*case), first, strict=True))
