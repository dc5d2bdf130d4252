"""The curves of a benchmark as a picture."""

from pathlib import Path
from typing import Any

from infinitevl.benchmark.results import Results

COLOURS = ("tab:blue", "tab:orange", "tab:green", "tab:red", "tab:purple")


def draw(path: Path, results: Results) -> None:
    """A PNG: frames, tokens, first tokens and memory against context, floors dotted."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, 2, figsize=(11, 8), layout="constrained")
    figure.suptitle(results.title, fontsize=10)
    panels = (("frame", "ms per frame (band: to p99)"), ("token", "ms per token of an answer"),
              ("first", "ms from a question to its answer's first token"))  # fmt: skip
    for axis, (what, title) in zip(axes.flat, panels, strict=False):
        _times(axis, results, what)
        axis.set(title=title, ylabel="ms")
    _memory(axes[1, 1], results)
    for axis in axes.flat:
        axis.set(xscale="log", xlabel="tokens seen", **_scale(*axis.dataLim.intervaly))
        axis.axvline(results.window, color="grey", linewidth=1, linestyle="--", label="attention window")
        axis.grid(alpha=0.3)
    axes[0, 0].legend(fontsize=8)
    figure.savefig(path, dpi=120, format="png")
    pyplot.close(figure)


def _scale(low: float, high: float) -> dict[str, Any]:
    """Of the heights: from zero where they are of one order of magnitude."""
    return {"yscale": "log"} if high > 10 * low else {"ylim": (0, 1.1 * high)}


def _times(axis: Any, results: Results, what: str) -> None:
    for subject, colour in zip(results.subjects, _colours(results), strict=True):
        rows = results.of(subject)
        measured = [row for row in rows if row.frame_ms is not None]
        places = [row.context for row in measured]
        times = [getattr(row, f"{what}_ms") for row in measured]
        axis.plot(places, times, color=colour, marker="o", markersize=4, label=subject)
        if what == "frame":
            axis.fill_between(
                places, times, [row.frame_p99_ms for row in measured], color=colour, alpha=0.2, linewidth=0
            )
        floors = [getattr(row, f"{what}_floor_ms") for row in rows]
        axis.plot(
            [max(row.context, 1) for row in rows], floors, color=colour, linestyle=":", label=f"{subject}: floor"
        )


def _memory(axis: Any, results: Results) -> None:
    for subject, colour in zip(results.subjects, _colours(results), strict=True):
        rows = results.of(subject)
        sizes = [row.state_bytes / 2**20 for row in rows]
        axis.plot([max(row.context, 1) for row in rows], sizes, color=colour, marker="o", markersize=4)
    axis.set(title="memory of a stream", ylabel="MiB")


def _colours(results: Results) -> list[str]:
    return [COLOURS[i % len(COLOURS)] for i in range(len(results.subjects))]
