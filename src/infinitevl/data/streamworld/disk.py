"""StreamWorld as files: H.264 videos and JSON Lines, in the conversation format of real data."""

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict
from fractions import Fraction
from itertools import groupby
from pathlib import Path

import numpy as np

from infinitevl.data.streamworld.draw import UNIT
from infinitevl.data.streamworld.episodes import FPS, SCENE_FRAMES, Episode, sample
from infinitevl.data.streamworld.questions import GROUPS, Question
from infinitevl.data.streamworld.vocabulary import Split

QUALITY = {"crf": "12", "preset": "fast"}  # small letters stay sharp
MARK = "<video>"


def write(
    out: str | Path,
    *,
    split: Split,
    count: int,
    seed: int = 0,
    frames: int = 64,
    questions: int = 8,
    groups: tuple[str, ...] = GROUPS,
    size: int = UNIT,
    fps: float = FPS,
    scene_frames: tuple[int, int] = SCENE_FRAMES,
    tell: Callable[[int], None] = lambda done: None,
) -> Path:
    """Writes `count` samples of the seeds from `seed` on, and gives the path of `out`/`split`.jsonl.

    A line is a conversation: {"messages": [{"role", "content"}], "videos": [paths from `out`],
    "streamworld": {"seed", "split", "size", "fps", "questions"}}. Each "<video>" mark in a user's message
    stands for the next piece of the stream, up to the frame at which the message is said; no piece comes
    twice, and what follows the last question is left out. The videos are written first, and each file appears
    whole or not at all, so that a .jsonl never names a video that is not there. A sample whose frames left nothing
    to ask has no line. `tell` is called after each sample, with the number of those done. Needs PyAV.
    """
    out = Path(out)
    (out / "videos").mkdir(parents=True, exist_ok=True)
    path = out / f"{split}.jsonl"
    partial = path.with_suffix(".partial")
    with partial.open("w", encoding="utf-8") as file:
        for done in range(count):
            options = {"size": size, "fps": fps, "scene_frames": scene_frames}
            episode = sample(seed + done, split, frames=frames, questions=questions, groups=groups, **options)
            if episode.questions:
                file.write(json.dumps(_write_episode(out, episode)) + "\n")
            tell(done + 1)
    os.replace(partial, path)
    return path


def _write_episode(out: Path, episode: Episode) -> dict[str, object]:
    """Writes the videos of an episode, and gives its line."""
    messages, videos = [], []
    for piece, questions in pieces(episode):
        name = f"videos/{episode.split}-{episode.seed:07d}-{len(videos):02d}.mp4"
        write_video(out / name, piece, episode.fps)
        videos.append(name)
        for i, question in enumerate(questions):
            content = question.question if i else MARK + question.question
            messages.append({"role": "user", "content": content})
            messages.append({"role": "assistant", "content": question.answer})
    about = {
        "seed": episode.seed,
        "split": episode.split,
        "size": episode.frames.shape[1],
        "fps": episode.fps,
    }
    about["questions"] = [asdict(question) for question in episode.questions]
    return {"messages": messages, "videos": videos, "streamworld": about}


def pieces(episode: Episode) -> Iterator[tuple[np.ndarray, list[Question]]]:
    """The frames since the last questions, and the questions after them, in order."""
    start = 0
    for frame, questions in groupby(episode.questions, key=lambda question: question.frame):
        yield episode.frames[start : frame + 1], list(questions)
        start = frame + 1


def write_video(path: Path, frames: np.ndarray, fps: float) -> None:
    """Frames uint8 [n, H, W, 3], with H and W even, as H.264 in yuv420p, which every player shows."""
    import av  # here alone: making data in memory does not need it

    partial = path.with_suffix(".partial.mp4")
    with av.open(str(partial), "w") as container:
        video = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1000), options=QUALITY)
        video.height, video.width, video.pix_fmt = frames.shape[1], frames.shape[2], "yuv420p"
        for frame in frames:
            container.mux(video.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(video.encode(None))
    os.replace(partial, path)
