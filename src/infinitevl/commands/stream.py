"""`infinitevl stream`: watch a source, answer questions on the way or from the keyboard."""

import json
import os
import select
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import Any

from rich.console import Console
from rich.markup import escape

from infinitevl.commands.console import Status, gentle_interrupt, load_model, say, size, warn
from infinitevl.errors import InfiniteVLError
from infinitevl.streaming.stream import Stream
from infinitevl.streaming.watch import Asked, Question, watch
from infinitevl.video.sources import open_video

INDENT = " " * 11
HINT = "Ask at any time. An empty line tells how the stream is doing, Ctrl-D ends it."
ENDED = "The video has ended. You can still ask; Ctrl-D ends."


@dataclass
class StreamOptions:
    source: str
    questions: tuple[str, ...]
    model: str | None
    device: str | None
    dtype: str | None
    fps: float
    max_pixels: int | None
    live: bool
    remember: bool
    as_json: bool
    save_state: Path | None
    load_state: Path | None
    max_tokens: int
    temperature: float
    top_p: float
    seed: int | None

    @property
    def asking(self) -> dict[str, Any]:
        """Arguments of Stream.ask."""
        return {
            "remember": self.remember, "max_new_tokens": self.max_tokens, "temperature": self.temperature,
            "top_p": self.top_p, "seed": self.seed,
        }  # fmt: skip


class Report:
    """What is told of a run: JSON lines on standard output, or text for people with a status line."""

    def __init__(self, as_json: bool) -> None:
        self.as_json = as_json
        self.console = Console(highlight=False, emoji=False, soft_wrap=True)
        self.status = Status()
        self.watching = 0.0  # seconds spent on everything but answers
        self.before = 0  # frames that a loaded stream had seen

    def answer(self, asked: Asked) -> None:
        if self.as_json:
            text = "".join(asked.pieces)
            self._line(event="answer", time=asked.time, question=asked.question, answer=text)
            return
        self.status.hide()
        self.console.print(f"[dim]{asked.time:8.1f} s[/] [bold]{escape(asked.question)}[/]")
        say(asked.pieces, INDENT)

    def summary(self, stream: Stream) -> None:
        stats, seconds = stream.stats, self.watching
        self.status.hide()
        if not self.as_json:
            self.console.print(self.line(stream))
            return
        self._line(
            event="summary", frames=stats.frames, tokens=stats.tokens, dropped=stats.dropped,
            seconds=round(seconds, 3), fps=round(self._rate(stream), 3), state_bytes=stats.state_bytes,
        )  # fmt: skip

    def line(self, stream: Stream) -> str:
        """How the stream is doing."""
        stats = stream.stats
        return (
            f"{stats.frames} frames, {stats.tokens} tokens, {stats.dropped} dropped, {self.watching:.1f} s, "
            f"{self._rate(stream):.1f} frames/s, memory {size(stats.state_bytes)}"
        )

    def _rate(self, stream: Stream) -> float:
        return (stream.stats.frames - self.before) / self.watching if self.watching else 0.0

    def _line(self, **event: Any) -> None:
        print(json.dumps(event, ensure_ascii=False), flush=True)


def run(options: StreamOptions) -> int:
    questions = [Question.parse(given) for given in options.questions]
    _check(options)
    with open_video(options.source, fps=options.fps, live=options.live or None) as video:
        model = load_model(options.model, options.device, options.dtype)
        if options.load_state:
            stream = Stream.load(model, options.load_state)
        else:
            stream = Stream(model, fps=options.fps, max_pixels=options.max_pixels)
        report, code = Report(options.as_json), 0
        report.before = stream.stats.frames
        try:
            if questions or not _has_keyboard():
                code = _unattended(stream, video, questions, options, report)
            else:
                _interactive(stream, video, options, report)
        except KeyboardInterrupt:
            code = 130
        if video.warning:
            report.status.hide()
            warn(video.warning)
    if options.save_state:
        stream.save(options.save_state)
    report.summary(stream)
    return code


def _check(options: StreamOptions) -> None:
    """What would fail only at the end, or never come, is told at once."""
    path = options.save_state
    if path and (
        path.is_dir() or not path.absolute().parent.is_dir() or not os.access(path.absolute().parent, os.W_OK)
    ):
        problem = "is a folder" if path.is_dir() else f"{path.absolute().parent} is no folder that can be written to"
        raise InfiniteVLError(f"--save-state {path}: {problem}")
    if options.source == "-" and _has_keyboard():
        raise InfiniteVLError("standard input is a terminal: pipe a video into it")


def _has_keyboard() -> bool:
    return sys.stdin is not None and sys.stdin.isatty()


def _unattended(stream: Stream, video: Any, questions: list[Question], options: StreamOptions, report: Report) -> int:
    """Watch to the end and ask on the way; questions piped in without --ask are asked at the end."""
    began, now = perf_counter(), 0.0
    with gentle_interrupt() as interrupted:
        for event in watch(stream, video, questions, **options.asking):
            if interrupted.is_set():
                break
            if isinstance(event, Asked):
                report.watching += perf_counter() - began
                report.answer(replace(event, pieces=_until(interrupted, event.pieces)))
                began = perf_counter()
            else:
                now = event.time
                report.status.show(stream.stats, now, video.duration)
        report.watching += perf_counter() - began
    report.status.hide()
    if interrupted.is_set():
        return 130
    for line in [] if questions or options.source == "-" else _piped_lines():
        report.answer(Asked(now, line, stream.ask(line, **options.asking)))
    return 0


def _until(interrupted: threading.Event, pieces: Iterator[str]) -> Iterator[str]:
    for piece in pieces:
        yield piece
        if interrupted.is_set():
            return


def _piped_lines() -> Iterable[str]:
    """The lines of standard input that hold anything."""
    if sys.stdin is None:
        return
    with suppress(OSError, ValueError):  # of what has no file descriptor, or cannot be waited for
        if not select.select([sys.stdin], [], [], 0.1)[0]:
            print("infinitevl: reading questions from standard input, one a line", file=sys.stderr)
    for line in sys.stdin:
        if line.strip():
            yield line.strip()


def _interactive(stream: Stream, video: Any, options: StreamOptions, report: Report) -> None:
    """Watch in the background, answer what is typed. An empty line tells how the stream is doing."""
    lock, stop, failed = threading.Lock(), threading.Event(), []
    told = sys.stderr if report.as_json else sys.stdout

    def ingest() -> None:
        began = perf_counter()
        try:
            for time, frame in video:
                with lock:
                    stream.see(frame, time)
                    stream.session.stats.dropped = video.dropped
                report.watching = perf_counter() - began
                if stop.is_set():
                    return
            print(f"\n{ENDED}\n? ", end="", file=told, flush=True)
        except Exception as error:  # told in full by the main thread, once
            failed.append(error)
            print(f"\nThe video broke off: {error}\nEnd with Enter.", file=told, flush=True)

    reader = threading.Thread(target=ingest, daemon=True)
    print(HINT, file=told, flush=True)
    reader.start()
    try:
        while not failed:
            if line := _typed(told):
                with lock:
                    asked = Asked(stream.session.last or 0.0, line, stream.ask(line, **options.asking))
                _answer_aloud(report, asked, lock if options.remember else threading.Lock())
            elif not failed:
                print(report.line(stream), file=told, flush=True)
    except EOFError:
        print(file=told)
    finally:
        stop.set()
        reader.join(timeout=10)
    if failed:
        raise failed[0]


def _typed(told: Any) -> str:
    """A line from the keyboard, edited with its arrows where Python has readline."""
    with suppress(ImportError):
        import readline  # noqa: F401
    if told is sys.stdout:
        return input("? ").strip()
    print("? ", end="", file=told, flush=True)
    return input().strip()


def _answer_aloud(report: Report, asked: Asked, lock: threading.Lock) -> None:
    """A remembered answer writes into the stream itself, so frames wait for it; others go on meanwhile."""
    with lock:
        report.answer(asked)
