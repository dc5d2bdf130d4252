"""Training data from files: exact resuming at any batch, any number of workers, and bad samples left out."""

import io
import json
import multiprocessing
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from time import perf_counter
from typing import Any

import av
import numpy as np
import pytest
import torch
from data_kit import Make, talk, write_lines, write_tar
from PIL import Image

from infinitevl.data.encode import IGNORED, Encoder
from infinitevl.data.files import FileBatches, FilePart, State
from infinitevl.data.packing import Batch
from infinitevl.data.skipped import Skipped
from infinitevl.errors import InfiniteVLError
from infinitevl.model.random_model import random_model

TOKENS = 130
MODEL = random_model(num_hidden_layers=1)
all_formats = pytest.mark.parametrize("make", ["json", "jsonl", "webdataset", "hf"], indirect=True)


def files(*paths: Any, skipped: Skipped | None = None, rows: int = 2, steps: int = 8, tokens: int = TOKENS, **options):
    parts = tuple(FilePart(4 - 3 * at, str(path), **options) for at, path in enumerate(paths))
    encoder = Encoder(MODEL.processor, MODEL.config, max_tokens=tokens, min_pixels=784, max_pixels=56 * 56)
    return FileBatches(parts, encoder, rows, tokens, steps, 3, Skipped() if skipped is None else skipped)


def run(data: FileBatches, start: int = 0, state: State | None = None, workers: int = 0) -> list[tuple[Batch, State]]:
    return list(data.batches(start, state, workers))


def content(batch: Batch) -> list[Any]:
    tensors = [value for name, value in vars(batch).items() if name != "frames"]
    return [(tuple(t.shape), t.numpy().tobytes()) for t in [*tensors, *batch.frames]]


def answers(batch: Batch) -> list[int]:
    """The numbers that the samples of `talk` answer with."""
    text = MODEL.processor.tokenizer.decode(batch.targets[batch.targets != IGNORED])
    return [int(number) for number in text.split("<|im_end|>") if number]


def drawn(data: FileBatches) -> list[int]:
    return [number for batch, _ in data.batches(0, None, 0) for number in answers(batch)]


def picture(height: int = 56, width: int = 28) -> np.ndarray:
    return torch.randint(256, (height, width, 3), dtype=torch.uint8).numpy()


def jpeg() -> bytes:
    file = io.BytesIO()
    Image.fromarray(picture(200, 200)).save(file, "jpeg")
    return file.getvalue()


def write_video(path: Path, frames: int = 40) -> Path:
    """Its index comes first, so that a part of it can be played."""
    with av.open(str(path), "w", options={"movflags": "faststart"}) as container:
        track = container.add_stream("libx264", rate=10)
        track.width, track.height, track.pix_fmt = 64, 64, "yuv420p"
        for _ in range(frames):
            container.mux(track.encode(av.VideoFrame.from_ndarray(picture(64, 64), format="rgb24")))
        container.mux(track.encode())
    return path


@pytest.fixture
def mixed(tmp_path: Path) -> list[Path]:
    """Text of very different lengths with pictures and faults in it; and a tar of videos and damaged pictures."""
    (tmp_path / "a.jpg").write_bytes(jpeg())
    (tmp_path / "cut.jpg").write_bytes(jpeg()[:3000])
    rows: list[Any] = [talk(n, "word " * (7 * n % 50)) for n in range(12)]
    rows += [talk(20 + n, "<image>" * (1 + n), images=["a.jpg"] * (1 + n)) for n in range(4)]
    rows += ["{", talk(30, "<image>", images=["cut.jpg"]), talk(31, "word " * 500)]
    video = write_video(tmp_path / "a.mp4", 8).read_bytes()
    members = {"0.json": talk(40, "<video>"), "0.mp4": video, "1.json": talk(41, "<image>"), "1.jpg": jpeg()}
    members |= {"2.json": talk(42, "<image>"), "2.jpg": jpeg()[:3000]}
    return [write_lines(tmp_path / "rows.jsonl", rows), write_tar(tmp_path / "media.tar", members)]


def test_workers_change_nothing(mixed: list[Path]):
    """Neither batches nor states nor what is told."""
    logs = [Skipped(), Skipped()]
    here, there = (run(files(*mixed, skipped=log, steps=12), workers=2 * at) for at, log in enumerate(logs))
    assert [content(batch) for batch, _ in here] == [content(batch) for batch, _ in there]
    assert [state for _, state in here] == [state for _, state in there]
    assert logs[0].counts == logs[1].counts
    assert len(logs[0].counts) == 4
    assert any(state["waiting"] for _, state in here)
    assert len({repr(content(batch)) for batch, _ in here}) > 9


@pytest.mark.parametrize(("workers", "places"), [(0, range(12)), (2, (0, 5, 10))])
def test_resumes_after_every_batch(mixed: list[Path], tmp_path: Path, workers: int, places: Any):
    """From what a checkpoint holds: the same batches, states and counts, down to the samples that waited."""
    expected = run(files(*mixed, steps=12))
    for place in places:
        torch.save(expected[place][1], tmp_path / "checkpoint.pt")
        state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
        resumed = run(files(*mixed, steps=12), place + 1, state, workers)
        assert [content(batch) for batch, _ in resumed] == [content(batch) for batch, _ in expected[place + 1 :]]
        assert [state for _, state in resumed] == [state for _, state in expected[place + 1 :]]


@all_formats
def test_every_format_resumes(make: Make):
    path = make([talk(number) for number in range(10)])
    expected = run(files(path, steps=6))
    resumed = run(files(path, steps=6), 3, expected[2][1])
    assert [answers(batch) for batch, _ in resumed] == [answers(batch) for batch, _ in expected[3:]]
    assert {number for batch, _ in expected for number in answers(batch)} == {*range(10)}


def test_what_was_not_used_is_not_counted(mixed: list[Path]):
    """Workers are ahead when training stops after a batch."""
    expected, skipped = run(files(*mixed)), Skipped()
    (_, state), *_ = islice(files(*mixed, skipped=skipped).batches(0, None, 2), 1)
    assert dict(skipped.counts) == state["skipped"]
    resumed = run(files(*mixed, skipped=skipped), 1, state, 2)
    assert [state for _, state in resumed] == [state for _, state in expected[1:]]
    assert dict(skipped.counts) == expected[-1][1]["skipped"]


def test_workers_stop_at_once(mixed: list[Path]):
    """Those of a DataLoader that is freed as part of a cycle are waited for, 5 seconds each."""
    batches = files(*mixed).batches(0, None, 2)
    next(batches)
    assert len(multiprocessing.active_children()) == 2
    began = perf_counter()
    del batches
    assert not multiprocessing.active_children()
    assert perf_counter() - began < 4


@pytest.mark.parametrize("world_size", [2, 4])
def test_ranks_share_the_samples(tmp_path: Path, world_size: int):
    """In the first epoch none comes twice, on no rank; batches have all their rows together."""
    path = write_lines(tmp_path / "a.jsonl", [talk(number) for number in range(400)])
    found: list[int] = []
    for rank in range(world_size):
        data = files(path, rows=4, steps=16).shard(rank, world_size)
        assert next(data.batches(0, None, 0))[0].ids.shape == (4 // world_size, TOKENS)
        found += drawn(data)
    assert len(found) == len({*found}) > 60


def test_ranks_share_an_epoch(tmp_path: Path):
    path = write_lines(tmp_path / "a.jsonl", [talk(number) for number in range(20)])
    shares = [{*drawn(files(path, steps=16).shard(rank, 2))} for rank in range(2)]
    assert shares[0] | shares[1] == {*range(20)}
    with pytest.raises(InfiniteVLError, match="3 rows cannot be shared evenly by 2 ranks"):
        files(path, rows=3).shard(0, 2)


def test_four_parts_to_one(tmp_path: Path):
    short, long = (write_lines(tmp_path / f"{n}.jsonl", [talk(n + m) for m in range(9)]) for n in (0, 100))
    numbers = drawn(files(short, long, steps=100))
    share = sum(number < 100 for number in numbers) / len(numbers)
    assert len(numbers) > 300
    assert 0.72 < share < 0.88


def test_a_seed_of_its_own_does_not_touch_that_of_the_training(mixed: list[Path]):
    before = torch.get_rng_state()
    run(files(*mixed, steps=1), workers=1)
    assert torch.equal(torch.get_rng_state(), before)


# Bad data


def bad_rows(tmp_path: Path) -> Iterator[tuple[str, Any]]:
    """Every fault, and its kind in the log."""
    (tmp_path / "cut.jpg").write_bytes(jpeg()[:3000])
    (tmp_path / "odd.jpg").write_bytes(b"no picture")
    whole = write_video(tmp_path / "whole.mp4").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "odd.mp4").write_bytes(b"no video" * 99)
    yield "missing file", talk(1, "<image>", images=["nowhere.jpg"])
    yield "not a picture that can be read (image file is truncated", talk(2, "<image>", images=["cut.jpg"])
    yield "not a picture that can be read (unknown format)", talk(3, "<image>", images=["odd.jpg"])
    yield "cut short", talk(4, "<video>", videos=["cut.mp4"])
    yield "not a video that can be read", talk(5, "<video>", videos=["odd.mp4"])
    yield "no conversation", {"messages": []}
    yield "N <image> marks for N files", talk(6, "<image><image>", images=["odd.jpg"])
    yield "N tokens, more than N", talk(7, "word " * 500)
    yield "broken JSON", "{"


@pytest.mark.parametrize("workers", [0, 2])
def test_bad_samples_are_told_and_training_goes_on(tmp_path: Path, workers: int, recwarn: pytest.WarningsRecorder):
    faults = list(bad_rows(tmp_path))
    good = [talk(50 + number) for number in range(2)]
    path = write_lines(tmp_path / "a.jsonl", [row for _, row in faults] + good)
    skipped, log = Skipped(tmp_path / "skipped.jsonl"), tmp_path / "skipped.jsonl"
    batches = run(files(path, skipped=skipped, steps=4), workers=workers)
    assert {number for batch, _ in batches for number in answers(batch)} == {50, 51}
    first = [json.loads(line) for line in log.read_text().splitlines()][: len(faults)]
    assert sorted(line["name"] for line in first) == [f"{path}:{n}" for n in range(1, len(faults) + 1)]
    for kind, _ in faults:
        assert any(found.startswith(kind) for found in skipped.counts), kind
    assert skipped.counts.total() == len(log.read_text().splitlines())
    assert not [warning for warning in recwarn if "cut short" in str(warning.message)]


@pytest.mark.parametrize("workers", [0, 2])
def test_all_bad_is_the_end(mixed: list[Path], tmp_path: Path, workers: int):
    """Even where the other source is good; every picture is there, none can be decoded."""
    bad = write_lines(tmp_path / "bad.jsonl", [talk(0, "<image>", images=["cut.jpg"])] * 5)
    with pytest.raises(InfiniteVLError, match=r"bad.jsonl: all 5 samples are bad, the first: .*: .*truncated"):
        run(files(mixed[0], bad, steps=99), workers=workers)


def test_all_bad_on_every_rank_is_the_end(tmp_path: Path):
    bad = write_lines(tmp_path / "bad.jsonl", ["{"] * 3)
    for rank in range(2):
        with pytest.raises(InfiniteVLError, match=r"all \d+ samples are bad, the first: .*broken JSON"):
            run(files(bad).shard(rank, 2))


def test_a_few_good_ones_are_enough(tmp_path: Path):
    """One of nine: on some ranks whole epochs are bad."""
    path = write_lines(tmp_path / "a.jsonl", [talk(1), *["{"] * 8])
    for rank in range(2):
        assert {*drawn(files(path, steps=6).shard(rank, 2))} == {1}


def test_all_bad_is_noticed_after_resuming_too(tmp_path: Path):
    """The good samples go bad, one file after another."""
    (tmp_path / "a.jpg").write_bytes(jpeg())
    path = write_lines(tmp_path / "a.jsonl", [talk(n, "<image>", images=["a.jpg"]) for n in range(4)])
    _, state = run(files(path, steps=1))[0]
    (tmp_path / "a.jpg").write_bytes(jpeg()[:3000])
    with pytest.raises(InfiniteVLError, match=r"all \d+ samples are bad, the first: .*truncated"):
        run(files(path), 1, state)


def test_other_data_are_not_resumed(tmp_path: Path):
    path = write_lines(tmp_path / "a.jsonl", [talk(number) for number in range(5)])
    _, state = run(files(path, steps=1))[0]
    with pytest.raises(InfiniteVLError, match="another seed or rank"):
        run(files(path).shard(1, 2), 1, state)
    write_lines(path, [talk(number) for number in range(6)])
    with pytest.raises(InfiniteVLError, match="its mark was"):
        run(files(path), 1, state)


def test_samples_longer_than_rows(tmp_path: Path):
    data = files(write_lines(tmp_path / "a.jsonl", [talk(1)]))
    with pytest.raises(InfiniteVLError, match=r"samples of up to 130 tokens for rows of 99"):
        FileBatches(data.parts, data.encoder, 2, 99, 1, 0, Skipped())
