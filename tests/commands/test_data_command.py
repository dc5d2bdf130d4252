"""`infinitevl data streamworld`: the files, the sheet, mistakes."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from infinitevl.commands import data
from infinitevl.data.readers import open_samples
from infinitevl.data.streamworld import disk, sample
from infinitevl.video.media import load_video

Run = Callable[..., Any]
SMALL = ("--frames", "16", "--questions", "3")


def test_what_is_written_is_read_like_any_data(run: Run, tmp_path: Path):
    done = run("data", "streamworld", "world", "--count", "3", "--seed", "5", "--split", "test", *SMALL)
    assert (done.code, done.err) == (0, [])
    assert done.out == ["world/test.jsonl: 3 conversations with videos of 10 frames a second"]
    found = [candidate.sample() for candidate in open_samples("world/test.jsonl", fps=10)]
    assert len(found) == 3
    for seed, conversation in enumerate(found, 5):
        made = sample(seed, "test", frames=16, questions=3)
        assert [m["content"] for m in conversation.messages[1::2]] == [q.answer for q in made.questions]
        frames = np.concatenate([load_video(video, conversation.fps)[0] for video in conversation.videos])
        assert len(frames) == made.questions[-1].frame + 1
        assert np.abs(frames.astype(int) - made.frames[: len(frames)]).mean() < 4
    assert sorted(path.name for path in Path("world").iterdir()) == ["test.jsonl", "videos"]


def test_nothing_to_ask_is_no_conversation(run: Run):
    done = run("data", "streamworld", "world", "--count", "12", "--frames", "1", "--questions", "1")
    assert (done.code, done.err) == (0, [])
    lines = [json.loads(line) for line in Path("world/train.jsonl").read_text().splitlines()]
    assert done.out[0].startswith(f"world/train.jsonl: {len(lines)} conversations")
    assert 0 < len(lines) < 12 and all(line["messages"] for line in lines)


def test_an_interrupted_run_leaves_no_list(run: Run, monkeypatch: pytest.MonkeyPatch):
    written = []

    def interrupted(path: Path, *args: Any) -> None:
        if len(written) == 5:
            raise KeyboardInterrupt
        written.append(path)

    monkeypatch.setattr(disk, "write_video", interrupted)
    assert run("data", "streamworld", "world", "--count", "5", *SMALL).code == 130
    assert len(written) == 5 and not list(Path("world").glob("*.jsonl"))


def test_a_sheet(run: Run, monkeypatch: pytest.MonkeyPatch):
    asked = []
    monkeypatch.setattr(
        data, "contact_sheet", lambda *args, **options: asked.append((args, options)) or Image.new("RGB", (8, 8))
    )
    done = run("data", "streamworld", "world", "--count", "1", "--sheet", "a.png", "--seed", "2", *SMALL)
    assert (done.code, done.err, len(done.out)) == (0, [], 2)
    assert asked == [((2, "train"), {"size": 112})]
    assert Image.open("a.png").size == (8, 8)


def test_a_full_disk(run: Run, monkeypatch: pytest.MonkeyPatch):
    def full(*args: Any, **options: Any) -> None:
        raise OSError(28, "No space left on device", "world/videos/a.mp4")

    monkeypatch.setattr(data, "write", full)
    done = run("data", "streamworld", "world")
    assert (done.code, done.out) == (2, [])
    assert done.err == ["infinitevl: cannot write world/videos/a.mp4: No space left on device"]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "Missing argument 'OUT'"),
        (["text"], "cannot use text as a folder"),
        (["/proc/world"], "cannot use /proc/world as a folder"),
        (["world", "--count", "0"], "0 is not in the range"),
        (["world", "--frames", "0"], "0 is not in the range"),
        (["world", "--questions", "none"], "'none' is not a valid integer"),
        (["world", "--seed", "-1"], "-1 is not in the range"),
        (["world", "--size", "100"], "100 is not in the range"),
        (["world", "--size", "120"], "give a multiple of 28"),
        (["world", "--split", "all"], "'all' is not one of"),
        (["world", "--sheet", "sheet"], "--sheet sheet: not the name of a picture"),
        (["world", "--sheet", "nowhere/a.png"], "cannot write nowhere/a.png: No such file"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_mistakes(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, args: list[str], message: str):
    (tmp_path / "text").write_text("no folder")
    monkeypatch.setattr(data, "contact_sheet", lambda *args, **options: Image.new("RGB", (8, 8)))
    done = run("data", "streamworld", *args)
    assert (done.code, done.out, len(done.err)) == (2, [], 1), done
    assert message in done.err[0]
