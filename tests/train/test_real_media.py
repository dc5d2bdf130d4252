"""Every loss on real pictures and videos, from a file in the format of LLaMA-Factory."""

import json
import math
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image
from train_kit import encoder, small_model, small_teacher, stage

from infinitevl.data.files import FileBatches, FilePart
from infinitevl.data.skipped import Skipped
from infinitevl.train.stages import Objective, select

QUESTIONS = {"images": "<image>What is in the picture?", "videos": "<video>What happens?"}
TOKENS = 400


def picture(height: int, width: int, shade: int) -> np.ndarray:
    """Stripes on a slope of colour."""
    columns, rows = np.arange(width), np.arange(height)[:, None]
    colours = [rows * 2 + shade + 0 * columns, columns * 2 + 0 * rows, (rows + columns) // 8 % 2 * 200]
    return np.stack(colours, axis=-1).astype(np.uint8)


def write_video(path: Path) -> None:
    with av.open(str(path), "w") as container:
        track = container.add_stream("libx264", rate=10)
        track.width, track.height, track.pix_fmt = 96, 64, "yuv420p"
        for number in range(20):
            container.mux(track.encode(av.VideoFrame.from_ndarray(picture(64, 96, 10 * number), format="rgb24")))
        container.mux(track.encode())


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    """Two pictures, a video and a conversation without either."""
    for number, size in enumerate([(80, 60), (64, 200)]):
        Image.fromarray(picture(*size, 50 * number)).save(tmp_path / f"{number}.jpg")
    write_video(tmp_path / "2.mp4")
    return ask(tmp_path, [("images", "0.jpg"), ("images", "1.jpg"), ("videos", "2.mp4")])


def ask(folder: Path, media: list[tuple[str, str]]) -> Path:
    rows = [
        {"conversations": [{"from": "human", "value": QUESTIONS[kind]}, {"from": "gpt", "value": name}], kind: [name]}
        for kind, name in media
    ]
    rows.append({"conversations": [{"from": "human", "value": "Hello?"}, {"from": "gpt", "value": "Hello."}]})
    (folder / "questions.json").write_text(json.dumps(rows))
    return folder / "questions.json"


LOSSES = pytest.mark.parametrize("loss", ["cross_entropy", "layerwise", "distillation"])


@LOSSES
def test_a_few_steps(questions: Path, loss: str):
    take_steps(questions, loss)


@LOSSES
def test_a_few_steps_on_the_shared_media(media: Path, tmp_path: Path, loss: str):
    """Photographs, and videos of several containers and codecs, longer than what is taken of them."""
    kinds = {".jpg": "images", ".mp4": "videos", ".avi": "videos"}
    found = [(kinds[path.suffix], str(path)) for path in sorted(media.iterdir()) if path.suffix in kinds]
    assert len({kind for kind, _ in found}) == 2
    take_steps(ask(tmp_path, found), loss)


def take_steps(questions: Path, loss: str) -> None:
    student, kind = small_model(), stage(loss=loss)
    teacher = small_teacher() if kind.needs_teacher else None
    names, skipped = select(student, "language" if teacher is None else "delta"), Skipped()
    encode = encoder(student, TOKENS, max_frames=16)
    data = FileBatches((FilePart(1, str(questions)),), encode, 2, TOKENS, 3, 0, skipped)
    objective, losses = Objective(kind, student, teacher), []
    optimizer = torch.optim.AdamW([p for p in student.parameters() if p.requires_grad], lr=1e-3)
    for batch, _ in data.batches(0, None, 0):
        value = objective(batch)
        value.backward()
        gradients = [dict(student.named_parameters())[name].grad for name in names]
        assert all(gradient is not None and torch.isfinite(gradient).all() for gradient in gradients)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(value.item())
        assert batch.frames
    assert all(math.isfinite(value) for value in losses)
    assert len(losses) == 3
    assert not skipped.counts
