from dataclasses import fields, replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from helpers import assert_close
from infinitevl import ops
from interpreter import DEVICE

step = pytest.importorskip("infinitevl.ops.triton.step")
pytestmark = pytest.mark.usefixtures("poisoned_memory")

KEY, VALUE, CONV = 8, 16, 4
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}
NAN = float("nan")


def projected(batch: int, time: int, heads: int, dtype: torch.dtype) -> list[Tensor]:
    """q, k, v, a, b and gate [B, T, H, ...], slices of one projection."""
    widths = [heads * n for n in (KEY, KEY, VALUE, 1, 1, VALUE)]
    q, k, v, a, b, gate = torch.randn(batch, time, sum(widths), device=DEVICE, dtype=dtype).split(widths, dim=-1)
    return [*(x.unflatten(-1, (heads, -1)) for x in (q, k, v)), a, b, gate.unflatten(-1, (heads, VALUE))]


def layer(heads: int, dtype: torch.dtype) -> "step.StepWeights":
    conv = torch.randn(heads * (2 * KEY + VALUE), CONV, device=DEVICE, dtype=dtype) / 2
    A_log, dt_bias = torch.randn(2, heads, device=DEVICE, dtype=dtype)
    return step.StepWeights(conv, A_log, dt_bias, torch.rand(VALUE, device=DEVICE, dtype=dtype), 1e-5)


def state(places: int, heads: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    memory = torch.randn(places, heads, KEY, VALUE, device=DEVICE)
    return memory, torch.randn(places, CONV - 1, heads * (2 * KEY + VALUE), device=DEVICE, dtype=dtype)


def reference(inputs: list[Tensor], weights: "step.StepWeights", memory: Tensor, tail: Tensor) -> list[Tensor]:
    """The layer as `GatedDeltaNet` composes it, in float64: o [B, T, H, V], memory and tail."""
    q, k, v, a, b, gate, memory, tail = (x.double() for x in (*inputs, memory, tail))
    w = replace(weights, **{f.name: getattr(weights, f.name).double() for f in fields(weights) if f.name != "eps"})
    x = torch.cat([y.flatten(2) for y in (q, k, v)], dim=-1)
    x, tail = ops.short_convolution(x, w.conv, tail, backend="reference")
    widths = [y.shape[2] * y.shape[3] for y in (q, k, v)]
    q, k, v = (y.unflatten(-1, (q.shape[2], -1)) for y in x.split(widths, dim=-1))
    g, beta = -w.A_log.exp() * F.softplus(a + w.dt_bias), b.sigmoid()
    o, memory = ops.gated_delta_rule(q, k, v, g, beta, memory, backend="reference")
    return [ops.gated_rms_norm(o, gate, w.norm, w.eps, backend="reference"), memory, tail]


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("block_v", [8, 16])
def test_steps_equal_one_chunk(block_v: int, dtype: torch.dtype):
    """Of two rows at places of their own among five; the other places stay as they were."""
    heads, time, slots = 2, 5, torch.tensor([4, 0], device=DEVICE)
    inputs, weights = projected(2, time, heads, dtype), layer(heads, dtype)
    memory, tail = state(5, heads, dtype)
    o, new_memory, new_tail = reference(inputs, weights, memory[slots], tail[slots])
    expected_memory, expected_tail = memory.double(), tail.double()
    expected_memory[slots], expected_tail[slots] = new_memory, new_tail
    arrived = torch.zeros(2, heads, dtype=torch.int32, device=DEVICE)
    found = [
        step.delta_step(*(x[:, t] for x in inputs), weights, memory, tail, arrived, slots=slots, block_v=block_v)
        for t in range(time)
    ]
    assert found[0].dtype == dtype
    assert_close(torch.stack(found, dim=1), o, TOLERANCE[dtype])
    assert_close(memory, expected_memory, TOLERANCE[dtype])
    assert torch.equal(tail.double(), expected_tail)
    assert not arrived.any()


def test_without_slots():
    inputs, weights = projected(2, 1, 3, torch.float32), layer(3, torch.float32)
    memory, tail = state(2, 3, torch.float32)
    expected = reference(inputs, weights, memory, tail)
    arrived = torch.zeros(2, 3, dtype=torch.int32, device=DEVICE)
    o = step.delta_step(*(x[:, 0] for x in inputs), weights, memory, tail, arrived, block_v=8)
    for found, exact in zip((o[:, None], memory, tail), expected, strict=True):
        assert_close(found, exact, 1e-5)


def test_resting_rows():
    """A row with a negative slot reads and writes nothing, whatever its inputs hold."""
    heads, slots = 2, torch.tensor([-1, 1], device=DEVICE)
    inputs, weights = projected(2, 1, heads, torch.float32), layer(heads, torch.float32)
    inputs = [torch.cat([torch.full_like(x[:1], NAN), x[1:]]) for x in inputs]
    memory, tail = state(2, heads, torch.float32)
    before = memory[0].clone(), tail[0].clone()
    expected, *_ = reference([x[1:] for x in inputs], weights, memory[1:], tail[1:])
    arrived = torch.zeros(2, heads, dtype=torch.int32, device=DEVICE)
    o = step.delta_step(*(x[:, 0] for x in inputs), weights, memory, tail, arrived, slots=slots, block_v=8)
    assert not o[0].any()
    assert_close(o[1:, None], expected, 1e-5)
    assert torch.equal(memory[0], before[0])
    assert torch.equal(tail[0], before[1])


def test_extreme_gates():
    """Forgets everything or nothing, without overflow."""
    inputs, weights = projected(2, 1, 2, torch.float32), layer(2, torch.float32)
    inputs[3] = torch.tensor([[[300.0, -300.0]], [[30.0, -30.0]]], device=DEVICE)
    memory, tail = state(2, 2, torch.float32)
    expected = reference(inputs, weights, memory, tail)
    arrived = torch.zeros(2, 2, dtype=torch.int32, device=DEVICE)
    o = step.delta_step(*(x[:, 0] for x in inputs), weights, memory, tail, arrived)
    assert_close(o[:, None], expected[0], 1e-5)
    assert_close(memory, expected[1], 1e-5)


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
    inputs, weights = projected(2, 1, 2, torch.float32), layer(2, torch.float32)
    memory, tail = state(2, 2, torch.float32)
    rest = {"memory": memory, "tail": tail, "arrived": torch.zeros(2, 2, dtype=torch.int32, device=DEVICE)}
    rest["slots"] = torch.arange(2, device=DEVICE)
    rest |= {name: changed(rest[name]) for name, changed in change.items()}
    with pytest.raises(ValueError, match=message):
        step.delta_step(*(x[:, 0] for x in inputs), weights, **rest)


@pytest.mark.skipif(DEVICE.type != "cuda", reason="needs a GPU")
def test_no_race_between_programs():
    """The same step many times over, with blocks of every size, gives the same bits."""
    inputs, weights = projected(64, 1, 16, torch.bfloat16), layer(16, torch.bfloat16)
    memory, tail = state(64, 16, torch.bfloat16)
    arrived, first = torch.zeros(64, 16, dtype=torch.int32, device=DEVICE), None
    for _ in range(200):
        found = [memory.clone(), tail.clone()]
        o = step.delta_step(*(x[:, 0] for x in inputs), weights, *found, arrived, block_v=2)
        first = first or [o, *found]
        assert all(torch.equal(x, y) for x, y in zip([o, *found], first, strict=True))
