"""The decode step of Gated DeltaNet in Triton, at the 4B model's sizes.

python benchmarks/gpu_decode.py [--sweep] [--quick]

First the kernel against float64: an error above its bound ends the run before anything is timed. Then medians of graph
replays. A graph holds the calls of all layers, each with a state of its own, so that the states do not stay in the L2
cache from one replay to the next. The floor is the machine's measured bandwidth.
--sweep: instead, the launch options, best first.
"""

import argparse
import sys
from collections.abc import Callable, Iterator
from itertools import product

import torch
from torch import Tensor
from triton.runtime.errors import OutOfResources

from harness import microseconds, relative_error, report, timing
from infinitevl import ops
from infinitevl.machine import Ceilings, ceilings, machine
from infinitevl.ops.triton import step as step_ops

HEADS, KEY, VALUE, CONV = 16, 128, 256, 4
LAYERS = 27
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
    errors = {f"B {batch}, value columns {n}": step_error(batch, n) for batch in (1, 64) for n in (16, 32, 64)}
    for name, error in errors.items():
        print(f"{name}: {error:.2e}")
    if not all(error < BOUND for error in errors.values()):
        sys.exit("wrong results: nothing is timed")
    return errors


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


def step_calls(batch: int, **options: int) -> list[Callable[[], Tensor]]:
    inputs, weights = step_inputs(batch), step_weights()
    states = [step_state(batch) for _ in range(LAYERS if batch <= 8 else 2)]
    return [lambda s=s: step_ops.delta_step(*inputs, weights, *s, **options) for s in states]


def step_floor(batch: int, top: Ceilings) -> float:
    return top.floor(0, 2.0 * batch * HEADS * KEY * VALUE * 4)


def timings(batches: tuple[int, ...], top: Ceilings) -> Iterator[dict]:
    for batch in batches:
        yield timing("delta step", batch, 1, microseconds(step_calls(batch)), step_floor(batch, top))


def sweep(batches: tuple[int, ...], top: Ceilings) -> Iterator[dict]:
    """Of every batch the five fastest."""
    for batch in batches:
        yield from sorted(step_sweep(batch, top), key=lambda row: row["us"])[:5]


def step_sweep(batch: int, top: Ceilings) -> Iterator[dict]:
    for block_v, warps in product((16, 32, 64, 128), (2, 4, 8)):
        spent = attempt(batch, block_v=block_v, warps=warps)
        if spent is not None:
            yield timing("delta step", batch, 1, spent, step_floor(batch, top), f"{block_v} columns, {warps} warps")


def attempt(batch: int, **options: int) -> float | None:
    """Microseconds, or None where the options do not fit the machine's shared memory or registers."""
    try:
        return microseconds(step_calls(batch, **options), 20)
    except OutOfResources:
        return None


if __name__ == "__main__":
    main()
