"""The products of the language model and what lies between them at inference, at the 4B model's sizes in bfloat16.

python benchmarks/gpu_products.py [--quick]

First every product against float64 for some numbers of rows, and a captured chain of layers against itself without a
graph; an error above its bound ends the run before anything is timed. Then medians of graph replays, cuBLAS (with
PyTorch's own pointwise kernels) beside each. A graph holds enough calls, each with weights of its own, that the
weights do not stay in the L2 cache. Last, all products, norms and gates of the 36 layers one after the other, a token,
some tokens and a frame. The floor is the machine's measured bandwidth and matrix product.

A product that is added to the residual is measured with the norm of the sum, as the model calls it.
"""

import argparse
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from harness import captured, microseconds, relative_error, report
from infinitevl import ops
from infinitevl.machine import Ceilings, ceilings, machine

HIDDEN, INNER, LAYERS, EPS = 2048, 11008, 36, 1e-6
BOUND = 1e-2  # bfloat16, relative
CUDA, BF16 = torch.device("cuda"), torch.bfloat16
CACHE = 400e6  # bytes of weights that surely do not stay in the L2 cache


@dataclass(frozen=True)
class Product:
    """A weight [n, k]; gated: SwiGLU's two; onto: with a residual and the norm of the sum; bias: with one."""

    n: int
    k: int
    gated: bool = False
    onto: bool = False
    bias: bool = False


PRODUCTS = {
    "delta q k v g a b": Product(12320, HIDDEN),
    "delta o": Product(HIDDEN, 4096, onto=True),
    "attention q k v": Product(2560, HIDDEN, bias=True),
    "attention o": Product(HIDDEN, HIDDEN, onto=True),
    "gate up": Product(2 * INNER, HIDDEN, gated=True),
    "down": Product(HIDDEN, INNER, onto=True),
    "head": Product(151936, HIDDEN),
}
DELTA = ("delta q k v g a b", "delta o", "gate up", "down")
ATTENTION = ("attention q k v", "attention o", "gate up", "down")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="1, 16 and 256 rows only")
    rows = (1, 16, 256) if parser.parse_args().quick else (1, 8, 16, 64, 256)
    torch.manual_seed(0)
    with torch.inference_mode():
        layers = [Layer(ATTENTION if i % 4 == 0 else DELTA) for i in range(LAYERS)]
        errors = checks(layers)
        top = ceilings(CUDA, BF16)
        table = [*timings(rows, top), *chains(layers, rows, top)]
    report(
        "gpu_products", table, machine=machine(CUDA), bytes_per_second=top.bytes_per_second, flops=top.flops,
        errors=errors,
    )  # fmt: skip


# --- inputs


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, device=CUDA, dtype=BF16)


def weight_of(product: Product) -> Tensor:
    return normal(product.n, product.k) * product.k**-0.5


def inputs_of(product: Product, m: int) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """x, a slice of a wider tensor; bias; residual; weight of the norm."""
    x = normal(m, product.k + 64)[:, : product.k]
    residual, norm = (normal(m, product.n), 1 + 0.1 * normal(product.n)) if product.onto else (None, None)
    return x, normal(product.n) if product.bias else None, residual, norm


def run(product: Product, inputs: tuple, weight: Tensor, backend: str = "triton") -> tuple[Tensor, ...]:
    """The result; the sum and its norm."""
    x, bias, residual, norm = inputs
    if product.onto:
        return ops.linear_norm(x, weight, bias, residual, None, norm, EPS, backend=backend)
    if product.gated:
        return (ops.swiglu(x, weight, bias, backend=backend),)
    return (ops.linear(x, weight, bias, backend=backend),)


class Layer:
    """Products, norms and gates of a layer; what lies between projections and o is left out."""

    def __init__(self, names: tuple[str, ...]):
        self.products = [PRODUCTS[name] for name in names]
        self.weights = [weight_of(product) for product in self.products]
        self.bias = normal(self.products[0].n) if self.products[0].bias else None
        self.norms = 1 + 0.1 * normal(2, HIDDEN)

    def __call__(self, x: Tensor, y: Tensor, backend: str) -> tuple[Tensor, Tensor]:
        """x and the norm of it, before and after."""
        onto, (w_into, w_onto, w_mlp, w_down) = self.products[1], self.weights
        y = ops.linear(y, w_into, self.bias, backend=backend)
        x, y = ops.linear_norm(y[:, : onto.k], w_onto, None, x, None, self.norms[0], EPS, backend=backend)
        y = ops.swiglu(y, w_mlp, backend=backend)
        return ops.linear_norm(y, w_down, None, x, None, self.norms[1], EPS, backend=backend)


def chain(layers: list[Layer], x: Tensor, backend: str = "triton", after: Callable[[], None] = lambda: None) -> Tensor:
    """after: called after every layer. The last norm of all."""
    y = ops.rms_norm(x, layers[-1].norms[1], EPS, backend=backend)
    for layer in layers:
        x, y = layer(x, y, backend)
        after()
    return y


# --- checks


def checks(layers: list[Layer]) -> dict[str, float]:
    errors = {}
    for name, product in PRODUCTS.items():
        weight = weight_of(product)
        exact_weight = weight.double()
        for m in (1, 5, 16, 64, 100, 256):
            inputs = inputs_of(product, m)
            exact = run(product, tuple(None if y is None else y.double() for y in inputs), exact_weight, "eager")
            found = run(product, inputs, weight)
            errors[f"{name}, {m} rows"] = max(relative_error(a, b) for a, b in zip(found, exact, strict=True))
    for m in (1, 16, 256):
        errors[f"{LAYERS} layers, {m} rows, in a graph"] = chain_error(layers, m)
    for name, error in errors.items():
        print(f"{name}: {error:.2e}")
    if not all(error < BOUND for error in errors.values()):
        sys.exit("wrong results: nothing is timed")
    return errors


def chain_error(layers: list[Layer], m: int) -> float:
    """How far replays are from the same kernels one by one: where a launch begins too early, they differ."""
    x = normal(m, HIDDEN)
    graph, found = captured(lambda: chain(layers, x))
    worst = 0.0
    for _ in range(5):
        x.copy_(normal(m, HIDDEN))
        graph.replay()
        replayed = found.clone()
        worst = max(worst, relative_error(replayed, chain(layers, x, after=torch.cuda.synchronize).double()))
    return worst


# --- times


def timings(rows: tuple[int, ...], top: Ceilings) -> Iterator[dict]:
    for name, product in PRODUCTS.items():
        weights = [weight_of(product) for _ in range(max(1, round(CACHE / (2 * product.n * product.k))))]
        for m in rows:
            floor = top.floor(2 * m * product.n * product.k, 2 * (product.n * product.k + m * product.k))
            yield line(name, m, floor, partial(product_calls, product, inputs_of(product, m), weights))
    for m in rows:
        yield line("norm", m, top.floor(0, 4 * m * HIDDEN), partial(norm_calls, normal(m, HIDDEN), normal(HIDDEN)))


def product_calls(product: Product, inputs: tuple, weights: list[Tensor], backend: str) -> list[Callable[[], object]]:
    return [partial(run, product, inputs, weight, backend) for weight in weights]


def norm_calls(x: Tensor, weight: Tensor, backend: str) -> list[Callable[[], Tensor]]:
    return [partial(ops.rms_norm, x, weight, EPS, backend=backend)] * 20


def chain_calls(layers: list[Layer], x: Tensor, backend: str) -> list[Callable[[], Tensor]]:
    return [partial(chain, layers, x, backend)]


def chains(layers: list[Layer], rows: tuple[int, ...], top: Ceilings) -> Iterator[dict]:
    elements = sum(w.numel() for layer in layers for w in layer.weights)
    for m in rows:
        floor = top.floor(2 * m * elements, 2 * elements)
        yield line(f"{LAYERS} layers", m, floor, partial(chain_calls, layers, normal(m, HIDDEN)))


def line(name: str, m: int, floor: float, calls: Callable[[str], list[Callable[[], object]]]) -> dict:
    plain, ours = microseconds(calls("eager"), 20), microseconds(calls("triton"), 20)
    return {
        "what": name, "rows": m, "cuBLAS us": plain, "us": ours, "floor us": floor * 1e6,
        "of floor": f"{1e8 * floor / ours:.0f}%",
    }  # fmt: skip


if __name__ == "__main__":
    main()
