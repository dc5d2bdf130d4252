"""Files: whole conversations, and videos whose decoded frames are still legible."""

import json
from pathlib import Path

import numpy as np
import pytest

from infinitevl.data.streamworld import contact_sheet, sample, write
from infinitevl.data.streamworld.disk import MARK, pieces


def decoded(path: Path) -> np.ndarray:
    av = pytest.importorskip("av")
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def test_written_samples_come_back(tmp_path: Path) -> None:
    pytest.importorskip("av")
    path = write(tmp_path / "made", split="validation", count=3, seed=5, frames=40, questions=6)
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert path.name == "validation.jsonl" and [line["streamworld"]["seed"] for line in lines] == [5, 6, 7]
    assert not list(tmp_path.rglob("*partial*"))
    for line in lines:
        episode = sample(line["streamworld"]["seed"], "validation", frames=40, questions=6)
        messages = line["messages"]
        assert [m["role"] for m in messages] == ["user", "assistant"] * len(episode.questions)
        assert [m["content"] for m in messages[1::2]] == [q.answer for q in episode.questions]
        asked = [m["content"] for m in messages[::2]]
        assert [text.replace(MARK, "") for text in asked] == [q.question for q in episode.questions]
        assert sum(text.count(MARK) for text in asked) == len(line["videos"])
        assert [q["frame"] for q in line["streamworld"]["questions"]] == [q.frame for q in episode.questions]
        frames = np.concatenate([decoded(path.parent / name) for name in line["videos"]])
        original = episode.frames[: len(frames)].astype(int)
        assert len(frames) == episode.questions[-1].frame + 1
        light = np.abs((frames - original).mean(axis=-1))
        assert np.abs(frames - original).mean() < 4 and np.quantile(light, 0.99) < 16


def test_progress_is_told(tmp_path: Path) -> None:
    """Of every sample, also of those whose one frame left nothing to ask, which have no line."""
    pytest.importorskip("av")
    told: list[int] = []
    path = write(tmp_path, split="train", count=8, frames=1, questions=1, tell=told.append)
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert told == list(range(1, 9))
    assert 0 < len(lines) < 8 and all(line["messages"] for line in lines)


def test_pieces_are_the_stream_cut_at_its_questions() -> None:
    episode = sample(4, "train", questions=9)
    cut = list(pieces(episode))
    assert [q for _, questions in cut for q in questions] == list(episode.questions)
    joined = np.concatenate([frames for frames, _ in cut])
    assert np.array_equal(joined, episode.frames[: len(joined)])


def test_an_interrupted_write_leaves_no_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("av")
    done = []

    def fail(*args: object) -> None:
        done.append(args)
        if len(done) == 3:
            raise OSError("the disk is full")

    monkeypatch.setattr("infinitevl.data.streamworld.disk.write_video", fail)
    with pytest.raises(OSError, match="full"):
        write(tmp_path, split="train", count=4)
    assert not list(tmp_path.glob("*.jsonl"))


def test_a_contact_sheet_shows_every_kind_of_its_groups() -> None:
    sheet = contact_sheet(groups=("read", "text"), columns=4)
    assert sheet.mode == "RGB" and sheet.width > 4 * 2 * 224 and sheet.height > 3 * 224
    assert len(np.unique(np.asarray(sheet).reshape(-1, 3), axis=0)) > 1000
