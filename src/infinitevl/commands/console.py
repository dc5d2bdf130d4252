"""What the commands share: loading with a spinner, folders, a status line, sizes and answers for people."""

import os
import re
import signal
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from infinitevl.errors import InfiniteVLError

if TYPE_CHECKING:
    from infinitevl.model.modeling import InfiniteVLForConditionalGeneration
    from infinitevl.streaming.session import Stats

CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
IN_THE_BOX = "it knows StreamWorld; for the real world give --model hustvl/InfiniteVL-LongSFT"


def warn(message: str) -> None:
    """One line on standard error."""
    click.echo(f"infinitevl: warning: {' '.join(message.split())}", err=True)


def size(nbytes: float) -> str:
    """Bytes for people: 126.4 MiB."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if nbytes < 1024:
            return f"{nbytes:.0f} {unit}" if unit == "B" else f"{nbytes:.1f} {unit}"
        nbytes /= 1024
    return f"{nbytes:.1f} TiB"


def say(pieces: Iterable[str], indent: str = "") -> None:
    """Write an answer as it comes, every line of it indented. Control characters would confuse a terminal."""
    print(indent, end="")
    for piece in pieces:
        print(CONTROL.sub("", piece).replace("\n", f"\n{indent}"), end="", flush=True)
    print(flush=True)


@contextmanager
def gentle_interrupt() -> Iterator[threading.Event]:
    """The first Ctrl-C inside only sets the event, so that a frame is not left half taken in. The second stops."""
    wanted = threading.Event()

    def handle(*_: object) -> None:
        if wanted.is_set():
            raise KeyboardInterrupt
        wanted.set()

    before = signal.signal(signal.SIGINT, handle)
    try:
        yield wanted
    finally:
        signal.signal(signal.SIGINT, before)


def quiet() -> None:
    """Keep transformers' own bars and reports off the terminal: what matters is told by our errors."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()


def boxed_model() -> Path:
    """The folder of the model in the box, told on standard error. InfiniteVLError where there is none."""
    from infinitevl.model.loading import box

    folder = box()
    click.echo(f"infinitevl: the StreamWorld model in the box: {IN_THE_BOX}", err=True)
    return folder


def load_model(name: str | None, device: str | None, dtype: str | None) -> "InfiniteVLForConditionalGeneration":
    """Load a model, None being the one in the box, with a spinner on a terminal, without transformers' own bars."""
    from infinitevl.model.loading import load

    quiet()
    chosen = boxed_model() if name is None else name
    with Console(stderr=True).status(f"loading {chosen}"):
        return load(chosen, device=device, dtype=dtype)


def make_folder(out: Path) -> None:
    """Make a folder, unless it is there. InfiniteVLError where it cannot be written to."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InfiniteVLError(f"cannot use {out} as a folder: {error.strerror}") from None
    if not os.access(out, os.W_OK | os.X_OK):
        raise InfiniteVLError(f"cannot write to the folder {out}")


class Status:
    """A progress bar on standard error with frames, frames a second and memory. Nothing where that is no terminal."""

    def __init__(self) -> None:
        self._bar = Progress(
            TextColumn("[dim]{task.fields[time]:>8.1f} s"),
            BarColumn(),
            TextColumn("{task.fields[frames]} frames  {task.fields[rate]:.1f} frames/s  memory {task.fields[memory]}"),
            TimeElapsedColumn(),
            console=Console(stderr=True),
            transient=True,
        )
        self._task: TaskID | None = None

    def show(self, stats: "Stats", time: float, duration: float | None) -> None:
        if not sys.stderr.isatty():
            return
        fields = {
            "time": time, "frames": stats.frames, "memory": size(stats.state_bytes),
            "rate": 1 / stats.seconds_per_frame if stats.seconds_per_frame else 0.0,
        }  # fmt: skip
        if self._task is None:
            self._task = self._bar.add_task("", total=duration, **fields)
        self._bar.start()
        self._bar.update(self._task, completed=time, **fields)

    def hide(self) -> None:
        """Take the bar away, so that other output has the terminal to itself."""
        if self._task is not None:
            self._bar.stop()
