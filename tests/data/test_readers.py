"""Every format and dialect in, every position resumed, every epoch whole."""

import io
import json
import sys
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
from data_kit import Make, data_url, good, number, numbers, png, take, talk, write_lines, write_tar, write_tars
from PIL import Image

from infinitevl.data.readers import open_samples
from infinitevl.data.rows import to_sample
from infinitevl.errors import InfiniteVLError

all_formats = pytest.mark.parametrize("make", ["json", "jsonl", "webdataset", "hf"], indirect=True)
ROWS = [talk(number) for number in range(10)]
HERE = Path()


# Formats and dialects


@all_formats
def test_rows_of_every_format(make: Make, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png())
    rows = [talk(n, "<image>" * (n % 2), images=["a.png"] * (n % 2), system="Be brief.") for n in range(10)]
    samples = list(good(open_samples(make(rows))))
    assert [number(sample) for sample in samples] == list(range(10))
    assert [sample.images for sample in samples] == [[str(tmp_path / "a.png")] * (n % 2) for n in range(10)]
    assert samples[0].messages[0] == {"role": "system", "content": "Be brief."}
    assert len({sample.name for sample in samples}) == 10


def test_sharegpt() -> None:
    turns = [{"from": "system", "value": "s"}, {"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]
    sample = to_sample({"conversations": turns, "system": "other"}, "n", HERE, fps=10)
    assert [m["role"] for m in sample.messages] == ["system", "user", "assistant"]
    assert [m["content"] for m in sample.messages] == ["s", "q", "a"] and (sample.fps, sample.name) == (10, "n")


def test_openai_parts() -> None:
    parts = [
        {"type": "text", "text": "Look: "},
        {"type": "image_url", "image_url": {"url": data_url(7)}},
        {"type": "image", "image": "https://a.b/c.png"},
        {"type": "video_url", "video_url": "http://a.b/c.mp4"},
    ]
    sample = to_sample({"messages": [{"role": "user", "content": parts}, {"role": "gpt", "content": "ok"}]}, "n", HERE)
    assert sample.messages[0]["content"] == "Look: <image><image><video>"
    assert np.asarray(sample.images[0])[0, 0].tolist() == [7, 7, 7]
    assert sample.images[1:] == ["https://a.b/c.png"] and sample.videos == ["http://a.b/c.mp4"]


def test_media_in_every_form() -> None:
    array, picture = np.zeros((4, 4, 3), np.uint8), Image.new("RGB", (4, 4))
    images = [array, picture, png(), {"bytes": png(), "path": None}, {"bytes": None, "path": "http://a/b.png"}]
    parts = [{"type": "image"}] * 5 + [{"type": "text", "text": "?"}]
    turns = {"role": ["user", "assistant"], "content": [parts, "ok"]}  # as columns
    sample = to_sample({"messages": turns, "images": images}, "n", HERE)
    assert sample.images[0] is array and sample.images[1] is picture and sample.images[4] == "http://a/b.png"
    assert all(isinstance(image, Image.Image) for image in sample.images[2:4])
    clip = to_sample(talk(0, "<video>", video=b"moving"), "n", HERE).videos[0]
    assert isinstance(clip, io.BytesIO) and clip.read() == b"moving"


def test_paths_are_of_root(tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "a b.png").write_bytes(png())
    path = write_lines(tmp_path / "a.jsonl", [talk(0, "<image>", image="a b.png")])
    sample = next(open_samples(path, root=tmp_path / "pictures")).sample()
    assert sample.images == [str(tmp_path / "pictures" / "a b.png")]
    assert to_sample(talk(0, "<image>", image=f"file://{tmp_path}/pictures/a%20b.png"), "n", HERE).images
    with pytest.raises(InfiniteVLError, match="no such folder"):
        open_samples(path, root=tmp_path / "none")


def test_tar_members_are_the_media(tmp_path: Path) -> None:
    path = write_tar(
        tmp_path / "a.tar",
        {
            "x/0.json": talk(0, "<image><image>"), "x/0.10.png": png(10), "x/0.9.png": png(9), "x/0.cls": b"3",
            "x/1.txt": b" 1\n", "x/1.json": {"width": 4}, "x/1.mp4": b"moving",
            "x/2.json": talk(2, "<image><image>", images=["1.png", "2.0.png"]), "x/2.0.png": png(0),
            "x/2.1.png": png(1),
        },
    )  # fmt: skip
    two, caption, named = good(open_samples(path))
    shades = [[np.asarray(image)[0, 0, 0] for image in sample.images] for sample in (two, named)]
    assert shades == [[9, 10], [1, 0]]
    assert caption.messages[0]["content"] == "<video>Describe the video." and number(caption) == 1
    assert caption.videos[0].read() == b"moving" and caption.name == f"{path}:a.tar/x/1"


def test_tar_patterns(tmp_path: Path) -> None:
    pattern = write_tars(tmp_path, [talk(number) for number in range(12)], shards=12)
    for name in (pattern, tmp_path / "a-*.tar", tmp_path, tmp_path / "a-{00,01}{0..1}.tar"):
        expected = [0, 1, 10, 11] if "," in str(name) else list(range(12))
        assert numbers(open_samples(name)) == expected
    with pytest.raises(InfiniteVLError, match=r"a-012.tar: no such tar"):
        open_samples(tmp_path / "a-{000..012}.tar")


def test_format_is_recognised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = write_lines(tmp_path / "lines.json", ROWS)
    assert numbers(open_samples(lines)) == list(range(10))
    (tmp_path / "bom.json").write_bytes(b"\xef\xbb\xbf \n" + json.dumps(ROWS).encode())
    assert numbers(open_samples(tmp_path / "bom.json")) == list(range(10))
    (tmp_path / "broken.json").write_text("[{")
    (tmp_path / "a.csv").touch()
    (tmp_path / "empty").mkdir()
    monkeypatch.setitem(sys.modules, "datasets", None)
    problems = {"broken.json": "not a JSON file", "a.csv": "say its format", "no.json": "no such file or folder",
                "empty": "a folder without", "*.tar": "no such tar", "a.json\0": "no such file"}  # fmt: skip
    for name, problem in problems.items():
        with pytest.raises(InfiniteVLError, match=problem):
            open_samples(tmp_path / name)
    for form, problem in {"csv": "not a format", "hf": r"pip install infinitevl\[train\]"}.items():
        with pytest.raises(InfiniteVLError, match=problem):
            open_samples(lines, form)


# Order and position


@all_formats
@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize(("rank", "world_size"), [(0, 1), (1, 2), (1, 3)])
def test_resumes_anywhere(make: Make, shuffle: bool, rank: int, world_size: int) -> None:
    path = make([*ROWS, talk(-1, "<image>"), talk(10)])  # one of them bad
    reader = open_samples(path, shuffle=shuffle, seed=3).shard(rank, world_size)
    states, following = [], take(open_samples(path, shuffle=shuffle, seed=3).shard(rank, world_size), 40)
    for _ in range(30):
        states.append(json.dumps(reader.state_dict()))
        take(reader, 1)
    resumed = open_samples(path, shuffle=shuffle, seed=3).shard(rank, world_size)
    for position, state in enumerate(states):
        resumed.load_state_dict(json.loads(state))
        assert take(resumed, 10) == following[position : position + 10]
    assert json.loads(states[-1])["epoch"] > 1


@all_formats
@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("world_size", [1, 2, 3, 13])
def test_ranks_share_every_epoch(make: Make, shuffle: bool, world_size: int) -> None:
    path = make(ROWS)
    readers = [open_samples(path, shuffle=shuffle).shard(rank, world_size) for rank in range(world_size)]
    for _ in range(3):
        parts = [numbers(reader) for reader in readers]
        assert sorted(chain(*parts)) == list(range(10))
        assert max(map(len, parts)) - min(map(len, parts)) <= 4 // world_size + 1


@all_formats
def test_shuffle(make: Make) -> None:
    path = make(ROWS)
    first, again = (open_samples(path, shuffle=True, seed=1) for _ in range(2))
    epochs = [numbers(first) for _ in range(4)]
    assert epochs == [numbers(again) for _ in range(4)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs) and len({*map(tuple, epochs)}) > 1
    assert [numbers(open_samples(path, shuffle=True, seed=seed)) for seed in range(2, 6)] != epochs
    plain = open_samples(path)
    assert numbers(plain) == numbers(plain) == list(range(10))


def test_tars_are_shuffled_each_in_its_own_way(tmp_path: Path) -> None:
    found = numbers(open_samples(write_tars(tmp_path, [talk(number) for number in range(40)], 2), shuffle=True))
    assert [number % 20 for number in found[:20]] != [number % 20 for number in found[20:]]


def test_the_order_stays_for_ever(tmp_path: Path) -> None:
    """Saved positions outlive versions, so an order is part of the interface."""
    path = write_lines(tmp_path / "a.jsonl", ROWS)
    assert numbers(open_samples(path, shuffle=True, seed=1)) == [9, 2, 4, 7, 5, 0, 8, 6, 3, 1]


def test_changed_data_are_not_resumed(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", ROWS)
    state = open_samples(path).state_dict()
    write_lines(path, ROWS[1:])
    with pytest.raises(InfiniteVLError, match="cannot resume, its mark was"):
        open_samples(path).load_state_dict(state)
    with pytest.raises(InfiniteVLError, match="its seed was None and is now 0"):
        open_samples(write_lines(path, ROWS), shuffle=True).load_state_dict(state)
    with pytest.raises(InfiniteVLError, match="rank 2 of 2"):
        open_samples(path).shard(2, 2)
