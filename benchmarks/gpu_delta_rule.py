"""The Triton gated delta rule on a GPU at the 4B model's sizes: checked against float64 first, then timed.

python benchmarks/gpu_delta_rule.py [--quick] [--sweep] [--kernels] [--compiled]
Times are those of a CUDA graph. `others`, on an H200: FLA 0.6 forward, measured in a CUDA graph (heads of 128 x 256),
and FlashQLA backward, published, the same work. --quick: bfloat16 and a few sizes only. --sweep: other launch
settings of each scan and sum. --kernels: the time of every kernel. --compiled: forward and backward by autograd
beside the eager operations by torch.compile, which takes a minute and a half to do so.
"""

import argparse
from collections.abc import Callable, Iterator
from itertools import product

import torch
from torch import Tensor
from triton.runtime.errors import OutOfResources

from harness import relative_error, report
from infinitevl import ops
from infinitevl.machine import Ceilings, ceilings, machine, seconds_of
from infinitevl.ops.triton import delta_rule_backward, delta_rule_forward

DEVICE = torch.device("cuda")
HEADS, KEY, VALUE, CHUNK = 16, 128, 256, 64
NAMES = ("o", "state", "d q", "d k", "d v", "d g", "d beta", "d state")
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 2e-2}
FORWARD = {
    (1, 1): None, (1, 256): 0.0419, (8, 256): 0.172, (1, 4096): 0.269, (1, 8192): None, (1, 32768): 2.057,
    (1, 131072): None,
}  # fmt: skip
BACKWARD = {(8, 256): None, (1, 4096): None, (1, 8192): 0.79, (1, 32768): 2.5}
QUICK = {(1, 256), (1, 8192), (1, 32768)}
SWEEP = {
    "_scan_kernel": {"VALUES": (16, 32, 64), "num_warps": (4, 8), "num_stages": (2, 3)},
    "_scan_back_kernel": {"VALUES": (16, 32, 64), "num_warps": (4, 8), "num_stages": (2, 3)},
    "_between_tokens_kernel": {"VALUES": (64, 128), "num_warps": (4, 8), "num_stages": (2, 3)},
    "_sum_values_kernel": {"VALUES": (32, 64), "num_warps": (8,), "num_stages": (1, 2, 3)},
    "_products_kernel": {"num_warps": (4, 8)},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="bfloat16 only, and fewer sizes")
    parser.add_argument("--sweep", action="store_true")
    parser.add_argument("--kernels", action="store_true")
    parser.add_argument("--compiled", action="store_true")
    given = parser.parse_args()
    torch.manual_seed(0)
    dtypes, kinds = ([torch.bfloat16], ["usual"]) if given.quick else (TOLERANCE, ["usual", "static", "wipes"])
    checks = [check(*case) for case in product(dtypes, kinds, ("state", "lengths seq_idx"))]
    report("gated delta rule: error against float64, eager's largest beside it", checks)
    if not all(row["ok"] == "yes" for row in checks):
        raise SystemExit("wrong results: nothing is timed")
    if given.sweep:
        report("launch settings", [row for kernel in SWEEP for row in sweep(kernel)])
    if given.kernels:
        kernels(1, 8192)
    if given.compiled:
        report(
            "forward and backward of 8,192 tokens by autograd", [trained(name, 8192) for name in ("triton", "eager")]
        )
    top = ceilings(DEVICE, torch.bfloat16)
    rows = [forward_row(*size, theirs, top) for size, theirs in FORWARD.items() if size in QUICK or not given.quick]
    rows += [backward_row(*size, theirs, top) for size, theirs in BACKWARD.items() if size in QUICK or not given.quick]
    report("gpu_delta_rule", rows, machine=machine(DEVICE), bytes_per_second=top.bytes_per_second, flops=top.flops)


def make(batch: int, time: int, dtype: torch.dtype, kind: str = "usual") -> list[Tensor]:
    """q, k, v, g, beta, state. static: one key and no decay, as of a still picture; wipes: some gates of -1e4."""
    q, k = torch.randn(2, batch, time, HEADS, KEY, device=DEVICE, dtype=dtype).unbind()
    v = torch.randn(batch, time, HEADS, VALUE, device=DEVICE, dtype=dtype)
    g, beta = (
        -0.3 * torch.randn(batch, time, HEADS, device=DEVICE).exp(),
        torch.rand(batch, time, HEADS, device=DEVICE),
    )
    if kind == "static":
        k, g = k[:, :1].expand_as(k), torch.zeros_like(g)
    if kind == "wipes":
        g = torch.where(torch.rand_like(g) < 0.2, -1e4, g)
    return [q, k, v, g, beta, torch.randn(batch, HEADS, KEY, VALUE, device=DEVICE)]


def check(dtype: torch.dtype, kind: str, variant: str) -> dict:
    """Relative errors of results and gradients; ok if all are within the tolerance, or near those of eager."""
    inputs, rows = make(3, 300, dtype, kind), {}
    if "seq_idx" in variant:
        rows["seq_idx"] = (torch.rand(3, 300, device=DEVICE) < 0.05).cumsum(1)
        rows["lengths"] = torch.tensor([300, 131, 0], device=DEVICE)
    weights = [torch.randn_like(inputs[2]), torch.randn_like(inputs[5])]
    exact = results("eager", [x.double() for x in inputs], rows, weights)
    errors, usual = (
        [relative_error(x, y) for x, y in zip(results(backend, inputs, rows, weights), exact, strict=True)]
        for backend in ("triton", "eager")
    )
    bounds = [TOLERANCE[dtype] * (1 if i < 2 else 3) for i in range(len(NAMES))]
    good = all(mine <= bound for mine, bound in zip(errors, bounds, strict=True))
    name = f"{str(dtype)[6:]}, {kind}, {variant}"
    return {"case": name, "ok": "yes" if good else "NO", **dict(zip(NAMES, errors, strict=True)), "eager": max(usual)}


def results(backend: str, inputs: list[Tensor], rows: dict[str, Tensor], weights: list[Tensor]) -> list[Tensor]:
    leaves = [x.detach().requires_grad_() for x in inputs]
    o, state = ops.gated_delta_rule(*leaves, **rows, backend=backend)
    if "lengths" in rows:
        real = torch.arange(o.shape[1], device=DEVICE) < rows["lengths"][:, None]
        o = o * real[..., None, None]
    loss = sum((x * w.to(x)).sum() for x, w in zip((o, state), weights, strict=True))
    return [o.detach(), state.detach(), *torch.autograd.grad(loss, leaves)]


def forward_row(batch: int, time: int, theirs: float | None, top: Ceilings) -> dict:
    inputs = make(batch, time, torch.bfloat16)
    run = graphed(lambda: ops.gated_delta_rule(*inputs, backend="triton"))
    nbytes = 2 * sum(x.nbytes for x in (inputs[0], inputs[2], inputs[5]))
    return row("forward", batch, time, run, top.floor(batch * operations(time), nbytes), theirs)


def backward_row(batch: int, time: int, theirs: float | None, top: Ceilings) -> dict:
    inputs = make(batch, time, torch.bfloat16)
    x = delta_rule_forward.Inputs.of(*inputs, None, None)
    d_o, d_final = torch.randn_like(inputs[2]), torch.randn_like(inputs[5])
    run = graphed(lambda: delta_rule_backward.gradients(x, d_o, d_final))
    nbytes = 2 * sum(x.nbytes for x in (*inputs[:2], *inputs[:1], *inputs[2:3], inputs[5]))
    return row("backward", batch, time, run, top.floor(2.5 * batch * operations(time), nbytes), theirs)


def trained(backend: str, time: int) -> dict:
    """Eager operations are compiled."""

    def rule(*leaves: Tensor) -> tuple[Tensor, Tensor]:
        return ops.gated_delta_rule(*leaves, backend=backend)

    forward = torch.compile(rule, dynamic=False) if backend == "eager" else rule
    leaves = [x.requires_grad_() for x in make(1, time, torch.bfloat16)]
    weights = torch.randn_like(leaves[2]), torch.randn_like(leaves[5])

    def run() -> None:
        torch.autograd.grad(forward(*leaves), leaves, weights)

    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):  # autograd goes back on the stream that it came by, and so does a graph
        run()
        launched = seconds_of(run, DEVICE, 11)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        run()
    replayed = seconds_of(graph.replay, DEVICE, 11)
    return {"backend": backend, "T": time, "one by one ms": 1e3 * launched, "graph ms": 1e3 * replayed}


def row(what: str, batch: int, time: int, run: Callable[[], object], floor: float, theirs: float | None) -> dict:
    seconds = seconds_of(run, DEVICE, 21)
    return {
        "what": what, "B": batch, "T": time, "ms": seconds * 1e3, "floor ms": floor * 1e3,
        "of floor": f"{100 * floor / seconds:.0f}%", "others ms": theirs or "",
    }  # fmt: skip


def operations(time: int) -> float:
    """Of the chunked forward pass of one row: multiply-adds, times two. Its gradient has 2.5 times as many."""
    size = min(CHUNK, time)
    return 2.0 * HEADS * (time / size) * (size * size * (2 * KEY + size / 3 + 2 * VALUE) + 3 * size * KEY * VALUE)


def graphed(run: Callable[[], object]) -> Callable[[], object]:
    """`run` as the replay of a CUDA graph, compiled and warm."""
    run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay


class Launched:
    """A kernel that is launched with other settings than its caller's."""

    def __init__(self, kernel, **settings) -> None:
        self.kernel, self.settings = kernel, settings

    def __getitem__(self, grid):
        return lambda *args, **options: self.kernel[grid](*args, **{**options, **self.settings})


def sweep(name: str) -> Iterator[dict]:
    """Times of a forward and a backward pass together for every setting of one kernel."""
    modules = [m for m in (delta_rule_forward, delta_rule_backward) if hasattr(m, name)]
    kernel = getattr(modules[0], name)
    for values in product(*SWEEP[name].values()):
        settings = dict(zip(SWEEP[name], values, strict=True))
        for module in modules:
            setattr(module, name, Launched(kernel, **settings))
        times = {f"B {batch} T {time} ms": try_out(batch, time) for batch, time in ((1, 256), (1, 8192), (8, 1024))}
        yield {"kernel": name, "settings": " ".join(f"{k}={v}" for k, v in settings.items()), **times}
    for module in modules:
        setattr(module, name, kernel)


def try_out(batch: int, time: int) -> float | str:
    try:
        return 1e3 * seconds_of(graphed(both(batch, time)), DEVICE, 11)
    except OutOfResources:
        return "too large"


def both(batch: int, time: int) -> Callable[[], object]:
    inputs = make(batch, time, torch.bfloat16)
    x = delta_rule_forward.Inputs.of(*inputs, None, None)
    d_o, d_final = torch.randn_like(inputs[2]), torch.randn_like(inputs[5])

    def run() -> None:
        ops.gated_delta_rule(*inputs, backend="triton")
        delta_rule_backward.gradients(x, d_o, d_final)

    return run


def kernels(batch: int, time: int) -> None:
    from torch.profiler import ProfilerActivity, profile

    run = both(batch, time)
    run()
    with profile(activities=[ProfilerActivity.CUDA]) as found:
        run()
        torch.cuda.synchronize()
    print(found.key_averages().table(sort_by="self_cuda_time_total", row_limit=12, max_name_column_width=40))


if __name__ == "__main__":
    main()
