"""What an attention layer does between its products, in Triton, at the 4B model's sizes.

python benchmarks/gpu_attention.py [--sweep] [--quick]

First against float64, from one captured graph at fill levels from empty to three windows; an error above its bound
ends the run before anything is timed. Then medians of graph replays, of attention alone and of all of it, and of the
table of angles that the layers share. A graph holds the calls of all layers, each with rings of its own, so that they
do not stay in the L2 cache from one replay to the next. The floor is the machine's measured bandwidth and matrix
product.
--sweep: instead, the plans of attention, best first.
"""

import argparse
import sys
from collections.abc import Callable, Iterator
from functools import partial
from itertools import product

import torch
from torch import Tensor
from triton.runtime.errors import OutOfResources

from harness import captured, microseconds, relative_error, report, timing
from infinitevl import ops
from infinitevl.machine import Ceilings, ceilings, machine
from infinitevl.model.rope import axes, frequencies
from infinitevl.ops.triton import attention as wa

QUERY_HEADS, KV_HEADS, HEAD, WINDOW = 16, 2, 128, 8192
LAYERS = 9
FILLS = (0, 1, 100, WINDOW - 1, WINDOW, WINDOW + 1, 3 * WINDOW + 17)
FULL = FILLS[-1]
BOUND = 1e-2  # bfloat16, relative
CUDA, BF16 = torch.device("cuda"), torch.bfloat16
ONE, MANY = ((1, 1), (1, 32), (1, 256)), ((8, 1), (64, 1), (16, 256))  # streams, tokens


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sweep", action="store_true")
    parser.add_argument("--quick", action="store_true", help="one stream only")
    given = parser.parse_args()
    torch.manual_seed(0)
    shapes = ONE if given.quick else (*ONE, *MANY)
    with torch.inference_mode():
        errors = checks()
        top = ceilings(CUDA, BF16)
        make = sweep if given.sweep else timings
        rows = list(make(shapes, top))
    report(
        "gpu_attention", rows, machine=machine(CUDA), bytes_per_second=top.bytes_per_second, flops=top.flops,
        errors=errors,
    )  # fmt: skip


# --- inputs


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, device=CUDA, dtype=BF16)


def attention_inputs(batch: int, time: int) -> list[Tensor]:
    joint = normal(batch, time, QUERY_HEADS + 2 * KV_HEADS, HEAD)
    return list(joint.split([QUERY_HEADS, KV_HEADS, KV_HEADS], dim=2))


def places(batch: int, time: int) -> Tensor:
    return torch.randint(0, 2**21, (3, batch, time), device=CUDA)


def table(positions: Tensor) -> tuple[Tensor, Tensor]:
    """cos and sin, by the kernel."""
    return ops.rotary_table(
        positions, frequencies(HEAD, 1e6, CUDA), axes((16, 24, 24), CUDA), torch.float32, backend="triton"
    )


def empty_rings(batch: int) -> Tensor:
    return torch.full((2, batch, KV_HEADS, WINDOW, HEAD), float("nan"), device=CUDA, dtype=BF16)


# --- checks against float64


def checks() -> dict[str, float]:
    errors = {f"T {time}": error(time) for _, time in ONE}
    for name, worst in errors.items():
        print(f"{name}: {worst:.2e}")
    if not all(worst < BOUND for worst in errors.values()):
        sys.exit("wrong results: nothing is timed")
    return errors


def error(time: int) -> float:
    """The worst of outputs and rings over the fill levels, all from one graph captured on an empty ring."""
    inputs = [*attention_inputs(1, time), *table(places(1, time))]
    rings, count = empty_rings(1), torch.zeros(1, dtype=torch.int64, device=CUDA)
    graph, found = captured(lambda: ops.ring_attention(*inputs, *rings, count, window=WINDOW, backend="triton"))
    worst = 0.0
    for fill in FILLS:
        rings.copy_(empty_rings(1))
        count.zero_()
        earlier = normal(2, 1, max(fill, 1), KV_HEADS, HEAD)
        ops.write_ring(*rings, *earlier[:, :, :fill], count, backend="eager")
        count.fill_(fill)
        exact = rings.double().nan_to_num(0.0)
        expected = ops.ring_attention(*(x.double() for x in inputs), *exact, count, window=WINDOW, backend="eager")
        graph.replay()
        written = min(fill + time, WINDOW)
        if not found.isfinite().all() or not rings[:, :, :, written:].isnan().all():
            return float("nan")
        pairs = ((found, expected), (rings[:, :, :, :written], exact[:, :, :, :written]))
        worst = max(worst, *(relative_error(*pair) for pair in pairs))
    return worst


# --- times


def calls(batch: int, time: int, fill: int, plan: wa.Plan | None = None) -> list[Callable[[], object]]:
    """Of all layers: what lies between their products, or, by a given plan, the attention in it."""
    q, k, v = attention_inputs(batch, time)
    angles, count = table(places(batch, time)), torch.full((batch,), fill, dtype=torch.int64, device=CUDA)
    layers = LAYERS if batch <= 16 else 1  # of 64 streams a single ring exceeds the cache
    rings = [normal(2, batch, KV_HEADS, WINDOW, HEAD) for _ in range(layers)]
    if plan is None:
        options = {"window": WINDOW, "backend": "triton"}
        return [lambda r=r: ops.ring_attention(q, k, v, *angles, *r, count, **options) for r in rings]
    options = {"window": WINDOW, "sinks": 0, "lengths": None, "plan": plan}
    return [lambda r=r: wa.attend(q, k, v, *r, count, **options) for r in rings]


def floor(batch: int, time: int, fill: int, top: Ceilings) -> float:
    """Of a chunk after `fill` tokens: the pairs of query and key that see each other, the ring read once."""
    ring = min(fill, WINDOW - 1)
    pairs = sum(min(fill + t + 1, WINDOW) for t in range(time))
    return top.floor(4.0 * batch * QUERY_HEADS * HEAD * pairs, batch * ring * 2 * KV_HEADS * HEAD * 2)


def timings(shapes: tuple[tuple[int, int], ...], top: Ceilings) -> Iterator[dict]:
    for batch, time in shapes:
        plan = default_plan(batch, time)
        for fill in (0, WINDOW // 2, FULL):
            spent, least = microseconds(calls(batch, time, fill)), floor(batch, time, fill, top)
            yield timing(f"ring attention, {fill} tokens before", batch, time, spent, least, brief(plan))
        spent, least = microseconds(calls(batch, time, FULL, plan)), floor(batch, time, FULL, top)
        yield timing(f"attention alone, {FULL} tokens before", batch, time, spent, least)
        spent = microseconds([partial(table, places(batch, time))] * LAYERS)
        yield timing("rotary table", batch, time, spent, top.floor(0, batch * time * (3 * 8 + HEAD * 4)))


def default_plan(batch: int, time: int) -> wa.Plan:
    return wa.plan_of(attention_inputs(batch, time)[0], KV_HEADS, WINDOW + time)


def brief(plan: wa.Plan) -> str:
    told = f"{plan.block_m}x{plan.block_n}, {plan.splits} parts, {plan.warps} warps, {plan.stages} stages"
    return f"{told}, tma" if plan.tma else told


def sweep(shapes: tuple[tuple[int, int], ...], top: Ceilings) -> Iterator[dict]:
    """Of every shape the five fastest."""
    for batch, time in shapes:
        yield from sorted(plans(batch, time, top), key=lambda row: row["us"])[:5]


def plans(batch: int, time: int, top: Ceilings) -> Iterator[dict]:
    default = default_plan(batch, time)
    blocks_m = {default.block_m, min(2 * default.block_m, 128)}
    choices = product(blocks_m, (64, 128), (4, 8), (2, 3, 4), (0.5, 1, 2), (False, True))
    for block_m, block_n, warps, stages, factor, tma in choices:
        splits = int(default.splits * factor)
        if not 1 <= splits <= wa.MAX_SPLITS or (block_m == 128 and warps == 4):
            continue
        plan = wa.Plan(block_m, block_n, splits, warps, stages, tma)
        spent = attempt(batch, time, FULL, plan)
        if spent is not None:
            yield timing("window attention", batch, time, spent, floor(batch, time, FULL, top), brief(plan))


def attempt(batch: int, time: int, fill: int, plan: wa.Plan) -> float | None:
    """Microseconds, or None where the plan does not fit the machine's shared memory or registers."""
    try:
        return microseconds(calls(batch, time, fill, plan), 20)
    except OutOfResources:
        return None


if __name__ == "__main__":
    main()
