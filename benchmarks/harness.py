"""The error of a result, times of CUDA graphs, and how both are told: a table and one JSON line."""

import json
from collections.abc import Callable
from statistics import median

import torch
from rich.console import Console
from rich.table import Table


def relative_error(found: torch.Tensor, exact: torch.Tensor) -> float:
    """|found - exact| / |exact|, in float64."""
    exact = exact.double()
    return ((found.double() - exact).norm() / exact.norm()).item()


def captured(run: Callable[[], object]) -> tuple[torch.cuda.CUDAGraph, object]:
    """A graph of run() and what its replays fill. Runs it twice before, to compile."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        run()
        run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = run()
    return graph, result


def microseconds(calls: list[Callable[[], object]], repeats: int = 50) -> float:
    """Median over replays of one graph of all calls, per call."""
    graph, _ = captured(lambda: [call() for call in calls])
    return 1e3 * milliseconds(graph, repeats) / len(calls)


def milliseconds(graph: torch.cuda.CUDAGraph, repeats: int) -> float:
    """Median over replays, but the first five, on the device."""
    times = []
    for _ in range(repeats):
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        stop.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(stop))
    return median(times[5:])


def timing(op: str, batch: int, time: int, spent: float, floor: float, plan: str = "") -> dict:
    """A row of a table. spent: microseconds; floor: the least seconds that it can take."""
    share = f"{1e8 * floor / spent:.0f}%"
    return {"op": op, "B": batch, "T": time, "us": spent, "floor us": floor * 1e6, "of floor": share, "plan": plan}


def report(title: str, rows: list[dict], **facts: object) -> None:
    """Print `rows` as a table and, last, everything as one JSON line."""
    tabulate(title, rows)
    print(json.dumps({"benchmark": title, **facts, "rows": rows}))


def tabulate(title: str, rows: list[dict]) -> None:
    """Print rows of the same columns."""
    table = Table(title=title, title_justify="left")
    for name in rows[0]:
        table.add_column(name, justify="left" if isinstance(rows[0][name], str) else "right")
    for row in rows:
        table.add_row(*(_cell(value) for value in row.values()))
    Console(width=140, highlight=False).print(table)


def _cell(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
