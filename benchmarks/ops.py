"""Every operation at the 4B model's sizes: milliseconds, the floor of this machine, the error against float64.

python benchmarks/ops.py [--device cuda] [--dtype bfloat16]
The gated delta rule is timed beside transformers' `torch_chunk_gated_delta_rule` in the same run.
"""

import argparse
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from harness import relative_error, report
from infinitevl import ops
from infinitevl.machine import Ceilings, ceilings, machine, seconds_of

HEADS, KEY, VALUE = 16, 128, 256
QUERY_HEADS, KV_HEADS, HEAD, WINDOW = 16, 2, 128, 8192
CHUNK = 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", default=None)
    given = parser.parse_args()
    device = torch.device(given.device)
    dtype = getattr(torch, given.dtype or ("bfloat16" if device.type == "cuda" else "float32"))
    torch.manual_seed(0)
    top = ceilings(device, dtype)
    with torch.inference_mode():
        rows = [
            row
            for make in (delta_rows, convolution_rows, attention_rows, norm_rows)
            for row in make(device, dtype, top)
        ]
    baseline, own = (next(r["ms"] for r in rows if r["op"] == op and r["T"] == 4096) for op in (TRANSFORMERS, DELTA))
    report(
        "ops", rows, machine=machine(device), dtype=str(dtype),
        bytes_per_second=top.bytes_per_second, flops=top.flops, delta_rule_speedup_over_transformers=baseline / own,
    )  # fmt: skip


DELTA, TRANSFORMERS = "gated delta rule", "gated delta rule (transformers)"


def row(op: str, time: int, run: Callable[[], object], floor: float, error: float, device: torch.device) -> dict:
    seconds = seconds_of(run, device, 7)
    return {
        "op": op, "T": time, "ms": seconds * 1e3, "floor ms": floor * 1e3,
        "of floor": f"{100 * floor / seconds:.0f}%", "error": error,
    }  # fmt: skip


def delta_rows(device: torch.device, dtype: torch.dtype, top: Ceilings) -> Iterator[dict]:
    from transformers.models.qwen3_next.modeling_qwen3_next import torch_chunk_gated_delta_rule

    for time in (1, 256, 4096):
        q, k = (torch.randn(1, time, HEADS, KEY, device=device, dtype=dtype) for _ in range(2))
        v = torch.randn(1, time, HEADS, VALUE, device=device, dtype=dtype)
        g, beta = -torch.rand(1, time, HEADS, device=device), torch.rand(1, time, HEADS, device=device)
        state = torch.randn(1, HEADS, KEY, VALUE, device=device)
        floor = top.floor(_delta_operations(time), q.nbytes * 2 + v.nbytes * 2 + 2 * state.nbytes)
        exact, _ = ops.gated_delta_rule(*(x.double() for x in (q, k, v, g, beta, state)))

        def own(q=q, k=k, v=v, g=g, beta=beta, state=state) -> Tensor:
            return ops.gated_delta_rule(q, k, v, g, beta, state)[0]

        def theirs(q=q, k=k, v=v, g=g, beta=beta, state=state) -> Tensor:
            return torch_chunk_gated_delta_rule(
                q, k, v, g, beta, initial_state=state, output_final_state=True, use_qk_l2norm_in_kernel=True
            )[0]

        yield row(DELTA, time, own, floor, relative_error(own(), exact), device)
        yield row(TRANSFORMERS, time, theirs, floor, relative_error(theirs(), exact), device)


def _delta_operations(time: int) -> float:
    """Multiply-adds of the chunked form, times two."""
    size = min(CHUNK, time)
    chunk = size * size * (2 * KEY + size / 3 + 2 * VALUE) + 3 * size * KEY * VALUE
    return 2.0 * HEADS * chunk * (time / size)


def convolution_rows(device: torch.device, dtype: torch.dtype, top: Ceilings) -> Iterator[dict]:
    channels = HEADS * (2 * KEY + VALUE)
    weight = torch.randn(channels, 4, device=device, dtype=dtype)
    for time in (1, 256, 4096):
        x, tail = (torch.randn(1, n, channels, device=device, dtype=dtype) for n in (time, 3))
        exact, _ = ops.short_convolution(x.double(), weight.double(), tail.double())

        def run(x=x, tail=tail) -> Tensor:
            return ops.short_convolution(x, weight, tail)[0]

        floor = top.floor(8.0 * time * channels, 2 * x.nbytes)
        yield row("short convolution", time, run, floor, relative_error(run(), exact), device)


def attention_rows(device: torch.device, dtype: torch.dtype, top: Ceilings) -> Iterator[dict]:
    ring = torch.randn(2, 1, KV_HEADS, WINDOW, HEAD, device=device, dtype=dtype)
    count = torch.tensor([3 * WINDOW + 17], device=device)
    for time in (1, 256):
        q = torch.randn(1, time, QUERY_HEADS, HEAD, device=device, dtype=dtype)
        k, v = torch.randn(2, 1, time, KV_HEADS, HEAD, device=device, dtype=dtype)
        wide = (x.double() for x in (q, k, v, *ring))
        exact = ops.window_attention(*wide, count, window=WINDOW)

        def run(q=q, k=k, v=v) -> Tensor:
            return ops.window_attention(q, k, v, *ring, count, window=WINDOW)

        floor = top.floor(4.0 * time * QUERY_HEADS * HEAD * WINDOW, ring.nbytes)
        yield row("window attention, full ring", time, run, floor, relative_error(run(), exact), device)


def norm_rows(device: torch.device, dtype: torch.dtype, top: Ceilings) -> Iterator[dict]:
    weight = torch.rand(VALUE, device=device, dtype=dtype)
    for time in (1, 256, 4096):
        x, gate = torch.randn(2, 1, time, HEADS, VALUE, device=device, dtype=dtype)
        exact = ops.gated_rms_norm(x.double(), gate.double(), weight.double(), 1e-5)

        def run(x=x, gate=gate) -> Tensor:
            return ops.gated_rms_norm(x, gate, weight, 1e-5)

        floor = top.floor(10.0 * x.numel(), 3 * x.nbytes)
        yield row("gated RMSNorm", time, run, floor, relative_error(run(), exact), device)


if __name__ == "__main__":
    main()
