"""The picture at the end of the demo: accuracy against age, time and memory per frame."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from math import inf
from pathlib import Path
from statistics import median
from typing import Any

from infinitevl.commands.board import Answered, count
from infinitevl.evaluation.scores import Score, wilson
from infinitevl.streaming.stream import Stream

AGES = (0.0, 0.25, 1.0, 4.0, 8.0, 16.0, 32.0, inf)  # edges of the bins, in windows
MIB = 2**20


@dataclass
class Curve:
    """After each frame: how long it took, the stream's memory, and what full attention would have cached, in bytes."""

    milliseconds: list[float] = field(default_factory=list)
    state_bytes: list[int] = field(default_factory=list)
    cache_bytes: list[int] = field(default_factory=list)
    _seconds: float = 0.0

    def add(self, stream: Stream) -> None:
        stats, text = stream.stats, stream.model.config.text_config
        per_token = 2 * text.num_hidden_layers * text.num_key_value_heads * text.head_dim * stream.model.dtype.itemsize
        self.milliseconds.append((stats.seconds - self._seconds) * 1000)
        self.state_bytes.append(stats.state_bytes)
        self.cache_bytes.append(stats.tokens * per_token)
        self._seconds = stats.seconds


def draw(path: Path, title: str, curve: Curve, answers: Sequence[Answered]) -> None:
    """A PNG. Accuracy is drawn where there are answers."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    panels = 3 if answers else 2
    figure, axes = pyplot.subplots(panels, 1, figsize=(9, 3 * panels), layout="constrained")
    figure.suptitle(title, fontsize=14, weight="bold")
    if answers:
        _accuracy(axes[0], answers)
    _time(axes[-2], curve)
    _memory(axes[-1], curve)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def by_age(answers: Sequence[Answered]) -> list[tuple[float, float, Score]]:
    """(from, below, score) of each bin of ages, in windows, that holds any answer."""
    bins = ((low, high, [a for a in answers if low <= a.windows < high]) for low, high in pairwise(AGES))
    return [(low, high, count(inside)) for low, high, inside in bins if inside]


def _accuracy(axis: Any, answers: Sequence[Answered]) -> None:
    bins = by_age(answers)
    places, shares = range(len(bins)), [score.right / score.asked for *_, score in bins]
    colours = ["tab:blue" if low < 1 else "tab:orange" for low, *_ in bins]
    axis.bar(places, shares, 0.7, color=colours)
    for place, (_, _, score) in zip(places, bins, strict=True):
        low, high = wilson(score.right, score.asked)
        axis.vlines(place, low, high, color="black", linewidth=1)
        axis.text(place + 0.04, min(high, 1.0) + 0.02, f"n={score.asked}", fontsize=8)
        axis.hlines(score.chance, place - 0.35, place + 0.35, color="grey", linestyle=":", linewidth=2)
    inside = sum(low < 1 for low, *_ in bins)
    if inside < len(bins):
        _mark_window(axis, inside - 0.5)
    axis.set_xticks(places, [_span(low, high) for low, high, _ in bins])
    axis.set_yticks([0, 0.25, 0.5, 0.75, 1], ["0%", "25%", "50%", "75%", "100%"])
    axis.set(ylim=(0, 1.22), xlabel="age of the evidence, in attention windows", ylabel="right answers")
    axis.set_title("Accuracy against age (lines: 95% interval, questions taken as independent; dots: guessing)")


def _mark_window(axis: Any, edge: float) -> None:
    axis.axvline(edge, color="black", linestyle="--", linewidth=1)
    axis.text(edge + 0.03, 1.14, "beyond it: memory alone", fontsize=8, va="center")
    axis.text(edge - 0.03, 1.14, "in the attention window", fontsize=8, va="center", ha="right")


def _span(low: float, high: float) -> str:
    return f"over {low:g}" if high == inf else f"{low:g} to {high:g}"


def _time(axis: Any, curve: Curve) -> None:
    frames, middle = range(1, len(curve.milliseconds) + 1), median(curve.milliseconds)
    axis.plot(frames, curve.milliseconds, linewidth=1)
    axis.axhline(middle, linestyle="--", linewidth=1, color="grey", label=f"median {middle:.1f} ms")
    axis.set(ylabel="ms per frame", title="Time per frame", ylim=(0, 4 * middle))
    axis.legend(loc="upper right")


def _memory(axis: Any, curve: Curve) -> None:
    frames = range(1, len(curve.state_bytes) + 1)
    axis.plot(
        frames,
        [nbytes / MIB for nbytes in curve.cache_bytes],
        linestyle=":",
        color="grey",
        label="full attention's cache would be",
    )
    axis.plot(frames, [nbytes / MIB for nbytes in curve.state_bytes], color="tab:blue", label="this stream")
    axis.set(xlabel="frames seen", ylabel="MiB", title="Memory of the stream", ylim=(0, None))
    axis.legend(loc="upper left")
