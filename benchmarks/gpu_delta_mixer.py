"""What a Gated DeltaNet layer does between its projections, at the 4B model's sizes: checked against float64, timed.

python benchmarks/gpu_delta_mixer.py [--kernels]
An error above its bound ends the run before anything is timed. A graph holds the calls of all layers, each with a
state of its own, so that the states do not stay in the L2 cache from one replay to the next. The floor is the
machine's measured bandwidth and matrix product. --kernels: also the time of every kernel of a frame.
"""

import argparse
import sys
from collections.abc import Callable

import torch
from torch import Tensor

from harness import microseconds, relative_error, report
from infinitevl import ops
from infinitevl.machine import Ceilings, ceilings, machine
from infinitevl.ops.mixing import DeltaInputs, DeltaWeights

HEADS, KEY, VALUE, TAPS, LAYERS = 16, 128, 256, 4, 27
CHANNELS = HEADS * (2 * KEY + VALUE)
BOUND = 1e-2  # bfloat16, relative
CUDA, BF16 = torch.device("cuda"), torch.bfloat16
SIZES = ((1, 1), (8, 1), (64, 1), (1, 32), (1, 256), (16, 256), (1, 8192))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kernels", action="store_true")
    given = parser.parse_args()
    torch.manual_seed(0)
    with torch.inference_mode():
        errors = {f"B {batch} T {time}": error(batch, time) for batch, time in ((1, 256), (3, 100), (3, 1))}
        print(*(f"{name}: {value:.2e}" for name, value in errors.items()), sep="\n")
        if not all(value < BOUND for value in errors.values()):
            sys.exit("wrong results: nothing is timed")
        top = ceilings(CUDA, BF16)
        rows = [row(batch, time, top) for batch, time in SIZES]
        if given.kernels:
            kernels(1, 256)
    report(
        "gpu_delta_mixer", rows, machine=machine(CUDA), bytes_per_second=top.bytes_per_second, flops=top.flops,
        errors=errors,
    )  # fmt: skip


def make_inputs(batch: int, time: int) -> DeltaInputs:
    """Slices of one product, as the model leaves them."""
    widths = [HEADS * n for n in (KEY, KEY, VALUE, VALUE, 1, 1)]
    parts = torch.randn(batch, time, sum(widths), device=CUDA, dtype=BF16).split(widths, dim=-1)
    return DeltaInputs(*(x.unflatten(-1, (HEADS, -1)) for x in parts[:4]), *parts[4:])


def make_weights() -> DeltaWeights:
    convolutions = (torch.randn(HEADS * n, TAPS, device=CUDA, dtype=BF16) / 2 for n in (KEY, KEY, VALUE))
    A_log, dt_bias = torch.randn(2, HEADS, device=CUDA, dtype=BF16)
    return DeltaWeights(*convolutions, A_log, dt_bias, torch.rand(VALUE, device=CUDA, dtype=BF16), 1e-5)


def make_state(places: int) -> dict[str, Tensor]:
    return {
        "memory": torch.randn(places, HEADS, KEY, VALUE, device=CUDA),
        "tail": torch.randn(places, TAPS - 1, CHANNELS, device=CUDA, dtype=BF16),
        "arrived": torch.zeros(places, HEADS, dtype=torch.int32, device=CUDA),
    }


def error(batch: int, time: int, calls: int = 3) -> float:
    """The worst of outputs, memory and tail after some calls, rows in reversed places."""
    weights, state, slots = make_weights(), make_state(batch + 1), torch.arange(batch, device=CUDA).flip(0)
    wide = DeltaWeights(*(x.double() for x in weights[:6]), weights.eps)
    memory, tail, worst = state["memory"].double(), state["tail"].double(), 0.0
    for _ in range(calls):
        x = make_inputs(batch, time)
        lengths = torch.randint(1, time + 1, (batch,), device=CUDA)
        exact = DeltaInputs(*(y.double() for y in x))
        expected = ops.delta_mixer(exact, wide, memory, tail, slots=slots, lengths=lengths, backend="eager")
        found = ops.delta_mixer(x, weights, **state, slots=slots, lengths=lengths, backend="triton")
        worst = max(worst, relative_error(found, expected))
    pairs = ((state["memory"], memory), (state["tail"], tail))
    return max(worst, *(relative_error(*pair) for pair in pairs), float(state["arrived"].any()))


def calls_of(batch: int, time: int) -> list[Callable[[], object]]:
    """A call of every layer, of fewer where their states are larger than the cache anyway."""
    count = LAYERS if batch <= 8 and time <= 256 else 2
    inputs, weights = [make_inputs(batch, time) for _ in range(2)], make_weights()
    states = [make_state(batch) for _ in range(count)]
    return [lambda i=i, s=s: ops.delta_mixer(inputs[i % 2], weights, **s) for i, s in enumerate(states)]


def row(batch: int, time: int, top: Ceilings) -> dict:
    spent = microseconds(calls_of(batch, time), 20)
    least = floor(batch, time, top)
    share = f"{1e8 * least / spent:.0f}%"
    return {"B": batch, "T": time, "us": spent, "floor us": least * 1e6, "of floor": share}


def floor(batch: int, time: int, top: Ceilings) -> float:
    """Seconds: the state read and written, the projections read, o written; the products of the chunked rule."""
    state = 2 * batch * HEADS * KEY * VALUE * 4
    passed = 2 * batch * time * (CHANNELS + 2 * HEADS * VALUE)
    size = min(64, time)
    products = size * size * (2 * KEY + size / 3 + 2 * VALUE) + 3 * size * KEY * VALUE
    return top.floor(2.0 * batch * HEADS * (time / size) * products, state + passed)


def kernels(batch: int, time: int) -> None:
    from torch.profiler import ProfilerActivity, profile

    calls = calls_of(batch, time)
    with profile(activities=[ProfilerActivity.CUDA]) as found:
        for call in calls:
            call()
        torch.cuda.synchronize()
    print(found.key_averages().table(sort_by="self_cuda_time_total", row_limit=6, max_name_column_width=40))


if __name__ == "__main__":
    main()
