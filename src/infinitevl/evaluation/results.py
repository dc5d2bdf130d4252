"""What an evaluation found, as JSON, as a table for people."""

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from infinitevl.errors import InfiniteVLError
from infinitevl.evaluation.plan import Plan
from infinitevl.evaluation.scores import Line
from infinitevl.evaluation.watching import Norm

HEAD = ("accuracy", "95% interval", "chance", "asked")


@dataclass
class Results:
    """model, plan: what was evaluated, and how; cells, kinds, held_out: accuracies, see Tally; norms: of the memory
    in long streams; window_frames: frames that count as one attention window; seconds: by test; others: names of
    other models, which are variants of cells."""

    model: dict[str, Any]
    plan: Plan
    window_frames: int
    cells: list[Line] = field(default_factory=list)
    kinds: list[Line] = field(default_factory=list)
    held_out: list[Line] = field(default_factory=list)
    norms: list[Norm] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    others: list[str] = field(default_factory=list)

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes) -> "Results":
        """What `to_json` wrote. InfiniteVLError for anything else."""
        try:
            values = json.loads(text)
            plan: dict[str, Any] = {key: tuple(x) if isinstance(x, list) else x for key, x in values["plan"].items()}
            lines = {name: [Line(**line) for line in values[name]] for name in ("cells", "kinds", "held_out")}
            norms = [Norm(**norm) for norm in values["norms"]]
            return cls(**{**values, **lines, "plan": Plan(**plan), "norms": norms})
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise InfiniteVLError(f"these are no results of an evaluation: {error}") from None

    def beside(self, name: str, other: "Results") -> "Results":
        """With what another model answered as one more variant, of this name.

        InfiniteVLError where other frames, facts or windows were asked about.
        """
        mine, its = self._asked_alike(), other._asked_alike()
        for what in mine:
            if mine[what] != its[what]:
                raise InfiniteVLError(f"{name} cannot be shown beside it: {what} {its[what]} there, {mine[what]} here")
        theirs = [replace(line, variant=name) for line in other.cells if line.variant == "model"]
        return replace(self, cells=[*self.cells, *theirs], others=[*self.others, name])

    def _asked_alike(self) -> dict[str, float]:
        """What lines of two models must have in common to be compared."""
        plan = self.plan
        windows = {"frames of a window": self.window_frames, "pixels of a frame": plan.size}
        return {**windows, "facts": plan.facts, "windows before facts are counted": plan.load_age}

    def loads(self) -> list[Line]:
        """Cells of the number of facts, of the models as they are."""
        lines = self.of("memory", windows=self.plan.load_age)
        return [line for line in lines if line.variant in ("model", *self.others)]

    def of(self, test: str, variant: str | None = None, **fields: Any) -> list[Line]:
        """The cells of a test, with these values."""
        wanted = {"test": test, **({} if variant is None else {"variant": variant}), **fields}
        return [line for line in self.cells if all(getattr(line, key) == value for key, value in wanted.items())]


def markdown(results: Results) -> str:
    """Tables of everything but norms."""
    plan = results.plan
    sections = {
        "Short tests": _short(results),
        "Memory: age of the fact": _pivot(results.of("memory", cards=plan.facts), "windows"),
        "Memory: number of facts": _pivot(results.loads(), "cards"),
    }
    for age in sorted({line.windows for line in results.of("length") if line.windows is not None}):
        sections[f"Long streams: facts {age:g} windows old"] = _pivot(results.of("length", windows=age), "tokens")
    kinds = [[_name(line), line.kind, *_row(line)] for line in results.kinds]
    pairs = [[_name(line), "yes" if line.held_out else "no", *_row(line)] for line in results.held_out]
    sections["Kinds of questions"] = _table(["test", "kind", *HEAD], kinds)
    sections["Never shown in training"] = _table(["test", "held out", *HEAD], pairs)
    parts = [f"## {title}\n\n{text}" for title, text in sections.items()]
    return "\n\n".join([f"# {results.model['name']}", _about(results), *parts]) + "\n"


def write(path: Path, make: Callable[[Path], Any]) -> None:
    """`make` a file under another name, then put it in the place of `path`, whole or not at all."""
    partial = path.with_name(f".partial.{path.name}")
    make(partial)
    os.replace(partial, path)


def _about(results: Results) -> str:
    seconds = sum(results.seconds.values())
    return (
        f"{results.model['parameters'] / 1e6:.1f}M parameters. An attention window is {results.window_frames} frames "
        f"of {results.plan.size}x{results.plan.size} pixels. Test split of StreamWorld, {seconds:.0f} s. "
        f"amnesic: the memory is emptied every window, so that nothing older than {results.model['reach']} windows "
        "can be known; reset: it is emptied once, one window before the question."
    )


def _short(results: Results) -> str:
    lines = [line for test in ("perception", "episode", "text") for line in results.of(test)]
    return _table(["test", *HEAD], [[_name(line), *_row(line)] for line in lines])


def _pivot(lines: Sequence[Line], column: str) -> str:
    """A row for each value of `column`, a column for each variant."""
    variants = list(dict.fromkeys(line.variant for line in sorted(lines, key=lambda line: line.variant != "model")))
    rows = []
    for value in sorted({getattr(line, column) for line in lines}):
        found = {line.variant: line for line in lines if getattr(line, column) == value}
        cells = [f"{_percent(x.accuracy)} ({_interval(x)})" if (x := found.get(name)) else "" for name in variants]
        shown = f"{value:g}" if column == "windows" else f"{value:,}"
        rows.append([shown, *cells, _percent(next(iter(found.values())).chance)])
    return _table([column, *variants, "chance"], rows)


def _table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def _name(line: Line) -> str:
    name = line.group if line.test == line.group else f"{line.test}: {line.group}"
    return name if line.variant == "model" else f"{name}, {line.variant}"


def _row(line: Line) -> list[Any]:
    return [_percent(line.accuracy), _interval(line), _percent(line.chance), line.asked]


def _interval(line: Line) -> str:
    return f"{100 * line.low:.1f}-{100 * line.high:.1f}"


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"
