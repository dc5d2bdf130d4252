"""`infinitevl convert` and `infinitevl info`."""

from pathlib import Path

import click
from rich.console import Console
from rich.progress import Progress

from infinitevl.commands.console import size
from infinitevl.model.convert import convert
from infinitevl.model.info import describe, render


def run_convert(source: Path, out: Path, window: int, seed: int) -> int:
    terminal = Console(stderr=True)
    with Progress(console=terminal, transient=True, disable=not terminal.is_terminal) as progress:
        task = progress.add_task("converting", total=None)
        convert(
            source,
            out,
            sliding_window=window,
            seed=seed,
            progress=lambda done, total: progress.update(task, completed=done, total=total),
        )
    info = describe(out)
    click.echo(f"{out}: {info.parameters.total:,} parameters, {size(info.state.total)} of state a stream")
    return 0


def run_info(checkpoint: Path) -> int:
    Console().print(render(describe(checkpoint)))
    return 0
