"""The results as pictures."""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from infinitevl.evaluation.results import Results, write
from infinitevl.evaluation.scores import Line

SIZE = (7.5, 4.5)  # inches
STYLES = ("-", "--", ":", "-.")


def draw(results: Results, out: Path) -> list[Path]:
    """age.png, load.png, length.png, norm.png in a folder, as far as there is something to draw. Nothing without
    matplotlib."""
    if find_spec("matplotlib") is None:
        return []
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    drawn = []
    for name, make in (("age", _age), ("load", _load), ("length", _length), ("norm", _norm)):
        figure, axis = pyplot.subplots(figsize=SIZE, layout="constrained")
        if make(axis, results):
            axis.grid(alpha=0.3)
            axis.legend(fontsize="small")
            write(out / f"{name}.png", lambda path, figure=figure: figure.savefig(path, dpi=120, format="png"))
            drawn.append(out / f"{name}.png")
        pyplot.close(figure)
    return drawn


def _age(axis: Any, results: Results) -> bool:
    """Accuracy against the age of the fact, of every variant."""
    lines = results.of("memory", cards=results.plan.facts)
    for variant in _variants(lines):
        _curve(axis, [line for line in lines if line.variant == variant], "windows", variant)
    _accuracy(axis, lines, "windows", f"Recall of one of {results.plan.facts} facts")
    axis.axvline(1, linestyle="--", linewidth=1, color="grey", label="edge of the window")
    if "amnesic" in _variants(lines):
        axis.axvline(results.model["reach"], linestyle="-.", linewidth=1, color="grey", label="reach without memory")
    axis.set_xlabel(f"age of the fact, in attention windows of {results.window_frames} frames")
    return bool(lines)


def _load(axis: Any, results: Results) -> bool:
    """Accuracy against the number of facts."""
    lines = results.loads()
    for variant in _variants(lines):
        _curve(axis, [line for line in lines if line.variant == variant], "cards", variant)
    _accuracy(axis, lines, "cards", f"Recall after {results.plan.load_age:g} attention windows")
    axis.set_xlabel("facts to remember")
    return bool(lines)


def _length(axis: Any, results: Results) -> bool:
    """Accuracy of fresh facts against the length of the stream; a colour for each age, a style for each variant."""
    lines = results.of("length")
    ages = sorted({line.windows for line in lines if line.windows is not None})
    for number, variant in enumerate(_variants(lines)):
        for colour, age in enumerate(ages):
            chosen = [line for line in lines if (line.variant, line.windows) == (variant, age)]
            label = "" if number else f"{age:g} window{'s' * (age != 1)} old"
            _curve(axis, chosen, "tokens", label, band=not number, color=f"C{colour}", linestyle=STYLES[number % 4])
        axis.plot([], [], color="grey", linestyle=STYLES[number % 4], label=variant)
    _accuracy(axis, lines, "tokens", "Recall of recent facts in a long stream")
    axis.set_xlabel("tokens seen before the question")
    return bool(lines)


def _norm(axis: Any, results: Results) -> bool:
    """Norm of the memory against frames; a colour for each layer, a style for each variant."""
    norms = results.norms
    variants = list(dict.fromkeys(norm.variant for norm in norms))
    for number, variant in enumerate(variants):
        points = sorted((norm.frames, norm.layers) for norm in norms if norm.variant == variant)
        for layer in range(len(points[0][1])):
            x, y = [frames for frames, _ in points], [norms[layer] for _, norms in points]
            axis.plot(x, y, linewidth=1.2, color=f"C{layer % 10}", linestyle=STYLES[number % 4])
        axis.plot([], [], color="grey", linestyle=STYLES[number % 4], label=variant)
    axis.set(xscale="log", yscale="log", xlabel="frames seen", ylabel="norm of a head's memory")
    axis.set_title("Gated DeltaNet memory; a colour for each layer")
    return bool(norms)


def _variants(lines: Sequence[Line]) -> list[str]:
    """The unchanged model first."""
    return sorted({line.variant for line in lines}, key=lambda name: (name != "model", name))


def _curve(axis: Any, lines: Sequence[Line], column: str, label: str, band: bool = True, **style: Any) -> None:
    """Accuracy in percent with its interval."""
    lines = sorted(lines, key=lambda line: getattr(line, column))
    x = [getattr(line, column) for line in lines]
    (drawn,) = axis.plot(x, [100 * line.accuracy for line in lines], marker="o", markersize=4, label=label, **style)
    if band:
        low, high = [100 * line.low for line in lines], [100 * line.high for line in lines]
        axis.fill_between(x, low, high, color=drawn.get_color(), alpha=0.15, linewidth=0)


def _accuracy(axis: Any, lines: Sequence[Line], column: str, title: str) -> None:
    """Axes of accuracy in percent against a column on a logarithmic scale, with the level of chance."""
    if lines:
        chance = 100 * sum(line.chance * line.asked for line in lines) / max(1, sum(line.asked for line in lines))
        axis.axhline(chance, linestyle=":", linewidth=1, color="black", label="chance")
    ticks = sorted({getattr(line, column) for line in lines})
    axis.set_xscale("log", base=2)
    axis.set_xticks(ticks, [_short(tick) for tick in ticks], minor=False)
    axis.set(ylim=(-2, 102), ylabel="right answers, %", title=title)


def _short(number: float) -> str:
    """To three digits, with K or M where it is large."""
    if number < 1024:
        return f"{number:g}"
    return f"{number / 1e3:.3g}K" if number < 999_500 else f"{number / 1e6:.3g}M"
