"""`infinitevl data streamworld`: StreamWorld as videos and conversations, in files."""

from dataclasses import dataclass
from pathlib import Path

import click
from PIL import Image
from rich.console import Console
from rich.progress import Progress

from infinitevl.commands.console import make_folder
from infinitevl.data.streamworld import Split, contact_sheet, write
from infinitevl.data.streamworld.episodes import FPS
from infinitevl.errors import InfiniteVLError


@dataclass
class DataOptions:
    out: Path
    count: int
    frames: int
    questions: int
    split: Split
    seed: int
    size: int
    sheet: Path | None


def run(options: DataOptions) -> int:
    if options.sheet and options.sheet.suffix.lower() not in Image.registered_extensions():
        raise InfiniteVLError(f"--sheet {options.sheet}: not the name of a picture, such as sheet.png")
    make_folder(options.out)
    try:
        if options.sheet:
            contact_sheet(options.seed, options.split, size=options.size).save(options.sheet)
            click.echo(f"{options.sheet}: a question of each kind, with its evidence")
        path, count = _write(options)
    except OSError as error:
        raise InfiniteVLError(f"cannot write {error.filename or options.out}: {error.strerror or error}") from None
    click.echo(f"{path}: {count} conversations with videos of {FPS:g} frames a second")
    return 0


def _write(options: DataOptions) -> tuple[Path, int]:
    """All samples, with a bar on a terminal. The path of the list of conversations, and how many there are."""
    terminal = Console(stderr=True)
    with Progress(console=terminal, transient=True, disable=not terminal.is_terminal) as progress:
        task = progress.add_task("writing", total=options.count)
        path = write(
            options.out, split=options.split, count=options.count, seed=options.seed, frames=options.frames,
            questions=options.questions, size=options.size, tell=lambda done: progress.update(task, completed=done),
        )  # fmt: skip
    with path.open(encoding="utf-8") as lines:
        return path, sum(1 for _ in lines)
