"""`infinitevl convert` and `infinitevl info`."""

from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from infinitevl.commands.console import size
from infinitevl.model.convert import convert
from infinitevl.model.info import describe, render


def run_convert(source: Path, out: Path, window: int, seed: int) -> int:
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("converting", total=None)
        convert(
            source,
            out,
            sliding_window=window,
            seed=seed,
            progress=lambda done, total: progress.update(task, completed=done, total=total),
        )
    info = describe(out)
    Console().print(f"{out}: {info.parameters.total:,} parameters, state of {size(info.state.total)} per stream")
    return 0


def run_info(checkpoint: Path) -> int:
    Console().print(render(describe(checkpoint)))
    return 0
