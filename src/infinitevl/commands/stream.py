"""`infinitevl stream`: watch a source, answer questions on the way or from the keyboard."""

import json
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

from rich.console import Console
from rich.markup import escape

from infinitevl.commands.console import Status, load_model, size, warn
from infinitevl.streaming.stream import MAX_PIXELS, Stream
from infinitevl.streaming.watch import Asked, Question, watch
from infinitevl.video.sources import open_video


@dataclass
class StreamOptions:
    source: str
    questions: tuple[str, ...]
    model: str
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
        self.console = Console(highlight=False)
        self.status = Status()
        self.watching = 0.0  # seconds spent on everything but answers

    def answer(self, asked: Asked) -> None:
        if self.as_json:
            text = "".join(asked.pieces)
            self._line(event="answer", time=asked.time, question=asked.question, answer=text)
            return
        self.status.hide()
        self.console.print(f"[dim]{asked.time:8.1f} s[/] [bold]{escape(asked.question)}[/]")
        self._write(asked.pieces)

    def _write(self, pieces: Iterator[str]) -> None:
        self.console.print("           ", end="")
        for piece in pieces:
            self.console.print(escape(piece), end="", soft_wrap=True)
        self.console.print()

    def summary(self, stream: Stream) -> None:
        stats, seconds = stream.stats, self.watching
        fps = stats.frames / seconds if seconds else 0.0
        self.status.hide()
        if self.as_json:
            self._line(
                event="summary", frames=stats.frames, tokens=stats.tokens, dropped=stats.dropped,
                seconds=round(seconds, 3), fps=round(fps, 3), state_bytes=stats.state_bytes,
            )  # fmt: skip
            return
        self.console.print(
            f"{stats.frames} frames, {stats.tokens} tokens, {stats.dropped} dropped, {seconds:.1f} s, "
            f"{fps:.1f} frames/s, memory {size(stats.state_bytes)}"
        )

    def _line(self, **event: Any) -> None:
        print(json.dumps(event, ensure_ascii=False), flush=True)


def run(options: StreamOptions) -> int:
    questions = [Question.parse(given) for given in options.questions]
    with open_video(options.source, fps=options.fps, live=options.live or None) as video:
        model = load_model(options.model, options.device, options.dtype)
        if options.load_state:
            stream = Stream.load(model, options.load_state)
        else:
            stream = Stream(model, fps=options.fps, max_pixels=options.max_pixels or MAX_PIXELS)
        report, code = Report(options.as_json), 0
        try:
            if questions or not sys.stdin.isatty():
                _unattended(stream, video, questions, options, report)
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


def _unattended(
    stream: Stream, video: Any, questions: list[Question], options: StreamOptions, report: Report
) -> None:
    """Watch to the end and ask on the way; questions piped in without --ask are asked at the end."""
    began = perf_counter()
    for event in watch(stream, video, questions, **options.asking):
        if isinstance(event, Asked):
            report.watching += perf_counter() - began
            report.answer(event)
            began = perf_counter()
        else:
            report.status.show(stream.stats, event.time, video.duration)
    report.watching += perf_counter() - began
    if not questions and options.source != "-":
        for line in filter(str.strip, sys.stdin):
            report.answer(Asked(stream.session.last or 0.0, line.strip(), stream.ask(line, **options.asking)))


def _interactive(stream: Stream, video: Any, options: StreamOptions, report: Report) -> None:
    """Watch in the background, answer what is typed. An empty line tells how the stream is doing."""
    lock, stop, failed = threading.Lock(), threading.Event(), []

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
        except Exception as error:  # told by the main thread, once
            failed.append(error)

    reader = threading.Thread(target=ingest, daemon=True)
    reader.start()
    report.console.print("[dim]Ask at any time. Empty line: status. End with Ctrl-D.[/]")
    try:
        while not failed:
            line = input("? ").strip()
            with lock:
                asked = (
                    Asked(stream.session.last or 0.0, line, stream.ask(line, **options.asking))
                    if line
                    else None
                )
            if asked is None:
                report.summary(stream)
            else:
                _answer_aloud(report, asked, lock if options.remember else threading.Lock())
    except EOFError:
        print()
    finally:
        stop.set()
        reader.join(timeout=10)
    if failed:
        raise failed[0]


def _answer_aloud(report: Report, asked: Asked, lock: threading.Lock) -> None:
    """A remembered answer writes into the stream itself, so frames wait for it; others go on meanwhile."""
    with lock:
        report.answer(asked)
