"""What the ablations found: a table for the terminal and for Markdown, JSON, bars and curves."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from statistics import fmean, stdev

from rich.box import SIMPLE_HEAD
from rich.table import Table

from infinitevl.train.ablations import CHAIN, LONG, VARIANTS, Result, folder_of
from infinitevl.train.curves import smooth
from infinitevl.train.keeping import METRICS, read_metrics, replace

ABOUT = {variant.name: variant.about for variant in VARIANTS}
LOSSES = dict(zip((*CHAIN, LONG), ("I a", "I b", "II", "III"), strict=True))  # their headings


@dataclass(frozen=True)
class Mean:
    """Over the seeds; spread: the standard deviation, None of a single seed."""

    mean: float
    spread: float | None

    def text(self, factor: float, digits: int, with_spread: bool) -> str:
        mean = f"{factor * self.mean:.{digits}f}"
        return mean if self.spread is None or not with_spread else f"{mean} ± {factor * self.spread:.{digits}f}"


@dataclass(frozen=True)
class Row:
    """One variant. accuracy: by name of what was asked; losses: by stage; diverged: where, of every seed that did."""

    variant: str
    seeds: int
    diverged: list[str]
    accuracy: dict[str, Mean]
    losses: dict[str, Mean]


def rows(results: Sequence[Result]) -> list[Row]:
    """A row for every variant, in order. Means are over the seeds that did not diverge there."""
    return [_row([result for result in results if result.variant == name]) for name in _names(results)]


def _names(results: Sequence[Result]) -> list[str]:
    return list(dict.fromkeys(result.variant for result in results))


def _row(results: list[Result]) -> Row:
    scores = [(score.name, score.right / max(1, score.asked)) for result in results for score in result.scores]
    losses = [pair for result in results for pair in result.losses.items()]
    diverged = [result.diverged for result in results if result.diverged]
    return Row(results[0].variant, len(results), diverged, _means(scores), _means(losses))


def _means(pairs: list[tuple[str, float]]) -> dict[str, Mean]:
    """The mean of every name's values."""
    grouped: dict[str, list[float]] = {}
    for name, value in pairs:
        grouped.setdefault(name, []).append(value)
    return {name: Mean(fmean(x), stdev(x) if len(x) > 1 else None) for name, x in grouped.items()}


def chances(results: Sequence[Result]) -> dict[str, float]:
    """What a guesser gets, in percent of every column of answers."""
    return {score.name: 100 * score.chance for result in results for score in result.scores}


def asked(results: Sequence[Result]) -> dict[str, int]:
    """Questions of every column, per run."""
    return {score.name: score.asked for result in results for score in result.scores}


def cells(results: Sequence[Result], spread: bool = True) -> tuple[list[str], list[list[str]]]:
    """Header and lines of the table. Answers in percent, losses as they are."""
    lines, names = rows(results), list(chances(results))
    stages = [stage for stage in LOSSES if any(stage in line.losses for line in lines)]
    header = ["variant", *names, *(LOSSES[stage] for stage in stages), "seeds"]
    table = [["chance", *(f"{chance:.1f}" for chance in chances(results).values()), *[""] * len(stages), ""]]
    for line in lines:
        shares = [line.accuracy[name].text(100, 1, spread) if name in line.accuracy else "-" for name in names]
        losses = [line.losses[stage].text(1, 3, spread) if stage in line.losses else "-" for stage in stages]
        table.append([line.variant, *shares, *losses, str(line.seeds)])
    return header, table


def terminal(results: Sequence[Result]) -> Table:
    """The means alone, which fit into 80 columns; below, what diverged."""
    header, lines = cells(results, spread=False)
    told = [f"{row.variant} diverged: {'; '.join(row.diverged)}" for row in rows(results) if row.diverged]
    table = Table(title="right answers in %, final losses of the stages", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.caption = "\n".join(told)
    for name in header:
        table.add_column(name, justify="left" if name == header[0] else "right", no_wrap=True)
    for line in lines:
        table.add_row(*line)
    return table


def markdown(results: Sequence[Result]) -> str:
    header, lines = cells(results)
    counts = ", ".join(f"{count} questions of {name}" for name, count in asked(results).items())
    told = {row.variant: "".join(f"; diverged at {where}" for where in row.diverged) for row in rows(results)}
    table = [header, ["---"] * len(header), *lines]
    return "\n".join([
        "# Ablations",
        "",
        "Right answers in percent, and the final loss of each stage (I a, I b, II, III): mean ± standard deviation "
        "over the seeds that did not diverge. All variants take the same number of steps on the same batches. "
        f"Asked per run: {counts or 'nothing'}.",
        "",
        *(f"| {' | '.join(line)} |" for line in table),
        "",
        *(f"- {name}: {ABOUT[name]}{told[name]}" for name in _names(results)),
        "",
    ])  # fmt: skip


def write(results: Sequence[Result], out: Path) -> None:
    """ablations.json, ablations.md and, where matplotlib is there, ablations.png and losses.png."""
    found = {"variants": [asdict(row) for row in rows(results)], "runs": [asdict(result) for result in results]}
    replace(out / "ablations.json", lambda path: path.write_text(json.dumps(found, indent=2) + "\n"))
    figures = _figures(results, out) if find_spec("matplotlib") is not None else []
    replace(out / "ablations.md", lambda path: path.write_text("\n".join([markdown(results), *figures])))


def _figures(results: Sequence[Result], out: Path) -> list[str]:
    """Draw what there is to be seen; lines of Markdown that show it."""
    lines = []
    if chances(results):
        _chart(results, out / "ablations.png")
        lines += ["![Right answers by variant](ablations.png)", ""]
    losses = {(result.variant, result.seed): _losses(out, result) for result in results}
    if any(known for _, known in losses.values()):
        _curves(losses, out / "losses.png")
        lines += [f"![Loss of stage {LOSSES[CHAIN[-1]]} by variant](losses.png)", ""]
    return lines


def _losses(out: Path, result: Result) -> tuple[int, list[float]]:
    """Of the last stage of the chain, which learns right answers: the steps before it, and its losses."""
    folder = folder_of(out, result.variant, result.seed)
    *before, last = (read_metrics(folder / stage / METRICS) for stage in CHAIN)
    return sum(map(len, before)), [point.loss for point in last]


def _curves(losses: dict[tuple[str, int], tuple[int, list[float]]], png: Path) -> None:
    """A line for every seed, in its variant's colour, against the steps of all stages."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(8, 5), layout="constrained")
    colours: dict[str, str] = {}
    for (variant, _), (before, values) in losses.items():
        if values:
            label = None if variant in colours else variant
            colour = colours.setdefault(variant, f"C{len(colours)}")
            axis.plot(range(before + 1, before + 1 + len(values)), smooth(values), colour, linewidth=1.2, label=label)
    axis.set(xlabel="steps of all stages", ylabel=f"loss of stage {LOSSES[CHAIN[-1]]}", yscale="log")
    axis.grid(alpha=0.3)
    axis.legend()
    figure.savefig(png, dpi=120)
    pyplot.close(figure)


def _chart(results: Sequence[Result], png: Path) -> None:
    """Bars of every variant, side by side for every kind of question, and a line where chance is."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    lines, chance = rows(results), chances(results)
    figure, axes = pyplot.subplots(
        1,
        len(chance),
        sharey=True,
        squeeze=False,
        figsize=(3 * len(chance) + 2, 0.4 * len(lines) + 2),
        layout="constrained",
    )
    for axis, (name, guessed) in zip(axes.flat, chance.items(), strict=True):
        means = [line.accuracy.get(name, Mean(0.0, None)) for line in lines]
        errors = [100 * (mean.spread or 0.0) for mean in means]
        axis.barh([line.variant for line in lines], [100 * mean.mean for mean in means], xerr=errors, capsize=3)
        axis.axvline(guessed, color="black", linestyle="--", linewidth=1, label="chance")
        axis.set(title=name, xlabel="right answers, %", xlim=(0, 100))
    axes[0, 0].invert_yaxis()
    axes[0, -1].legend()
    figure.savefig(png, dpi=120)
    pyplot.close(figure)
