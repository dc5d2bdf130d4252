"""loss.png: how a stage went."""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from statistics import fmean

from infinitevl.train.keeping import Point, read_metrics

CURVES = (
    ("loss", "loss", "log"),
    ("gradient_norm", "gradient norm", "log"),
    ("learning_rate", "learning rate", "linear"),
    ("tokens_per_second", "tokens/s", "linear"),
)
SMOOTHED = 20  # steps


def draw(metrics: Path, png: Path, title: str) -> bool:
    """Four curves against steps, with running means. False, and no picture, without matplotlib or without steps."""
    points = read_metrics(metrics)
    if not points or find_spec("matplotlib") is None:
        return False
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, 2, sharex=True, figsize=(10, 6), layout="constrained")
    figure.suptitle(title)
    for axis, (field, label, scale) in zip(axes.flat, CURVES, strict=True):
        _curve(axis, points, field)
        axis.set(ylabel=label, yscale=scale)
        axis.grid(alpha=0.3)
    for axis in axes[1]:
        axis.set_xlabel("step")
    figure.savefig(png, dpi=120)
    pyplot.close(figure)
    return True


def smooth(values: Sequence[float]) -> list[float]:
    """The mean of each value and those before it, SMOOTHED at most."""
    return [fmean(values[max(0, i + 1 - SMOOTHED) : i + 1]) for i in range(len(values))]


def _curve(axis, points: list[Point], field: str) -> None:
    steps, values = [point.step for point in points], [getattr(point, field) for point in points]
    axis.plot(steps, values, linewidth=0.5, alpha=0.4)
    axis.plot(steps, smooth(values), linewidth=1.5)
