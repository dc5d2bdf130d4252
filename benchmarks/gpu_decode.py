"""Window attention over the ring and the decode step of Gated DeltaNet in Triton, at the 4B model's sizes.

python benchmarks/gpu_decode.py [--sweep] [--quick]

First the kernels against float64, then one captured graph of attention and ring against float64 at fill levels from
empty to three windows; an error above its bound ends the run before anything is timed. Then medians of graph replays.
A graph holds the calls of all layers of a kind, each with a state of its own, so that the states do not stay in the
L2 cache from one replay to the next. The floor is the machine's measured bandwidth and matrix product.
--sweep: instead, the launch options of every kernel, best first.
"""

import argparse
import sys
from collections.abc import Callable, Iterator
from itertools import product

import torch
from torch import Tensor
from triton.runtime.errors import OutOfResources

from harness import captured, microseconds, relative_error, report
from infinitevl import ops
from infinitevl.machine import Ceilings, ceilings, machine
from infinitevl.ops.triton import attention as wa
from infinitevl.ops.triton import step as step_ops

HEADS, KEY, VALUE, CONV = 16, 128, 256, 4
QUERY_HEADS, KV_HEADS, HEAD, WINDOW = 16, 2, 128, 8192
ATTENTION_LAYERS, DELTA_LAYERS = 9, 27
FILLS = (0, 1, 100, WINDOW - 1, WINDOW, WINDOW + 1, 3 * WINDOW + 17)
BOUND = 1e-2  # bfloat16, relative
CUDA, BF16 = torch.device("cuda"), torch.bfloat16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sweep", action="store_true")
    parser.add_argument("--quick", action="store_true", help="one stream only")
    given = parser.parse_args()
    torch.manual_seed(0)
    batches = (1,) if given.quick else (1, 8, 64)
    with torch.inference_mode():
        errors = checks()
        top = ceilings(CUDA, BF16)
        make = sweep if given.sweep else timings
        rows = list(make(batches, top))
    report(
        "gpu_decode", rows, machine=machine(CUDA), bytes_per_second=top.bytes_per_second, flops=top.flops,
        errors=errors,
    )  # fmt: skip


# --- inputs


def normal(*shape: int, dtype: torch.dtype = BF16) -> Tensor:
    return torch.randn(*shape, device=CUDA, dtype=dtype)


def attention_inputs(batch: int, time: int) -> list[Tensor]:
    joint = normal(batch, time, QUERY_HEADS + 2 * KV_HEADS, HEAD)
    return list(joint.split([QUERY_HEADS, KV_HEADS, KV_HEADS], dim=2))


def empty_rings(batch: int) -> Tensor:
    return torch.full((2, batch, KV_HEADS, WINDOW, HEAD), float("nan"), device=CUDA, dtype=BF16)


def step_inputs(batch: int) -> list[Tensor]:
    widths = [HEADS * n for n in (KEY, KEY, VALUE, 1, 1, VALUE)]
    q, k, v, a, b, gate = normal(batch, sum(widths)).split(widths, dim=-1)
    return [*(x.unflatten(-1, (HEADS, -1)) for x in (q, k, v)), a, b, gate.unflatten(-1, (HEADS, -1))]


def step_weights() -> step_ops.StepWeights:
    channels = HEADS * (2 * KEY + VALUE)
    return step_ops.StepWeights(normal(channels, CONV), normal(HEADS), normal(HEADS), normal(VALUE), 1e-5)


def step_state(batch: int) -> tuple[Tensor, Tensor, Tensor]:
    memory = normal(batch, HEADS, KEY, VALUE, dtype=torch.float32)
    tail = normal(batch, CONV - 1, HEADS * (2 * KEY + VALUE))
    return memory, tail, torch.zeros(batch, HEADS, dtype=torch.int32, device=CUDA)


# --- checks against float64


def checks() -> dict[str, float]:
    errors = {f"window attention, T {time}, in a graph": attention_error(time) for time in (1, 256)}
    errors |= {f"step, B {batch}, value columns {n}": step_error(batch, n) for batch in (1, 64) for n in (16, 32, 64)}
    for name, error in errors.items():
        print(f"{name}: {error:.2e}")
    if not all(error < BOUND for error in errors.values()):
        sys.exit("wrong results: nothing is timed")
    return errors


def attention_error(time: int) -> float:
    """The worst over the fill levels, all from one graph captured on an empty ring."""
    q, k, v = attention_inputs(1, time)
    rings, count = empty_rings(1), torch.zeros(1, dtype=torch.int64, device=CUDA)

    def run() -> Tensor:
        return wa.window_attention(q, k, v, *rings, count, window=WINDOW)

    graph, found = captured(run)
    worst = 0.0
    for fill in FILLS:
        earlier = normal(2, 1, max(fill, 1), KV_HEADS, HEAD)
        rings.copy_(empty_rings(1))
        count.zero_()
        ops.write_ring(*rings, *earlier[:, :, :fill], count, backend="eager")
        count.fill_(fill)
        wide = (x.double() for x in (q, k, v, *rings.nan_to_num(0.0)))
        exact = ops.window_attention(*wide, count, window=WINDOW, backend="eager")
        graph.replay()
        worst = max(worst, relative_error(found, exact))
        if not found.isfinite().all():
            return float("nan")
        expected = rings.clone()
        ops.write_ring(*expected, k, v, count, backend="eager")
        wa.write_ring(*rings, k, v, count)
        if not torch.equal(rings.nan_to_num(9.0), expected.nan_to_num(9.0)):
            return float("nan")
    return worst


def step_error(batch: int, block_v: int, steps: int = 8) -> float:
    """The worst of outputs, memory and tail after some steps, rows in reversed places."""
    weights, (memory, tail, arrived) = step_weights(), step_state(batch)
    slots = torch.arange(batch, device=CUDA).flip(0)
    exact_memory, exact_tail = memory[slots].double(), tail[slots].double()
    worst = 0.0
    for _ in range(steps):
        inputs = step_inputs(batch)
        exact, exact_memory, exact_tail = exact_step(inputs, weights, exact_memory, exact_tail)
        o = step_ops.delta_step(*inputs, weights, memory, tail, arrived, slots=slots, block_v=block_v)
        worst = max(worst, relative_error(o, exact))
    pairs = ((memory[slots], exact_memory), (tail[slots], exact_tail))
    return max(worst, *(relative_error(*pair) for pair in pairs), float(arrived.any()))


def exact_step(inputs: list[Tensor], w: step_ops.StepWeights, memory: Tensor, tail: Tensor) -> tuple[Tensor, ...]:
    q, k, v, a, b, gate = (x.double()[:, None] for x in inputs)
    x = torch.cat([y.flatten(2) for y in (q, k, v)], dim=-1)
    x, tail = ops.short_convolution(x, w.conv.double(), tail, backend="eager")
    q, k, v = x.split([HEADS * KEY, HEADS * KEY, HEADS * VALUE], dim=-1)
    q, k, v = (y.unflatten(-1, (HEADS, -1)) for y in (q, k, v))
    g = -w.A_log.double().exp() * torch.nn.functional.softplus(a + w.dt_bias.double())
    o, memory = ops.gated_delta_rule(q, k, v, g, b.sigmoid(), memory, backend="eager")
    return ops.gated_rms_norm(o, gate, w.norm.double(), w.eps, backend="eager")[:, 0], memory, tail


# --- times


def row(op: str, batch: int, time: int, spent: float, floor: float, plan: str = "") -> dict:
    share = f"{1e8 * floor / spent:.0f}%"
    return {"op": op, "B": batch, "T": time, "us": spent, "floor us": floor * 1e6, "of floor": share, "plan": plan}


def attention_calls(batch: int, time: int, fill: int, plan: wa.Plan) -> list[Callable[[], Tensor]]:
    q, k, v = attention_inputs(batch, time)
    count = torch.full((batch,), fill, dtype=torch.int64, device=CUDA)
    layers = ATTENTION_LAYERS if batch <= 8 else 1  # of 64 streams a single ring exceeds the cache
    options = {"window": WINDOW, "sinks": 0, "lengths": None, "plan": plan}
    rings = [normal(2, batch, KV_HEADS, WINDOW, HEAD) for _ in range(layers)]
    return [lambda r=r: wa.attend(q, k, v, *r, count, **options) for r in rings]


def attention_floor(batch: int, time: int, fill: int, top: Ceilings) -> float:
    """Of a chunk after `fill` tokens: the pairs of query and key that see each other, the ring read once."""
    ring = min(fill, WINDOW - 1)
    pairs = sum(min(fill + t + 1, WINDOW) for t in range(time))
    return top.floor(4.0 * batch * QUERY_HEADS * HEAD * pairs, batch * ring * 2 * KV_HEADS * HEAD * 2)


def default_plan(batch: int, time: int) -> wa.Plan:
    return wa.plan_of(attention_inputs(batch, time)[0], KV_HEADS, WINDOW + time)


def step_calls(batch: int, **options: int) -> list[Callable[[], Tensor]]:
    inputs, weights = step_inputs(batch), step_weights()
    states = [step_state(batch) for _ in range(DELTA_LAYERS if batch <= 8 else 2)]
    return [lambda s=s: step_ops.delta_step(*inputs, weights, *s, **options) for s in states]


def step_floor(batch: int, top: Ceilings) -> float:
    return top.floor(0, 2.0 * batch * HEADS * KEY * VALUE * 4)


def timings(batches: tuple[int, ...], top: Ceilings) -> Iterator[dict]:
    shapes = [(batch, 1) for batch in batches] + [(1, 16), (1, 256)]
    for batch, time in shapes:
        plan = default_plan(batch, time)
        for fill in (0, WINDOW // 2, 3 * WINDOW + 17):
            spent = microseconds(attention_calls(batch, time, fill, plan))
            name = f"window attention, {fill} tokens before"
            yield row(name, batch, time, spent, attention_floor(batch, time, fill, top), brief(plan))
    for batch, time in shapes:
        _, k, v = attention_inputs(batch, time)
        rings, count = normal(2, batch, KV_HEADS, WINDOW, HEAD), torch.full((batch,), 9999, device=CUDA)
        spent = microseconds([lambda k=k, v=v, r=rings, c=count: wa.write_ring(*r, k, v, c)] * 9)
        yield row("write ring", batch, time, spent, top.floor(0, 4 * k.nbytes))
    for batch in batches:
        yield row("delta step", batch, 1, microseconds(step_calls(batch)), step_floor(batch, top))


def brief(plan: wa.Plan) -> str:
    return f"{plan.block_m}x{plan.block_n}, {plan.splits} parts, {plan.warps} warps, {plan.stages} stages"


def sweep(batches: tuple[int, ...], top: Ceilings) -> Iterator[dict]:
    """Of every kernel and shape the five fastest."""
    for batch, time in [(batch, 1) for batch in batches] + [(1, 256)]:
        yield from fastest(attention_sweep(batch, time, top))
    for batch in batches:
        yield from fastest(step_sweep(batch, top))


def fastest(rows: Iterator[dict]) -> list[dict]:
    return sorted(rows, key=lambda r: r["us"])[:5]


def attention_sweep(batch: int, time: int, top: Ceilings) -> Iterator[dict]:
    fill, default = 3 * WINDOW + 17, default_plan(batch, time)
    blocks_m = {default.block_m, min(default.block_m, 64)}
    for block_m, block_n, warps, stages, factor in product(blocks_m, (64, 128), (4, 8), (2, 3, 4), (0.5, 1, 2)):
        splits = int(default.splits * factor)
        if not 1 <= splits <= wa.MAX_SPLITS or (block_m == 128 and warps == 4):
            continue
        plan = wa.Plan(block_m, block_n, splits, warps, stages)
        spent = attempt(attention_calls, batch, time, fill, plan)
        if spent is not None:
            yield row("window attention", batch, time, spent, attention_floor(batch, time, fill, top), brief(plan))


def step_sweep(batch: int, top: Ceilings) -> Iterator[dict]:
    for block_v, warps in product((16, 32, 64, 128), (2, 4, 8)):
        spent = attempt(step_calls, batch, block_v=block_v, warps=warps)
        if spent is not None:
            yield row("delta step", batch, 1, spent, step_floor(batch, top), f"{block_v} columns, {warps} warps")


def attempt(calls: Callable[..., list[Callable[[], object]]], *arguments: object, **options: object) -> float | None:
    """Microseconds, or None where the plan does not fit the machine's shared memory or registers."""
    try:
        return microseconds(calls(*arguments, **options), 20)
    except OutOfResources:
        return None


if __name__ == "__main__":
    main()
