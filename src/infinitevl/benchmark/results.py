"""What a benchmark found: as one JSON line, as tables for a terminal and for a report, in a few sentences."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from infinitevl.benchmark.crowd import Crowd
from infinitevl.benchmark.lost import Lost
from infinitevl.benchmark.measure import ANSWER_TOKENS, Row
from infinitevl.machine import Ceilings

OURS = "infinitevl"
COLUMNS = (
    "context", "frames/s", "ms/frame", "p95", "p99", "floor", "ms/token", "floor", "1st token", "floor", "memory",
)  # fmt: skip
MEASURED = ("frame", "token", "first")
BUSY = 1.5  # p95 over median of frames that all do the same work


@dataclass(frozen=True)
class Results:
    """side: of a frame, in pixels; notes: what a reader has to know to believe the numbers; lost: by float8."""

    model: str
    parameters: int
    weight_bytes: int
    machine: str
    dtype: str
    side: int
    tokens_per_frame: int
    window: int
    ceilings: Ceilings
    rows: Sequence[Row]
    notes: Sequence[str]
    crowds: Sequence[Crowd] = ()
    lost: Lost | None = None

    @property
    def subjects(self) -> list[str]:
        return list(dict.fromkeys(row.subject for row in self.rows))

    def of(self, subject: str) -> list[Row]:
        return [row for row in self.rows if row.subject == subject]

    @property
    def title(self) -> str:
        return (
            f"{self.model}: {self.parameters / 1e6:,.0f} M parameters, {self.dtype}, "
            f"frames of {self.side} x {self.side} ({self.tokens_per_frame} tokens), {self.machine}"
        )

    def record(self) -> dict[str, Any]:
        """Everything, for JSON."""
        rows = [{**asdict(row), **{f"{what}_of_floor": row.of_floor(what) for what in MEASURED}} for row in self.rows]
        return {"benchmark": "stream", **asdict(self), "rows": rows, "growth": growth(self.of(OURS), self.window)}


def steady(rows: Sequence[Row], window: int) -> tuple[Row, Row] | None:
    """The first context that is no shorter than the window, and the last; None where there are no two."""
    full = [row for row in rows if row.context >= window and row.frame_ms is not None]
    return (full[0], full[-1]) if len(full) > 1 else None


def growth(rows: Sequence[Row], window: int) -> float | None:
    """Milliseconds of a frame at the last of the `steady` contexts over those at the first."""
    ends = steady(rows, window)
    return ends[1].frame_ms / ends[0].frame_ms if ends and ends[0].frame_ms and ends[1].frame_ms else None


def cells(row: Row) -> list[str]:
    """Of COLUMNS."""
    floors = [_floor(getattr(row, f"{what}_floor_ms"), row.of_floor(what)) for what in MEASURED]
    return [
        f"{row.context:,}", _number(row.fps), _number(row.frame_ms), _number(row.frame_p95_ms),
        _number(row.frame_p99_ms), floors[0], _number(row.token_ms), floors[1], _number(row.first_ms), floors[2],
        _bytes(row.state_bytes),
    ]  # fmt: skip


def table(results: Results, subject: str) -> Table:
    made = Table(
        title=subject, title_justify="left", title_style="bold", box=SIMPLE_HEAD, padding=(0, 0, 0, 1), pad_edge=False
    )
    for name in COLUMNS:
        made.add_column(name, justify="right", no_wrap=True)
    for row in results.of(subject):
        made.add_row(*cells(row))
    return made


def sentences(results: Results) -> list[str]:
    """What the rows come to, and what has to be known about them."""
    found, rows = [], results.of(OURS)
    if (ratio := growth(rows, results.window)) and (ends := steady(rows, results.window)):
        first, last = (f"{row.context:,} tokens" for row in ends)
        found.append(f"A frame after {last} takes {ratio:.2f} times as long as one after {first}.")
    found += [told for subject in results.subjects[1:] if (told := _against(rows, results.of(subject)))]
    for crowd in results.crowds:
        found.append(
            f"{crowd.streams} streams at once, a {crowd.what} each: {_number(crowd.ms)} ms; "
            f"floor {_floor(crowd.floor_ms, crowd.floor_ms / crowd.ms)}."
        )
    return [*found, *results.notes]


def notes(ceilings: Ceilings, rows: Sequence[Row]) -> list[str]:
    """How the numbers were come by."""
    frames = [row.frames for row in rows if row.frames]
    told = [
        f"Milliseconds; a frame's are the median of {_span(frames)} frames, from the picture in the host's memory to "
        f"the end of the device's work; frames/s is one frame after the other. An answer has {ANSWER_TOKENS} further "
        "tokens; no token ends it.",
        f"Floor: the least that products, weights and state take at {ceilings.bytes_per_second / 1e9:,.0f} GB/s and "
        f"{ceilings.flops / 1e12:,.2f} TFLOP/s ({ceilings.source}), and the share of it that was reached. "
        "Memory: of one stream, without weights.",
    ]
    spreads = [row.frame_p95_ms / row.frame_ms for row in rows if row.frame_ms and row.frame_p95_ms]
    if spreads and (spread := median(spreads)) > BUSY:
        told.append(
            f"The machine was busy: the slowest frames (p95) took {spread:.1f} times the median. Differences between "
            "rows that are smaller than that may be noise."
        )
    ours = [row for row in rows if row.streamed]
    if moved := [row for row in ours if row.streamed < row.context]:
        told.append(
            f"From {moved[0].context:,} tokens on, positions were moved on, not streamed: the window was full after "
            f"{moved[0].streamed:,} tokens, and the state has nothing that grows. --streamed streams every token."
        )
    told += dict.fromkeys(f"{row.subject} at {row.context:,} tokens: {row.missing}." for row in rows if row.missing)
    return told


def markdown(results: Results) -> str:
    lines = ["# Speed", "", f"{results.title}.", ""]
    for subject in results.subjects:
        lines += [f"## {subject}", "", _line(COLUMNS), _line(["---:"] * len(COLUMNS))]
        lines += [_line(cells(row)) for row in results.of(subject)]
        lines.append("")
    return "\n".join([*lines, *(f"- {told}" for told in sentences(results)), "", "![curves](bench.png)", ""])


def _against(ours: Sequence[Row], theirs: Sequence[Row]) -> str | None:
    """At the longest context that both were measured at (theirs may be a few tokens off ours)."""
    pairs = [(a, b) for a, b in zip(ours, theirs, strict=True) if a.frame_ms and b.frame_ms]
    if not pairs:
        return None
    mine, other = pairs[-1]
    assert mine.frame_ms and other.frame_ms and mine.token_ms and other.token_ms
    told = (
        f"At {mine.context:,} tokens {OURS} takes in frames at {other.frame_ms / mine.frame_ms:.2f} times the rate of "
        f"{other.subject} and writes at {other.token_ms / mine.token_ms:.2f} times its rate"
    )
    if other.state_bytes != mine.state_bytes:
        ideal = theirs[-1]
        told += (
            f"; an ideal engine of that would need {ideal.frame_floor_ms:.3g} ms a frame and "
            f"{ideal.token_floor_ms:.3g} ms a token here at {ideal.context:,} tokens"
        )
    return f"{told}."


def _span(counts: Sequence[int]) -> str:
    low, high = min(counts, default=0), max(counts, default=0)
    return f"{low}" if low == high else f"{low} to {high}"


def _line(values: Sequence[str]) -> str:
    return f"| {' | '.join(values)} |"


def _floor(floor: float, share: float | None) -> str:
    return _number(floor) if share is None else f"{_number(floor)} {share:4.0%}"


def _number(value: float | None) -> str:
    """Three digits, no exponents."""
    if value is None:
        return "-"
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}" if value >= 0.1 else f"{value:.3f}"


def _bytes(nbytes: float) -> str:
    if nbytes < 2**20:
        return f"{nbytes / 2**10:,.0f} KiB"
    return f"{nbytes / 2**20:,.1f} MiB" if nbytes < 2**30 else f"{nbytes / 2**30:,.2f} GiB"
