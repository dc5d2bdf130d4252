"""`infinitevl eval`: the whole evaluation of a checkpoint on StreamWorld."""

import os
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path

import click
from rich.console import Console
from rich.markdown import Markdown
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from infinitevl.commands.console import load_model, make_folder, warn
from infinitevl.data.forking import spare_processors
from infinitevl.errors import InfiniteVLError
from infinitevl.evaluation.plan import NARROW, QUICK, Plan, runs
from infinitevl.evaluation.results import Results, markdown
from infinitevl.evaluation.run import evaluate_model, save, window_frames
from infinitevl.model.modeling import InfiniteVLForConditionalGeneration


@dataclass(frozen=True)
class EvalOptions:
    """As on the command line; None: by the plan, or by the machine."""

    model: str | None
    out: Path
    quick: bool = False
    count: int | None = None
    rows: int | None = None
    workers: int | None = None
    long_tokens: int | None = None
    long_streams: int | None = None
    window_frames: int | None = None
    beside: str | None = None
    device: str | None = None
    dtype: str | None = None


def run(options: EvalOptions) -> int:
    make_folder(options.out)
    name, other = _read(options) if options.beside else ("", None)
    model = load_model(options.model, options.device, options.dtype)
    plan = make_plan(options)
    if other:
        _check(name, other, plan, window_frames(model, plan))
    if find_spec("matplotlib") is None:
        warn("no figures without matplotlib: pip install 'infinitevl[eval]'")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # else tokenizers complain in every worker
    workers = spare_processors() if options.workers is None else options.workers
    results = _evaluated(model, plan, workers)
    results = results.beside(name, other) if other else results
    save(results, options.out)
    Console().print(Markdown(markdown(results)))
    click.echo(str(options.out / "results.json"))
    return 0


def make_plan(options: EvalOptions) -> Plan:
    """The quick or the whole plan, with what was asked for."""
    wanted = {
        name: getattr(options, name) for name in ("count", "rows", "long_tokens", "long_streams", "window_frames")
    }
    return replace(QUICK if options.quick else Plan(), **{k: v for k, v in wanted.items() if v is not None})


def _read(options: EvalOptions) -> tuple[str, Results]:
    """The other model's name and results."""
    name, _, path = str(options.beside).partition("=")
    if not name or not path:
        raise InfiniteVLError(f"--beside {options.beside}: it is NAME=FILE, such as teacher=teacher/results.json")
    if Path(path).resolve() == (options.out / "results.json").resolve():
        raise InfiniteVLError(f"{path} would be overwritten: give another --out")
    try:
        return name, Results.from_json(Path(path).read_bytes())
    except OSError as error:
        raise InfiniteVLError(f"cannot read {path}: {error.strerror}") from None


def _check(name: str, other: Results, plan: Plan, window: int) -> None:
    """InfiniteVLError where they cannot be shown together."""
    taken = {variant.name for each in runs(plan, window, grows=False) for variant in (*each.variants, NARROW)}
    if name in taken:
        raise InfiniteVLError(f"--beside {name}=...: results have a column of that name")
    Results({}, plan, window).beside(name, other)


def _evaluated(model: InfiniteVLForConditionalGeneration, plan: Plan, workers: int) -> Results:
    terminal = Console(stderr=True)
    columns = (TextColumn("{task.description:12}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=terminal, transient=True, disable=not terminal.is_terminal) as progress:
        task = progress.add_task("text", total=None)
        return evaluate_model(
            model,
            plan,
            workers=workers,
            tell=lambda done, total, test: progress.update(task, completed=done, total=total, description=test),
        )
