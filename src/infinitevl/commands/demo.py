"""`infinitevl demo`: a film is watched and asked about on the way, with a picture at the end."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from time import perf_counter
from typing import Any

from rich.console import Console
from rich.markup import escape

from infinitevl.commands.board import Answered, Board, plain
from infinitevl.commands.console import load_model, make_folder, size, warn
from infinitevl.commands.figure import Curve, draw
from infinitevl.commands.film import FPS, make_film
from infinitevl.errors import InfiniteVLError
from infinitevl.streaming.stream import Stream
from infinitevl.streaming.watch import Asked, Question, watch
from infinitevl.video.sources import open_video

QUESTIONS = ("What is happening right now?", "What was there at the beginning?", "What colours have you seen?")
ANSWER_TOKENS, SHORT_ANSWER_TOKENS = 24, 12
HALF_A_FRAME = 0.5 / FPS  # seconds: whatever the rounding, a question is asked after its own frame
UNKNOWN_SECONDS = 20.0  # of a video that does not tell its length
FIGURE = "stream.png"


@dataclass
class DemoOptions:
    video: str | None
    out: Path
    fps: float
    seed: int
    seconds: int
    model: str | None
    device: str | None
    dtype: str | None


def run(options: DemoOptions) -> int:
    if find_spec("matplotlib") is None:
        raise InfiniteVLError("the demo draws with matplotlib: pip install 'infinitevl[eval]'")
    make_folder(options.out)
    console = Console(highlight=False, emoji=False, soft_wrap=True)
    curve, answers, title = (_own_video if options.video else _streamworld)(options, console)
    if not curve.milliseconds:
        raise InfiniteVLError("the video has no frames")
    console.print(_summary(curve))
    path = options.out / FIGURE
    draw(path, title, curve, answers)
    console.print(f"drawn: {path}")
    return 0


def _streamworld(options: DemoOptions, console: Console) -> tuple[Curve, list[Answered], str]:
    """A film made on the spot, whose questions have known answers."""
    stream = _stream(options, FPS)
    film = make_film(options.out / "streamworld.mp4", options.seed, options.seconds)
    board = Board(console, stream.model.config.text_config.sliding_window)
    board.introduce(film, options.seconds)
    waiting = iter(film.questions)
    questions = [Question(question.question, question.time + HALF_A_FRAME) for question in film.questions]
    with open_video(film.path, fps=FPS) as video, board:
        curve = _watch(
            stream, video, questions, SHORT_ANSWER_TOKENS, lambda asked: board.add(next(waiting), asked.pieces),
            board.tell,
        )  # fmt: skip
    board.result()
    return curve, board.answers, f"StreamWorld, test split, seed {film.seed}"


def _own_video(options: DemoOptions, console: Console) -> tuple[Curve, list[Answered], str]:
    """Questions that fit any video, whose answers nobody has."""

    def answer(asked: Asked) -> None:
        began = perf_counter()
        text = plain(asked.pieces) or "(nothing)"
        console.print(f"[dim]{asked.time:6.1f} s[/] [bold]{escape(asked.question)}[/]")
        console.print(f"         {escape(text)} [dim]({perf_counter() - began:.2f} s)[/]")

    assert options.video
    with open_video(options.video, fps=options.fps) as video:
        if options.model is None:
            console.print("The model in the box has seen StreamWorld alone: its answers here mean nothing.")
        stream, length = _stream(options, options.fps), video.duration or UNKNOWN_SECONDS
        questions = [Question(text, length * (i + 1) / 4) for i, text in enumerate(QUESTIONS)]
        curve = _watch(stream, video, questions, ANSWER_TOKENS, answer, lambda stream, time: None)
        if video.warning:
            warn(video.warning)
    return curve, [], Path(options.video).name


def _stream(options: DemoOptions, fps: float) -> Stream:
    model = load_model(options.model, options.device, options.dtype)
    return Stream(model, fps=fps)


def _watch(
    stream: Stream,
    video: Any,
    questions: Sequence[Question],
    limit: int,
    answer: Callable[[Asked], None],
    tell: Callable[[Stream, float], None],
) -> Curve:
    """Watch to the end. answer: of each question; tell: after each frame, with its time."""
    curve = Curve()
    for event in watch(stream, video, questions, max_new_tokens=limit):
        if isinstance(event, Asked):
            answer(event)
        else:
            curve.add(stream)
            tell(stream, event.time)
    return curve


def _summary(curve: Curve) -> str:
    frames, seconds = len(curve.milliseconds), sum(curve.milliseconds) / 1000
    first, last, cache = (size(n) for n in (curve.state_bytes[0], curve.state_bytes[-1], curve.cache_bytes[-1]))
    return (
        f"{frames} frames, {frames / seconds:.1f} frames/s\n"
        f"memory: {first} after the first frame, {last} after the last; full attention would have cached {cache}"
    )
