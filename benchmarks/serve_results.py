"""What comes of a run of `serve.py`: tables, and a picture over time."""

import argparse
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from serve_load import MIB, Log

PARTS, POINTS = 6, 120  # rows of the table over time, points of the picture


def percentiles(what: str, seconds: Any) -> dict[str, Any]:
    """A row of the table, in milliseconds."""
    values = np.asarray(seconds) * 1e3
    cuts = {"p50 ms": 50, "p95 ms": 95, "p99 ms": 99, "max ms": 100}
    found = {name: float(np.percentile(values, cut)) if len(values) else None for name, cut in cuts.items()}
    return {"what": what, "count": len(values)} | found


def slope(memory: list[tuple[float, float, float]], after: float) -> tuple[float, float]:
    """Growth in MiB a minute by least squares, and its standard error."""
    points = np.array([(at / 60, nbytes / MIB) for at, nbytes, _ in memory if at >= after])
    x, y = points[:, 0] - points[:, 0].mean(), points[:, 1]
    growth = float(x @ y / (x @ x))
    rest = y - y.mean() - growth * x
    return growth, float(np.sqrt(rest @ rest / (len(x) - 2) / (x @ x)))


def summary(given: argparse.Namespace, log: Log, warm: float, alone: tuple[float, float] | None) -> dict[str, Any]:
    seconds, seen = given.seconds - warm, [counter["seen"] for counter in log.results]
    rate = float((np.asarray(log.at) >= warm).sum() / seconds)
    facts: dict[str, Any] = {
        "streams": given.streams, "fps": given.fps, "overload": given.overload, "clients": given.clients,
        "seconds": given.seconds, "warm_up": warm, "frames_per_s": rate,
        "frames_per_s_sent": given.streams * given.fps * given.overload,
        "engine_alone_frames_per_s": alone and alone[0], "of_engine_alone": alone and rate / alone[0],
        "answers_per_s": float((np.asarray(log.asked_at) >= warm).sum() / seconds),
        **{result: log.total(result) for result in ("seen", "skipped", "dropped", "refused")},
        "seen_least": min(seen), "seen_most": max(seen), "fairness": min(seen) / max(max(seen), 1),
        "dropped_least": min(counter["dropped"] for counter in log.results),
        "dropped_most": max(counter["dropped"] for counter in log.results),
        "refusals": dict(log.refusals), "errors": dict(log.errors), "cpu_cores_of_load": log.load / given.seconds,
    }  # fmt: skip
    if len(log.memory) > 8:
        growth, error = slope(log.memory, warm)
        (first, _, begin), (last, nbytes, end) = log.memory[0], log.memory[-1]
        facts |= {
            "memory_mib": nbytes / MIB, "memory_most_mib": max(each[1] for each in log.memory) / MIB,
            "growth_mib_per_min": growth, "growth_error": error, "cpu_cores": (end - begin) / (last - first),
            "frames_per_cpu_s": sum(seen) / (end - begin), "engine_alone_frames_per_cpu_s": alone and alone[1],
        }  # fmt: skip
    return facts


def over_time(log: Log, seconds: float) -> list[dict[str, Any]]:
    """The same in parts of the run of one length, a row each: times in milliseconds, memory the mean."""
    edges = np.linspace(0, seconds, PARTS + 1)
    return [_part(log, begin, end) for begin, end in pairwise(edges)]


def _part(log: Log, begin: float, end: float) -> dict[str, Any]:
    lags, firsts = (_within(at, values, begin, end) for at, values in _timed(log))
    resident = [nbytes for at, nbytes, _ in log.memory if begin <= at < end]
    return {
        "minutes": f"{begin / 60:.3g} to {end / 60:.3g}", "frames/s": len(lags) / (end - begin),
        "dropped": len(_within(log.dropped_at, log.dropped_at, begin, end)), "answers": len(firsts),
        "lag p50": _cut(lags, 50), "lag p95": _cut(lags, 95), "first p50": _cut(firsts, 50),
        "first p95": _cut(firsts, 95), "MiB": float(np.mean(resident)) / MIB if resident else None,
    }  # fmt: skip


def _timed(log: Log) -> tuple[tuple[Any, Any], tuple[Any, Any]]:
    """Lags, and times to the first piece, each with when they began."""
    return (log.at, log.lags), (log.asked_at, log.firsts)


def _within(at: Any, values: Any, begin: float, end: float) -> np.ndarray:
    """Those values that belong to begin <= at < end."""
    times = np.asarray(at)
    return np.asarray(values)[(times >= begin) & (times < end)]


def _cut(seconds: np.ndarray, cut: float) -> float | None:
    return float(np.percentile(seconds, cut)) * 1e3 if len(seconds) else None


def draw(log: Log, seconds: float, path: Path) -> None:
    """Lag, time to the first piece of an answer, drops and memory over time."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(4, 1, sharex=True, figsize=(9, 9), layout="constrained")
    edges = np.linspace(0, seconds, POINTS + 1)
    names = "lag of a frame, ms\n(due to acknowledged)", "first piece\nof an answer, ms"
    for panel, (at, values), name in zip(panels, _timed(log), names, strict=False):
        for cut, colour in ((50, "tab:blue"), (95, "tab:orange")):
            found = [(begin, end, _cut(_within(at, values, begin, end), cut)) for begin, end in pairwise(edges)]
            points = [((begin + end) / 120, value) for begin, end, value in found if value is not None]
            panel.plot(*zip(*points, strict=True), color=colour, label=f"p{cut}")
        panel.set(ylabel=name, ylim=(0, None))
        panel.legend(frameon=False)
    panels[2].stairs(np.histogram(log.dropped_at, edges)[0] / (edges[1] / 60), edges / 60, color="tab:red")
    panels[2].set(ylabel="frames dropped\na minute", ylim=(0, None))
    panels[3].plot([at / 60 for at, _, _ in log.memory], [each[1] / MIB for each in log.memory], color="tab:green")
    panels[3].set(ylabel="resident memory\nof the server, MiB", xlabel="minutes", ylim=(0, None))
    figure.savefig(path, dpi=120)
    plt.close(figure)


def show(facts: dict[str, Any]) -> None:
    table = Table(title="serve", title_justify="left", show_header=False)
    for name, value in facts.items():
        text = f"{value:.4g}" if isinstance(value, float) else str(value)
        table.add_row(name, text)
    Console(width=140, highlight=False).print(table)
