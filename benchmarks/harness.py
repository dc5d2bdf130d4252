"""Timing, the machine's measured ceilings, and the two forms of a result: a table and one JSON line."""

import json
import platform
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from time import perf_counter

import torch
from rich.console import Console
from rich.table import Table


def timed(run: Callable[[], object], device: torch.device, repeats: int = 15, warmup: int = 2) -> list[float]:
    """Seconds of each call, after warming up; on a GPU between events, so that launches do not count twice."""
    for _ in range(warmup):
        run()
    if device.type == "cuda":
        return _timed_cuda(run, repeats)
    seconds = []
    for _ in range(repeats):
        began = perf_counter()
        run()
        seconds.append(perf_counter() - began)
    return seconds


def _timed_cuda(run: Callable[[], object], repeats: int) -> list[float]:
    seconds = []
    for _ in range(repeats):
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        run()
        stop.record()
        torch.cuda.synchronize()
        seconds.append(start.elapsed_time(stop) / 1000)
    return seconds


def seconds_of(run: Callable[[], object], device: torch.device, repeats: int = 15) -> float:
    """Median seconds of a call."""
    return median(timed(run, device, repeats))


@dataclass
class Ceilings:
    """Measured on this machine: bytes a second (read plus written) of a large copy, operations a second of a
    large matrix product."""

    bytes_per_second: float
    flops: float

    def floor(self, operations: float, nbytes: float) -> float:
        """The least seconds that so many operations and bytes can take."""
        return max(operations / self.flops, nbytes / self.bytes_per_second)


def ceilings(device: torch.device, dtype: torch.dtype) -> Ceilings:
    big = device.type == "cuda"
    source = torch.randn(2**30 if big else 2**25, device=device)
    target = torch.empty_like(source)
    copy = seconds_of(lambda: target.copy_(source), device)
    n = 8192 if big else 2048
    a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
    product = seconds_of(lambda: a @ b, device, 7)
    return Ceilings(2 * source.nbytes / copy, 2 * n**3 / product)


def relative_error(found: torch.Tensor, exact: torch.Tensor) -> float:
    """|found - exact| / |exact|, in float64."""
    exact = exact.double()
    return ((found.double() - exact).norm() / exact.norm()).item()


def machine(device: torch.device) -> str:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} CPU threads"
    return f"{name}, torch {torch.__version__}, Python {platform.python_version()}"


def report(title: str, rows: list[dict], **facts: object) -> None:
    """Print `rows` as a table and, last, everything as one JSON line."""
    table = Table(title=title, title_justify="left")
    for name in rows[0]:
        table.add_column(name, justify="left" if isinstance(rows[0][name], str) else "right")
    for row in rows:
        table.add_row(*(_cell(value) for value in row.values()))
    Console(width=140, highlight=False).print(table)
    print(json.dumps({"benchmark": title, **facts, "rows": rows}))


def _cell(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
