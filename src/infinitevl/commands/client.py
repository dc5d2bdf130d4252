"""`infinitevl client`: a server's streams from the command line."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from infinitevl.client import Client, Live, Stream

if TYPE_CHECKING:
    from infinitevl.commands.stream import Report
    from infinitevl.streaming.watch import Question


def run_list(url: str, key: str | None, as_json: bool) -> int:
    with Client(url, key) as client:
        streams = client.streams.list()
    if as_json:
        for stream in streams:
            print(json.dumps(asdict(stream), ensure_ascii=False))
        return 0
    table = Table(box=None, pad_edge=False)
    table.add_column("id", min_width=max((len(stream.id) for stream in streams), default=0))
    for name in ("name", "place", "source"):
        table.add_column(name)
    for name in ("time", "frames", "frames/s", "lag", "dropped"):
        table.add_column(name, justify="right")
    for stream in streams:
        table.add_row(*_cells(stream))
    Console(highlight=False, soft_wrap=True).print(table if streams else "There are no streams.")
    return 0


def _cells(stream: Stream) -> list[str]:
    stats, source = stream.stats, stream.source
    return [
        stream.id, escape(stream.name or ""), stream.place, source.status if source else "",
        f"{stats.seconds:.1f} s", str(stats.frames), f"{stats.fps:.1f}", f"{stats.lag_ms:.0f} ms", str(stats.dropped),
    ]  # fmt: skip


def run_ask(url: str, key: str | None, id: str, question: str, max_tokens: int, remember: bool) -> int:
    from infinitevl.commands.console import say

    with Client(url, key) as client:
        say(client.ask_pieces(id, question, max_tokens=max_tokens, remember=remember))
    return 0


def run_snapshot(url: str, key: str | None, id: str, name: str, out: Path | None) -> int:
    with Client(url, key) as client:
        made = client.snapshots.create(id, name)
        if out:
            client.snapshots.download(name, out)
    print(f"{made.name}: {made.frames} frames, {made.bytes} bytes")
    return 0


def run_fork(url: str, key: str | None, id: str, name: str | None) -> int:
    with Client(url, key) as client:
        print(client.fork(id, name).id)
    return 0


def run_delete(url: str, key: str | None, id: str) -> int:
    with Client(url, key) as client:
        client.streams.delete(id)
    return 0


@dataclass
class WatchOptions:
    source: str
    url: str
    key: str | None
    id: str | None
    name: str | None
    fps: float
    questions: tuple[str, ...]
    max_tokens: int
    live: bool
    as_json: bool


def run_watch(options: WatchOptions) -> int:
    from infinitevl.commands.console import gentle_interrupt, warn
    from infinitevl.commands.stream import Report
    from infinitevl.streaming.watch import Question
    from infinitevl.video.sources import open_video

    questions = [Question.parse(given) for given in options.questions]
    with Client(options.url, options.key) as client:
        stream = client.streams.get(options.id) if options.id else None
        fps = stream.fps if stream else options.fps
        with open_video(options.source, fps=fps, live=options.live or None) as video:
            stream = stream or client.streams.create(options.name, fps=fps)
            watching = Watching(stream, questions, options, Report(options.as_json))
            with watching, gentle_interrupt() as interrupted, client.live(stream.id) as live:
                for time, frame in video:
                    watching.show(live, time, frame, video)
                    if interrupted.is_set():
                        break
                else:
                    watching.end(live)
            if video.warning:
                warn(video.warning)
        watching.tell(client.streams.get(stream.id))
    return 130 if interrupted.is_set() else 0


class Watching:
    """Frames go out, questions are asked when their time has come, people are told."""

    def __init__(self, stream: Stream, questions: "list[Question]", options: WatchOptions, report: "Report") -> None:
        self._questions = sorted(questions, key=lambda q: float("inf") if q.time is None else q.time)
        self._options, self._report, self._before = options, report, stream.stats.frames
        self._began, self._last, self._asking = perf_counter(), 0.0, 0.0
        if options.as_json:
            print(json.dumps({"event": "stream", "stream": stream.id}), flush=True)
        else:
            report.console.print(f"{stream.id} at {escape(options.url)}")

    def __enter__(self) -> "Watching":
        return self

    def __exit__(self, *_: object) -> None:
        self._report.status.hide()

    def show(self, live: Live, time: float, frame: Any, video: Any) -> None:
        """Push a frame, after the questions about what was before it."""
        while self._questions and self._questions[0].time is not None and self._questions[0].time < time:
            self._ask(live, self._questions.pop(0))
        self._last = time
        live.send(frame, time)
        self._status(live, video)

    def end(self, live: Live) -> None:
        """After the last frame: the questions that are left."""
        for question in self._questions:
            self._ask(live, question)

    def tell(self, stream: Stream) -> None:
        """How it went."""
        self._report.before = self._before
        self._report.watching = perf_counter() - self._began - self._asking
        self._report.summary(stream)  # pyright: ignore[reportArgumentType]

    def _ask(self, live: Live, question: "Question") -> None:
        from infinitevl.streaming.watch import Asked

        live.drain()  # so that the last frame is in memory
        began, time = perf_counter(), self._last if question.time is None else question.time
        pieces = live.ask(question.text, max_tokens=self._options.max_tokens)
        self._report.answer(Asked(time, question.text, iter(pieces)))
        self._asking += perf_counter() - began

    def _status(self, live: Live, video: Any) -> None:
        from infinitevl.streaming.session import Stats

        seen = live.counts.get("seen", 0)
        stats = Stats(frames=self._before + seen, state_bytes=live.stream.stats.state_bytes)
        stats.seconds = (perf_counter() - self._began - self._asking) / max(seen, 1) * stats.frames
        self._report.status.show(stats, self._last, video.duration)
