"""Bad data of every kind: named, counted, left out; and where nothing else is left, the end."""

import json
from pathlib import Path
from typing import Any

import pytest
from data_kit import Make, data_url, number, png, take, talk, write_hub, write_lines, write_tar
from hypothesis import given, settings
from hypothesis import strategies as st

from infinitevl.data.readers import Reader, open_samples
from infinitevl.data.rows import to_sample
from infinitevl.data.sample import BadSample
from infinitevl.data.skipped import Skipped
from infinitevl.errors import InfiniteVLError

ROWS = [talk(number) for number in range(10)]
HERE = Path()

HUMAN = [{"role": "user", "content": "?"}]
BAD: dict[str, Any] = {
    "broken JSON": '{"messages": [',
    "not an object": [1],
    "no conversation": {"messages": []},
    "message is not an object": {"messages": ["hello"]},
    "unknown role": {"messages": [{"role": "tool", "content": "x"}]},
    "content is not text": {"messages": [{"role": "user", "content": 3}]},
    "unknown part of a content": {"messages": [{"role": "user", "content": [{"type": "audio"}]}]},
    "no answer of the assistant to learn from": {"messages": HUMAN},
    "N <image> marks for N files": talk(0, "<image>"),
    "N <video> marks for N files": talk(0, "", videos=["a.jsonl"]),
    "missing file": talk(0, "<image>", images=["none.png"]),
    "unknown kind of address": talk(0, "<image>", images=["s3://a/b.png"]),
    "broken data URL": talk(0, "<image>", images=["data:image/png;base64,!"]),
    "not a picture": talk(0, "<image>", images=["data:text/plain,hello"]),
    "unusable image": talk(0, "<image>", images=[3]),
    "images both in the messages and beside them": {
        "messages": [{"role": "user", "content": [{"type": "image", "image": data_url()}]}], "images": [data_url()],
    },
}  # fmt: skip


def test_bad_rows_are_named_and_the_rest_goes_on(tmp_path: Path) -> None:
    rows = [row for number, bad in enumerate(BAD.values()) for row in (bad, "", talk(number))]
    path, log = write_lines(tmp_path / "a.jsonl", rows), tmp_path / "logs" / "skipped.jsonl"
    skipped = Skipped(log)
    assert tell(open_samples(path), skipped) == list(range(len(BAD)))
    assert dict(skipped.counts) == dict.fromkeys(BAD, 1)
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert [line["name"] for line in lines] == [f"{path}:{1 + 3 * number}" for number in range(len(BAD))]
    assert lines[1]["reason"] == "not an object: list" and str(skipped).startswith("16 samples skipped: 1 ")


def tell(reader: Reader, skipped: Skipped) -> list[int]:
    """The numbers of an epoch's good samples; the bad ones go to the log."""
    found = []
    for candidate in reader:
        try:
            found.append(number(candidate.sample()))
        except BadSample as error:
            skipped.add(candidate.name, str(error))
    return found


@pytest.mark.parametrize("image", ["x" * 5000, "a\0b", "", ".", {"url": None}, {}, None])
def test_impossible_files(image: Any) -> None:
    with pytest.raises(BadSample, match=r"^n: "):
        to_sample(talk(0, "<image>", images=[image]), "n", HERE)


def test_a_picture_too_large_to_decode_is_not_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("infinitevl.video.pictures.MAX_PIXELS", 15)
    with pytest.raises(BadSample, match=r"n: not a picture: .* larger than the limit"):
        to_sample(talk(0, "<image>", images=[png()]), "n", HERE)


leaves = st.none() | st.booleans() | st.integers() | st.sampled_from(["text", "image", "user", "gpt", "<image>", "."])
keys = st.sampled_from(["type", "text", "image", "image_url", "url", "bytes", "role", "from", "content", "value"])
trees = st.recursive(leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner), max_leaves=8)
tops = st.sampled_from(["messages", "conversations", "images", "image", "videos", "system"])


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(tops, trees) | trees)
def test_no_row_breaks_the_reader(row: Any) -> None:
    try:
        to_sample(row, "n", HERE)
    except BadSample as error:
        assert str(error).startswith("n: ")


def test_broken_tars(tmp_path: Path) -> None:
    tars = [write_tar(tmp_path / f"{n}.tar", {f"{n}{m}.json": talk(10 * n + m) for m in range(3)}) for n in range(5)]
    whole = tars[0].read_bytes()  # a header of 512 bytes and one block of data, three times
    tars[0].write_bytes(whole[: 5 * 512 + 9])  # ends in the last data
    tars[1].write_bytes(tars[1].read_bytes()[: 4 * 512 + 9])  # ends in the last header
    damaged = bytearray(tars[2].read_bytes())
    damaged[2 * 512] ^= 255
    tars[2].write_bytes(damaged)
    tars[3].write_bytes(b"not a tar" * 100)
    skipped, reader = Skipped(), open_samples(tmp_path / "*.tar")
    assert tell(reader, skipped) == [0, 1, 10, 11, 20, 40, 41, 42]
    assert skipped.counts == {"cut short by the end of its tar": 1, "broken tar": 4}
    states, found = [reader.state_dict()], []
    for candidate in reader:
        found.append(candidate)
        states.append(reader.state_dict())
    for position, state in enumerate(states):
        resumed = open_samples(tmp_path / "*.tar")
        resumed.load_state_dict(state)
        assert list(resumed) == found[position:]


def test_a_damaged_shard_of_the_hub(tmp_path: Path, hub: None) -> None:
    write_hub(tmp_path, ROWS)
    (tmp_path / "01.parquet").write_text("damaged")
    skipped = Skipped()
    assert tell(open_samples(tmp_path), skipped) == [0, 1, 2, 6, 7, 8, 9] and skipped.counts == {"broken shard": 1}


@pytest.mark.parametrize("make", ["json", "jsonl"], indirect=True)
def test_no_samples_is_the_end(make: Make) -> None:
    with pytest.raises(InfiniteVLError, match="no samples in it"):
        next(open_samples(make([])))


def test_a_rank_without_rows_for_a_while_goes_on(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", [talk(1), talk(2)])
    for rank in range(5):
        reader, found = open_samples(path).shard(rank, 5), []
        for _ in range(4):  # resumed after every row
            found += take(reader, 1)
            state, reader = reader.state_dict(), open_samples(path).shard(rank, 5)
            reader.load_state_dict(state)
        assert {*found} == {1, 2}


def test_reasons_of_a_kind_are_counted_together() -> None:
    skipped = Skipped()
    for reason in ("/a/b.mp4: cut short", "/c/d.mp4: cut short", "b.mp4: cut short", "n: /a b.mp4: cut short"):
        skipped.add("n", reason)
    skipped.add("n", "n: 70 tokens, more than 50")
    skipped.add("n", "/only/a/path\nand a line")
    assert skipped.counts == {"cut short": 4, "N tokens, more than N": 1, "/only/a/path and a line": 1}


def test_a_log_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(InfiniteVLError, match="cannot be written"):
        Skipped(tmp_path)
