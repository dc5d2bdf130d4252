"""What a run of a recipe came to: a table of its stages, its aims, and curves, as Markdown, JSON and PNG."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from typing import Any

from infinitevl.train.curves import smooth
from infinitevl.train.keeping import METRICS, Point, read_metrics, replace
from infinitevl.train.stages import Stage

REPORT, NUMBERS, LOSSES = "report.md", "report.json", "losses.png"
LAST = 20  # steps whose mean is the final loss of a stage
PAPER = {"layerwise": "I a", "distillation": "I b", "sft": "II", "long": "III"}  # what the paper calls a stage
HEAD = ("stage", "loss", "steps", "tokens", "seconds", "tokens/s", "final loss", "MFLOP/token", "TFLOP/s", "of peak")


@dataclass(frozen=True)
class Device:
    """count: of processes, with one each; peak: FLOP/s of one, None where they are not known."""

    name: str
    count: int = 1
    peak: float | None = None


@dataclass(frozen=True)
class Told:
    """One stage. seconds: of its steps, data included; loss: the mean of the last; utilisation: of the devices'
    peak. None: not known."""

    name: str
    objective: str
    steps: int
    tokens: int
    seconds: float
    tokens_per_second: float
    loss: float
    flops_per_token: float | None
    flops_per_second: float | None
    utilisation: float | None


@dataclass(frozen=True)
class Aim:
    """What was hoped for, and what was found. value: in percent or in points; met: None where it is only measured;
    missed: a sentence, where it is not met."""

    about: str
    aim: str
    value: float
    shown: str
    met: bool | None = None
    missed: str = ""


@dataclass(frozen=True)
class Report:
    """figures: paths from where the report is, by title; evaluation_seconds: None where nothing was evaluated."""

    recipe: str
    device: Device
    stages: Sequence[Told]
    aims: Sequence[Aim]
    figures: dict[str, str]
    evaluation_seconds: float | None

    @property
    def training_seconds(self) -> float:
        return sum(stage.seconds for stage in self.stages)

    @property
    def seconds(self) -> float:
        return self.training_seconds + (self.evaluation_seconds or 0.0)


def tell(stage: Stage, points: Sequence[Point], flops: float | None, device: Device) -> Told:
    """The numbers of a stage of at least one step. flops: per token."""
    seconds, tokens = spent(points), points[-1].tokens
    achieved = None if flops is None else flops * tokens / seconds
    return Told(
        name=stage.name,
        objective=stage.loss,
        steps=points[-1].step,
        tokens=tokens,
        seconds=seconds,
        tokens_per_second=tokens / seconds,
        loss=fmean(point.loss for point in points[-LAST:]),
        flops_per_token=flops,
        flops_per_second=achieved,
        utilisation=achieved / (device.count * device.peak) if achieved and device.peak else None,
    )


def spent(points: Sequence[Point]) -> float:
    """Seconds of all steps."""
    before = [0, *(point.tokens for point in points)]
    steps = zip(points, pairwise(before), strict=True)
    return sum((now - then) / point.tokens_per_second for point, (then, now) in steps)


def write(report: Report, out: Path) -> Path:
    """report.md, whose path is returned, and report.json."""
    seconds = {"training_seconds": report.training_seconds, "seconds": report.seconds}
    numbers = json.dumps({**asdict(report), **seconds}, indent=2) + "\n"
    replace(out / NUMBERS, lambda partial: partial.write_text(numbers))
    replace(out / REPORT, lambda partial: partial.write_text(markdown(report)))
    return out / REPORT


def markdown(report: Report) -> str:
    figures = [f"![{title}]({path})" for title, path in report.figures.items()]
    parts = [f"# {report.recipe}", _about(report), "## Training", _stages(report), _counted(report), "## Aims"]
    return "\n\n".join([*parts, *_aims(report), *(["## Figures", *figures] if figures else [])]) + "\n"


def _about(report: Report) -> str:
    evaluation = report.evaluation_seconds
    tested = "nothing evaluated" if evaluation is None else f"{clock(evaluation)} of evaluation"
    device = report.device
    devices = f"{device.count} x {device.name}" if device.count > 1 else device.name
    return f"{clock(report.seconds)} on {devices}: {clock(report.training_seconds)} of training, {tested}."


def _stages(report: Report) -> str:
    return table(HEAD, [_row(told) for told in report.stages])


def _row(told: Told) -> list[str]:
    paper = PAPER.get(told.name)
    return [
        f"{told.name} ({paper})" if paper else told.name,
        told.objective.replace("_", " "),
        f"{told.steps:,}",
        f"{told.tokens:,}",
        f"{told.seconds:,.1f}",
        f"{told.tokens_per_second:,.0f}",
        f"{told.loss:.4g}",
        _scaled(told.flops_per_token, 1e-6, ",.1f"),
        _scaled(told.flops_per_second, 1e-12, ".3g"),
        _scaled(told.utilisation, 1.0, ".1%"),
    ]


def _counted(report: Report) -> str:
    peak = report.device.peak
    known = f"{peak / 1e12:,.0f} TFLOP/s in bf16" if peak else "not known, so that no share of it is told"
    return (
        f"Seconds are those of the steps, waiting for data included. The final loss is the mean of the last {LAST} "
        "steps. FLOPs were counted in a forward and a backward pass over one row, without fused kernels: the frames, "
        "a teacher's pass, what a mask hides, and what the losses compute again for the backward pass are among them. "
        f"The peak of this device is {known}."
    )


def _aims(report: Report) -> list[str]:
    if report.evaluation_seconds is None:
        return ["Nothing was evaluated (eval=none)."]
    verdicts = {True: "yes", False: "no", None: ""}
    rows = [[aim.about, aim.aim, aim.shown, verdicts[aim.met]] for aim in report.aims]
    missed = "\n".join(f"- {aim.missed}" for aim in report.aims if aim.missed)
    about = "An aim is met or not by the accuracy alone; how well that is known, its interval tells."
    return [
        about,
        table(("", "aim", "measured (95% interval)", "met"), rows),
        *([f"Missed:\n\n{missed}"] if missed else []),
    ]


def draw_losses(stages: Sequence[str], out: Path) -> bool:
    """The losses of stages, a panel each, with running means. False, and no picture, without matplotlib or stages."""
    if not stages or find_spec("matplotlib") is None:
        return False
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    size = (3.2 * len(stages), 3.2)
    figure, axes = pyplot.subplots(1, len(stages), squeeze=False, figsize=size, layout="constrained")
    for axis, name in zip(axes.flat, stages, strict=True):
        _panel(axis, name, read_metrics(out / name / METRICS))
    axes[0, 0].set_ylabel("loss")
    replace(out / LOSSES, lambda partial: figure.savefig(partial, dpi=120, format="png"))
    pyplot.close(figure)
    return True


def _panel(axis: Any, name: str, points: Sequence[Point]) -> None:
    steps, losses = [point.step for point in points], [point.loss for point in points]
    axis.plot(steps, losses, linewidth=0.5, alpha=0.4)
    axis.plot(steps, smooth(losses), linewidth=1.5)
    axis.set(title=f"{name} ({PAPER[name]})" if name in PAPER else name, xlabel="step", yscale="log")
    axis.grid(alpha=0.3)


def told_stages(stages: Sequence[Stage], out: Path, flops: dict[str, float | None], device: Device) -> list[Told]:
    """Those that were trained in `out`, but for those of no steps. flops: per token, by stage."""
    metrics = {stage.name: read_metrics(out / stage.name / METRICS) for stage in stages}
    return [tell(stage, metrics[stage.name], flops[stage.name], device) for stage in stages if metrics[stage.name]]


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, ["---"] * len(head), *rows))


def clock(seconds: float) -> str:
    """Hours, minutes and seconds for people: 1 h 02 min, 2 min 05 s, 41 s."""
    minutes, rest = divmod(round(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60:02} min"
    return f"{minutes} min {rest:02} s" if minutes else f"{rest} s"


def _scaled(value: float | None, factor: float, form: str) -> str:
    return "" if value is None else format(value * factor, form)
