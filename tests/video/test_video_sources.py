"""Every kind of source, whole and broken."""

import io
import re
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image
from video_kit import MakeVideo, Server, level, scene

from infinitevl.errors import FrameError, VideoError
from infinitevl.video.bytestreams import spooled
from infinitevl.video.live import Video
from infinitevl.video.sources import open_video


def watch(source: Any, **options: Any) -> tuple[list[tuple[float, np.ndarray]], Video]:
    with open_video(source, **options) as video:
        return list(video), video


def refused(source: Any, **options: Any) -> str:
    """The one line by which a source is refused."""
    with pytest.raises(VideoError) as caught:
        watch(source, **options)
    line = str(caught.value)
    assert "\n" not in line and "Traceback" not in line
    return line


class Unseekable(io.RawIOBase):
    def __init__(self, data: bytes) -> None:
        self._data = io.BytesIO(data)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        return self._data.readinto(buffer)


# Files


@pytest.mark.parametrize(
    ("name", "codec", "pixels", "size"),
    [
        ("a.mp4", "libx264", "yuv420p", (96, 128)),
        ("a.mkv", "libx264", "yuv420p10le", (96, 128)),
        ("a.avi", "mpeg4", "yuv420p", (96, 128)),
        ("a.webm", "libvpx-vp9", "yuv420p", (96, 128)),
        ("odd.mp4", "libx264", "yuv444p", (287, 353)),
        ("grey.mkv", "ffv1", "gray", (95, 127)),
    ],
)
def test_reads_a_file(make_video: MakeVideo, name: str, codec: str, pixels: str, size: tuple[int, int]) -> None:
    frames, video = watch(make_video(name, codec, 20, size, pixels))
    assert [level(frame) for _, frame in frames] == list(range(20))
    assert [time for time, _ in frames] == pytest.approx([index / 20 for index in range(20)], abs=1e-3)
    assert all(frame.shape == (*size, 3) and frame.dtype == np.uint8 for _, frame in frames)
    assert (video.warning, video.dropped, video.live) == (None, 0, False)
    assert video.duration == pytest.approx(1.0, abs=0.01)


def test_colours_are_right(tmp_path: Path) -> None:
    red = np.zeros((64, 64, 3), np.uint8)
    red[..., 0] = 200
    with av.open(str(tmp_path / "red.mp4"), "w") as box:
        stream = box.add_stream("libx264", rate=5)
        stream.width = stream.height = 64
        for _ in range(3):
            box.mux(stream.encode(av.VideoFrame.from_ndarray(red, format="rgb24")))
        box.mux(stream.encode(None))
    frames, _ = watch(tmp_path / "red.mp4")
    assert np.abs(frames[0][1].astype(int) - red).max() <= 4


@pytest.mark.parametrize("name", ["1.mp4", "3.mp4", "2.avi"])
def test_reads_the_shared_media(media: Path, name: str) -> None:
    frames, video = watch(str(media / name))
    assert len(frames) == video.frames == {"1.mp4": 243, "3.mp4": 146, "2.avi": 270}[name]
    assert frames[0][0] == 0 and video.warning is None and video.name.endswith(name)


def test_fps_takes_the_first_frame_of_every_interval(make_video: MakeVideo) -> None:
    frames, video = watch(make_video(frames=40), fps=3)
    assert [level(frame) for _, frame in frames] == [0, 7, 14, 20, 27, 34]
    assert video.frames == 40


def test_fps_at_the_rate_of_a_file_with_rounded_times_keeps_all(make_video: MakeVideo) -> None:
    assert len(watch(make_video("a.mkv", frames=40, rate=30), fps=30)[0]) == 40


def turned(path: Path) -> Path:
    """The mp4 as a phone held upright writes it: to be turned by 90 degrees clockwise."""
    upright = struct.pack(">9i", 1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)
    clockwise = struct.pack(">9i", 0, 1 << 16, 0, -1 << 16, 0, 0, 0, 0, 1 << 30)
    data = path.read_bytes()
    at = data.index(upright, data.index(b"tkhd"))
    path.write_bytes(data[:at] + clockwise + data[at + len(clockwise) :])
    return path


def test_a_phone_video_is_turned_upright(make_video: MakeVideo) -> None:
    path = make_video(frames=3)
    lying = watch(path)[0][2][1]
    upright = watch(turned(path))[0][2][1]
    assert np.array_equal(upright, np.rot90(lying, -1)) and upright.flags.c_contiguous


# Pictures


def test_a_folder_is_naturally_ordered_and_one_second_apart(tmp_path: Path) -> None:
    for index in (10, 2, 1):
        Image.fromarray(scene(index, 32, 48)).save(tmp_path / f"frame{index}.png")
    (tmp_path / "notes.txt").write_text("not a picture")
    frames, video = watch(tmp_path)
    assert [(time, level(frame)) for time, frame in frames] == [(0, 1), (1, 2), (2, 10)]
    assert (video.frames, video.duration, video.warning) == (3, 3, None)
    assert [time for time, _ in watch(tmp_path, fps=4)[0]] == [0, 0.25, 0.5]


def test_a_picture_is_a_video_of_one_frame(tmp_path: Path) -> None:
    Image.fromarray(scene(5, 31, 47)).save(tmp_path / "one.png")
    ((time, frame),), video = watch(tmp_path / "one.png")
    assert time == 0 and np.array_equal(frame, scene(5, 31, 47)) and video.frames == 1


def test_a_picture_is_turned_upright(tmp_path: Path) -> None:
    picture = Image.fromarray(scene(5, 31, 47))
    exif = picture.getexif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    picture.save(tmp_path / "phone.png", exif=exif)
    assert np.array_equal(watch(tmp_path / "phone.png")[0][0][1], np.rot90(scene(5, 31, 47), -1))


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "1", "CMYK", "I;16"])
def test_pictures_of_every_mode_become_rgb(tmp_path: Path, mode: str) -> None:
    grey = Image.new("L", (8, 6), 255)
    path = tmp_path / ("a.tif" if mode == "CMYK" else "a.png")
    white = Image.fromarray(np.full((6, 8), 65535, np.uint16)) if mode == "I;16" else grey.convert(mode)
    white.save(path)
    assert np.array_equal(watch(path)[0][0][1], np.full((6, 8, 3), 255))


def test_an_unreadable_picture_is_left_out_with_a_warning(tmp_path: Path) -> None:
    for index in range(3):
        Image.fromarray(scene(index, 32, 48)).save(tmp_path / f"{index}.png")
    (tmp_path / "1.png").write_bytes((tmp_path / "1.png").read_bytes()[:60])
    frames, video = watch(tmp_path)
    assert [time for time, _ in frames] == [0, 2]
    assert re.search(r"1\.png: not a picture.*; kept 2 frames, up to 2.00 s$", str(video.warning))


# Arrays


def test_arrays_are_one_interval_apart_or_carry_their_times() -> None:
    arrays = [scene(index, 8, 12) for index in range(4)]
    assert [time for time, _ in watch(arrays)[0]] == [0, 1, 2, 3]
    assert [time for time, _ in watch(np.stack(arrays), fps=2)[0]] == [0, 0.5, 1, 1.5]
    pairs = ((100 + index / 10, array) for index, array in enumerate(arrays))
    assert [time for time, _ in watch(pairs, fps=5)[0]] == pytest.approx([0, 0.2])


@pytest.mark.parametrize("shape", [(6, 8), (6, 8, 1), (6, 8, 3), (6, 8, 4)])
def test_grey_and_rgba_arrays_become_rgb(shape: tuple[int, ...]) -> None:
    for source in ([np.full(shape, 7, np.uint8)], np.full(shape, 7, np.uint8)):
        ((_, frame),), _ = watch(source)
        assert frame.shape == (6, 8, 3) and (frame == 7).all() and frame.flags.c_contiguous


@pytest.mark.parametrize(
    "bad",
    [np.zeros((4, 4, 3), np.float32), np.zeros((4, 4, 2), np.uint8), np.zeros((0, 4, 3), np.uint8), "no"],
)
def test_an_array_that_is_no_picture_is_told_even_after_good_ones(bad: Any) -> None:
    with pytest.raises(FrameError, match=r"^frame 1 of the frames given is .*, not uint8 \[H, W, 3\]$"):
        watch([np.zeros((4, 4, 3), np.uint8), bad])


def test_a_tuple_that_is_no_pair_is_told() -> None:
    for bad in (("now", np.zeros((4, 4), np.uint8)), (float("nan"), np.zeros((4, 4), np.uint8)), (1, 2, 3)):
        assert refused([bad]) == "frame 0 of the frames given is a tuple, but not (seconds, array)"


# Pipes


@pytest.mark.parametrize("flags", ["faststart", ""])
def test_a_pipe_gives_what_the_file_gives(make_video: MakeVideo, flags: str) -> None:
    path = make_video(movflags=flags) if flags else make_video()
    frames, video = watch(Unseekable(path.read_bytes()))
    assert [level(frame) for _, frame in frames] == list(range(40)) and video.warning is None


def test_a_file_object_is_read_and_left_open(make_video: MakeVideo) -> None:
    with make_video("a.mkv").open("rb") as file:
        assert len(watch(file)[0]) == 40
        assert not file.closed


def test_standard_input(make_video: MakeVideo) -> None:
    code = (
        "from infinitevl.video.sources import open_video\n"
        "from infinitevl.errors import VideoError\n"
        "try: print(sum(1 for _ in open_video('-')))\n"
        "except VideoError as error: print(error)"
    )

    def piped(data: bytes) -> str:
        return subprocess.run([sys.executable, "-c", code], input=data, stdout=-1, stderr=-2).stdout.decode().strip()

    assert piped(make_video().read_bytes()) == "40"
    assert piped(b"") == "standard input: empty"
    assert piped(b"words " * 99) == "standard input: not a video that can be read"


# What cannot be opened


def test_what_is_not_there_or_not_a_video(tmp_path: Path) -> None:
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "words.txt").write_text("words\n" * 100)
    (tmp_path / "words.mp4").write_text("words\n" * 100)
    (tmp_path / "noise").write_bytes(np.random.default_rng(0).bytes(5000))
    (tmp_path / "folder").mkdir()
    (tmp_path / "bad.jpg").write_text("words")
    for name, reason in {
        "none.mp4": "no such file",
        "empty.mp4": "empty",
        "words.txt": "a text file, not a video",
        "words.mp4": "not a video that can be read",
        "noise": "not a video that can be read",
        "folder": "a folder without pictures",
        "bad.jpg": "not a picture that can be read (unknown format)",
    }.items():
        assert refused(tmp_path / name) == f"{tmp_path / name}: {reason}"
    assert refused("ftp://a:b@host/x") == "ftp://host/x: not an http, https or rtsp address"
    assert refused([]) == "the frames given: no frame in it"
    assert "is not a video" in refused(12)
    assert "File name too long" in refused("words" * 100)
    assert refused("http://[/x") == "http://[/x: Invalid IPv6 URL"


def test_a_name_that_looks_like_an_address_is_a_path(make_video: MakeVideo) -> None:
    assert len(watch(make_video("pipe:0.mp4"))[0]) == 40


def test_sound_alone_is_no_video(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "a.wav"), "w") as box:
        stream = box.add_stream("pcm_s16le", rate=8000)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 4000), np.int16), format="s16", layout="mono")
        sound.sample_rate = 8000
        box.mux(stream.encode(sound))
        box.mux(stream.encode(None))
    assert refused(tmp_path / "a.wav") == f"{tmp_path / 'a.wav'}: no video in it"


def test_pictures_beyond_any_camera_are_refused(tmp_path: Path) -> None:
    Image.new("1", (20_000, 10)).save(tmp_path / "wide.png")
    Image.new("1", (16_000, 16_000)).save(tmp_path / "bomb.png")
    assert "a frame of 20000x10 is larger than the limit" in refused(tmp_path / "wide.png")
    assert "bomb.png" in refused(tmp_path / "bomb.png")
    assert "larger than the limit" in refused([np.zeros((1, 20_000), np.uint8)])


# What breaks on the way


@pytest.mark.parametrize("percent", [10, 50, 90])
@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "2.avi"])
def test_a_truncated_file_gives_what_it_has(
    make_video: MakeVideo, tmp_path: Path, request: pytest.FixtureRequest, name: str, percent: int
) -> None:
    options = {"movflags": "faststart"} if name == "a.mp4" else {}
    path = request.getfixturevalue("media") / name if name == "2.avi" else make_video(name, **options)
    whole = watch(path)[0]
    cut = tmp_path / f"cut{path.suffix}"
    cut.write_bytes(path.read_bytes()[: path.stat().st_size * percent // 100])
    frames, video = watch(cut)
    assert abs(len(frames) / len(whole) - percent / 100) < 0.1
    assert all(np.array_equal(a[1], b[1]) for a, b in zip(frames[:-4], whole, strict=False))
    assert re.search(rf"cut short.*; kept {len(frames)} frames?, up to \d+\.\d\d s$", str(video.warning))


@pytest.mark.parametrize("name", ["1.mp4", "3.mp4"])
def test_an_mp4_cut_before_its_index_says_so(media: Path, tmp_path: Path, name: str) -> None:
    for percent in (10, 50, 90):
        data = (media / name).read_bytes()
        (tmp_path / name).write_bytes(data[: len(data) * percent // 100])
        assert refused(tmp_path / name).endswith("it looks truncated, its index (the moov box at the end) is missing")
    assert "looks truncated" in refused(Unseekable(data[:9999]))


def test_damage_in_the_middle_is_skipped_and_told(make_video: MakeVideo) -> None:
    path = make_video(frames=40, movflags="faststart")
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + len(data) // 10] = b"\xff" * (len(data) // 10)
    path.write_bytes(data)
    frames, video = watch(path)
    assert 30 <= len(frames) < 40 and frames[-1][0] > 1.8
    assert re.search(r"damaged packets? left out.*; kept \d+ frames, up to 1.9", str(video.warning))


def test_endless_damage_ends(make_video: MakeVideo) -> None:
    path = make_video(frames=700, size=(32, 32), movflags="faststart")
    data = bytearray(path.read_bytes())
    start = data.index(b"mdat") + 3000
    data[start:] = b"\xff" * (len(data) - start)
    path.write_bytes(data)
    frames, video = watch(path)
    assert frames and "packets in a row are damaged" in str(video.warning)


def test_a_file_object_that_fails_halfway(make_video: MakeVideo) -> None:
    class Failing(Unseekable):
        left = 3

        def readinto(self, buffer: Any) -> int:
            self.left -= 1
            if self.left < 0:
                raise OSError("the cable is out")
            return super().readinto(buffer)

    frames, video = watch(Failing(make_video("a.mkv", size=(192, 256)).read_bytes()))
    assert frames and "reading failed (the cable is out); kept" in str(video.warning)


# Addresses


@pytest.mark.parametrize("mode", ["ok", "ranges"])
@pytest.mark.parametrize("flags", ["faststart", ""])
def test_http(make_video: MakeVideo, server: Server, mode: str, flags: str) -> None:
    path = make_video(movflags=flags, size=(192, 256)) if flags else make_video(size=(192, 256))
    server.body, server.mode = path.read_bytes(), mode
    frames, video = watch(server.address, timeout=5)
    assert [level(frame) for _, frame in frames] == list(range(40))
    assert (video.warning, video.dropped, video.live) == (None, 0, False)


@pytest.mark.parametrize(("mode", "what"), [("drop", "the connection broke"), ("stall", "no data for 0.5 s")])
def test_http_that_breaks_midway(make_video: MakeVideo, server: Server, mode: str, what: str) -> None:
    server.body, server.mode = make_video("a.mkv", size=(192, 256)).read_bytes(), mode
    frames, video = watch(server.address, timeout=0.5)
    assert 12 <= len(frames) <= 28 and f"{what}" in str(video.warning)


def test_http_that_breaks_before_the_first_frame(make_video: MakeVideo, server: Server) -> None:
    server.body = make_video(size=(192, 256)).read_bytes()
    for mode, reason in {
        "drop": "not a video that can be read",
        "silent": "no answer for 0.5 s",
        "404": "Server returned 404 Not Found",
        "500": "Server returned 5XX Server Error reply",
    }.items():
        server.mode = mode
        assert refused(server.address, timeout=0.5) == f"{server.address}: {reason}"


@pytest.fixture
def port() -> Iterator[socket.socket]:
    """A socket bound to a port of this machine; it listens only when told to."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield bound


@pytest.mark.parametrize("scheme", ["http", "rtsp"])
def test_nobody_there(port: socket.socket, scheme: str) -> None:
    where = f"127.0.0.1:{port.getsockname()[1]}/x"
    assert refused(f"{scheme}://me:secret@{where}", timeout=2) == f"{scheme}://{where}: Connection refused"


@pytest.mark.parametrize("scheme", ["http", "rtsp"])
def test_nobody_answers(port: socket.socket, scheme: str) -> None:
    port.listen()
    address = f"{scheme}://127.0.0.1:{port.getsockname()[1]}/x"
    assert refused(address, timeout=0.4) == f"{address}: no answer for 0.4 s"


def test_unknown_host() -> None:
    assert refused("http://nowhere.invalid/x", timeout=5) == "http://nowhere.invalid/x: cannot be reached"


# Closing


def test_a_closed_video_is_at_its_end(make_video: MakeVideo) -> None:
    with open_video(make_video()) as video:
        next(video)
    video.close()
    assert list(video) == [] and video.warning is None
    unread = open_video(make_video())
    unread.close()
    assert list(unread) == []


PLAYLIST = "#EXTM3U\n#EXT-X-VERSION:3\n#EXT-X-TARGETDURATION:5\n#EXTINF:1,\n{}\n#EXT-X-ENDLIST\n"


@pytest.mark.parametrize("as_file", [True, False])
def test_what_is_not_trusted_names_no_other_file(make_video: MakeVideo, tmp_path: Path, as_file: bool):
    film = make_video("film.ts", frames=5)
    (tmp_path / "list.m3u8").write_text(PLAYLIST.format(film))
    assert len(list(open_video(tmp_path / "list.m3u8"))) == 5, "FFmpeg by itself follows it"
    given = (tmp_path / "list.m3u8").open("rb") if as_file else tmp_path / "list.m3u8"
    with pytest.raises(VideoError):
        open_video(given, untrusted=True)


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.avi", "a.ts"])
def test_what_is_not_trusted_is_read_otherwise_as_ever(make_video: MakeVideo, name: str):
    film = make_video(name, frames=5)
    mine, theirs = [frame for _, frame in open_video(film, untrusted=True)], [frame for _, frame in open_video(film)]
    assert len(mine) == 5 and all(np.array_equal(a, b) for a, b in zip(mine, theirs, strict=True))
    with film.open("rb") as file:
        assert len(list(open_video(file, untrusted=True))) == 5


def test_what_is_not_trusted_is_not_fetched(server: Server):
    with pytest.raises(VideoError):
        open_video(server.address, untrusted=True)


def test_a_body_that_must_be_read_whole_has_a_bound():
    with pytest.raises(OSError, match="larger than 10 bytes"):
        spooled(io.BytesIO(bytes(11)), 10)
    assert spooled(io.BytesIO(bytes(10)), 10).read() == bytes(10)
