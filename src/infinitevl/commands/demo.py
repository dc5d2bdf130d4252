"""`infinitevl demo`: the whole thing in a minute, with a picture at the end."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from time import perf_counter

import numpy as np
from rich.console import Console
from rich.markup import escape

from infinitevl.commands.console import load_model, quiet, size, warn
from infinitevl.errors import InfiniteVLError
from infinitevl.streaming.stream import Stream
from infinitevl.streaming.watch import Asked, Question, watch
from infinitevl.video.sources import open_video

QUESTIONS = ("What is happening right now?", "What was there at the beginning?", "What colours have you seen?")
ANSWER_TOKENS = 24
CLIP_SECONDS, CLIP_RATE, CLIP_SIDE = 20, 24, 224


@dataclass
class Curve:
    """Time and memory after each frame."""

    milliseconds: list[float] = field(default_factory=list)
    state_bytes: list[int] = field(default_factory=list)


def run(video: str | None, out: Path, model: str | None, fps: float) -> int:
    console = Console(highlight=False, emoji=False, soft_wrap=True)
    _check_matplotlib()
    _make_folder(out)
    source = video or str(_clip(out / "clip.mp4"))
    with open_video(source, fps=fps) as opened:
        stream = Stream(load_model(model or _random(out / "random-model", console), None, None), fps=fps)
        length = opened.duration or CLIP_SECONDS
        questions = [Question(text, length * (i + 1) / 4) for i, text in enumerate(QUESTIONS)]
        curve = _show(stream, opened, questions, console)
        if opened.warning:
            warn(opened.warning)
    stats = stream.stats
    console.print(
        f"{stats.frames} frames, {stats.tokens} tokens, {1 / stats.seconds_per_frame:.1f} frames/s, "
        f"memory {size(stats.state_bytes)} from the first frame to the last"
    )
    figure = out / "stream.png"
    draw(curve, figure)
    console.print(f"time and memory per frame: {figure}")
    return 0


def _check_matplotlib() -> None:
    if find_spec("matplotlib") is None:
        raise InfiniteVLError("the demo draws with matplotlib: pip install 'infinitevl[eval]'")


def _make_folder(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InfiniteVLError(f"cannot use {out} as a folder: {error.strerror}") from None


def _random(folder: Path, console: Console) -> str:
    from infinitevl.model.random_model import write_random_checkpoint

    quiet()
    console.print("[yellow]No --model given: small random weights. The answers are noise, all else is real.[/]")
    return str(write_random_checkpoint(folder))


def _show(stream: Stream, video: object, questions: list[Question], console: Console) -> Curve:
    curve, before = Curve(), 0.0
    for event in watch(stream, video, questions, max_new_tokens=ANSWER_TOKENS):
        if isinstance(event, Asked):
            began = perf_counter()
            answer = "".join(event.pieces)
            place = f"{event.time:6.1f} s, frame {stream.stats.frames}"
            console.print(f"[dim]{place}[/] [bold]{escape(event.question)}[/]")
            console.print(f"          {escape(repr(answer))} [dim]({perf_counter() - began:.2f} s)[/]")
            continue
        stats = stream.stats
        curve.milliseconds.append((stats.seconds - before) * 1000)
        curve.state_bytes.append(stats.state_bytes)
        before = stats.seconds
    return curve


def draw(curve: Curve, path: Path) -> None:
    """Two curves against frames, as a PNG: milliseconds a frame and bytes of memory."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, 1, sharex=True, figsize=(8, 5), layout="constrained")
    frames = range(1, len(curve.milliseconds) + 1)
    axes[0].plot(frames, curve.milliseconds, linewidth=1)
    axes[0].axhline(float(np.median(curve.milliseconds)), linestyle="--", linewidth=1, color="grey", label="median")
    axes[0].set(ylabel="ms per frame", title="Time per frame")
    axes[0].legend()
    axes[1].plot(frames, [nbytes / 2**20 for nbytes in curve.state_bytes], linewidth=1)
    axes[1].set(xlabel="frames seen", ylabel="MiB", title="Memory of the stream")
    for axis in axes:
        axis.set_ylim(bottom=0)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def _clip(path: Path) -> Path:
    """Write a real H.264 file: a disc and a square that cross a slowly changing background."""
    import av

    with av.open(str(path), "w") as container:
        track = container.add_stream("libx264", rate=CLIP_RATE)
        track.width = track.height = CLIP_SIDE
        track.pix_fmt = "yuv420p"
        for frame in _pictures():
            container.mux(track.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(track.encode())
    return path


def _pictures() -> Iterator[np.ndarray]:
    rows, columns = np.mgrid[:CLIP_SIDE, :CLIP_SIDE]
    for i in range(CLIP_SECONDS * CLIP_RATE):
        phase = 2 * np.pi * i / (CLIP_SECONDS * CLIP_RATE)
        shade = (96 + 64 * np.sin(phase + rows / CLIP_SIDE)).astype(np.uint8)
        picture = np.stack([shade, 255 - shade, np.full_like(shade, 128)], axis=-1)
        y, x = CLIP_SIDE * (0.5 + 0.3 * np.sin(3 * phase)), CLIP_SIDE * (0.5 + 0.3 * np.cos(2 * phase))
        picture[(rows - y) ** 2 + (columns - x) ** 2 < 30**2] = (220, 40, 40)
        left = int(i * 2 % (CLIP_SIDE + 40)) - 40
        picture[150:190, max(left, 0) : max(left + 40, 0)] = (40, 60, 220)
        yield picture
