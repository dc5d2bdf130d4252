"""Anything that can be watched, opened as timed frames. The only module that knows PyAV."""

import errno
import sys
import time
from collections.abc import Iterable, Iterator
from http.client import HTTPException
from itertools import chain
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

import av
import av.error
import numpy as np
from av.container import InputContainer
from av.stream import Disposition
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream

from infinitevl.errors import VideoError
from infinitevl.video.bytestreams import HEAD_BYTES, Pipe, downloaded, index_is_last, spooled
from infinitevl.video.live import Keep, Source, Timed, Video
from infinitevl.video.pictures import SUFFIXES, Arrays, Pictures, check_size
from infinitevl.video.sampling import Clock

MAX_BAD_PACKETS = 300  # in a row; a lost key frame can cost a whole group of pictures
TEXT_FORMATS = frozenset({"tty", "bin", "xbin", "adf", "idf"})  # FFmpeg draws text files as video
READ_ERRORS = (av.FFmpegError, OSError)
# Formats that name no other file or address: playlists, sdp and concat scripts are not among them.
PLAIN_FORMATS = (
    "mov", "matroska", "webm", "avi", "mpegts", "mpeg", "mpegvideo", "flv", "live_flv", "ogg", "asf", "gif", "apng",
    "h264", "hevc", "av1", "obu", "ivf", "m4v", "mjpeg", "mpjpeg", "nut", "mxf", "wtv", "dv", "jpeg_pipe", "png_pipe",
    "webp_pipe", "bmp_pipe", "rtsp",
)  # fmt: skip
UNTRUSTED = {"format_whitelist": ",".join(PLAIN_FORMATS), "protocol_whitelist": "file,rtsp,rtp,tcp"}
SPOOLED_BYTES = 4 * 2**30  # of a body that must be read whole, where it is not trusted


def open_video(
    source: str | Path | IO[bytes] | np.ndarray | Iterable[Any],
    *,
    fps: float | None = None,
    live: bool | None = None,
    queue: int = 2,
    timeout: float = 10.0,
    untrusted: bool = False,
) -> Video:
    """Opens a video; VideoError, in one line, if it cannot be opened.

    `source` is the path of a video, of a picture (a video of one frame) or of a folder of pictures in natural
    order; an http(s):// or rtsp(s):// address; "-" for standard input, or a binary file object; an array
    [N, H, W, 3], or an iterable of uint8 arrays [H, W, 3] or of (seconds, array) pairs, arrays also grey or
    RGBA; a single array [H, W(, C)] is one frame.

    `fps` keeps a frame for every 1/fps seconds; None keeps all. Pictures of a folder and arrays without times
    have no rate of their own: they are taken to be 1/fps seconds apart, and 1 second where fps is None.

    `live` reads in a thread from now on, lets at most `queue` frames wait, and drops the oldest for the
    newest: the default for rtsp alone. A path played live runs at its real-time speed, which makes a camera
    of a file. Nothing else ever drops a frame.

    `timeout` is how many seconds an address or a live source may give nothing before it is an error.

    `untrusted` is for what a stranger wrote: nothing but the source itself is opened, so no playlists, and no http
    address (fetch it, and give the file object).
    """
    try:
        opened = _open(source, fps, bool(live), timeout, untrusted)
    except (OSError, ValueError) as error:  # of the file system, the file object or the address
        raise VideoError(f"{str(source)[:200]}: {_line(error)}") from None
    return Video(opened, fps, opened.live if live is None else live, queue, timeout)


def _open(source: Any, fps: float | None, live: bool, timeout: float, untrusted: bool) -> Source:
    rate = fps or 1.0
    if getattr(source, "ndim", 4) < 4:
        return Arrays([source], rate, live)
    if isinstance(source, str) and source == "-":
        return _open_file(sys.stdin.buffer, "standard input", timeout, untrusted)
    if isinstance(source, str) and "://" in source:
        return _open_address(source, timeout, untrusted)
    if isinstance(source, (str, Path)):
        return _open_path(Path(source), rate, timeout, untrusted)
    if hasattr(source, "read"):
        return _open_file(source, str(getattr(source, "name", "the stream")), timeout, untrusted)
    if isinstance(source, Iterable):
        return Arrays(source, rate, live)
    raise VideoError(f"{source!r} is not a video: give a path, an address, '-', a file object or arrays")


def _open_address(address: str, timeout: float, untrusted: bool) -> Source:
    parts = urlsplit(address)
    name = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()  # without a password
    if parts.scheme not in ("http", "https", "rtsp", "rtsps"):
        raise VideoError(f"{name}: not an http, https or rtsp address")
    return Container(address, name, timeout, untrusted=untrusted)


def _open_path(path: Path, rate: float, timeout: float, untrusted: bool) -> Source:
    if path.is_dir():
        return Pictures.folder(path, rate)
    if not path.exists():
        raise VideoError(f"{path}: no such file")
    if path.suffix.lower() in SUFFIXES:
        return Pictures([path], str(path), rate)
    if not path.is_file():  # a named pipe or a device: not looked into before FFmpeg reads it
        return Container(f"file:{path}", str(path), timeout, untrusted=untrusted)
    with path.open("rb") as file:
        head = file.read(HEAD_BYTES)
    return Container(f"file:{path}", str(path), timeout, head=head, paced=True, untrusted=untrusted)


def _open_file(file: IO[bytes], name: str, timeout: float, untrusted: bool) -> Source:
    if file.seekable():
        start = file.tell()
        head = file.read(HEAD_BYTES)
        file.seek(start)
        return Container(file, name, timeout, head=head, untrusted=untrusted)
    pipe = Pipe(file)
    if index_is_last(pipe.head):
        whole = spooled(pipe, SPOOLED_BYTES if untrusted else None)
        return Container(whole, name, timeout, head=pipe.head, untrusted=untrusted)
    return Container(pipe, name, timeout, head=pipe.head, untrusted=untrusted)


class Container(Source):
    """The first video stream of anything FFmpeg reads. VideoError if there is none.

    `head` is the first bytes where they are at hand, for a better word on what is wrong. An address is given
    up when it sends nothing for `timeout` seconds.
    """

    def __init__(
        self,
        file: Any,
        name: str,
        timeout: float,
        *,
        head: bytes | None = None,
        paced: bool = False,
        untrusted: bool = False,
    ) -> None:
        if head == b"":
            raise VideoError(f"{name}: empty")
        self.name, self.paced, self._timeout, self._untrusted = name, paced, timeout, untrusted
        self._address = isinstance(file, str) and "://" in file
        self.live = self._address and file.startswith("rtsp")
        self._start(file, head)
        if self._address and "mov" in self._container.format.name and self._needs_seeking():
            self._start(self._download(file), None)
        self._describe()
        self._reformatter = VideoReformatter()  # one for all frames: each would make its own, 5 times slower
        self._packets = self._bad = self._bad_in_a_row = self._blurred = 0
        self._end = 0.0

    def read(self, keep: Keep) -> Iterator[Timed]:
        clock = Clock(self._step)
        for frame in self._decoded():
            at = clock.at(frame.time)
            self._end = at + max(self._step, frame.duration * self.tick)
            self._blurred += frame.is_corrupt
            if keep(at):
                yield at, self._rgb(frame)

    def close(self) -> None:
        self._container.close()

    def _start(self, file: Any, head: bytes | None) -> None:
        """Opens `file` and finds its video."""
        began = time.monotonic()
        try:
            self._container = self._opened(file)
        except READ_ERRORS as error:
            late = self._address and time.monotonic() - began >= self._timeout
            raise VideoError(f"{self.name}: {self._why_not(error, late, head)}") from None
        try:
            self._stream = self._video_stream()
        except VideoError:
            self._container.close()
            raise
        self._demux: Iterator[av.Packet] = self._container.demux(self._stream)

    def _opened(self, file: Any) -> InputContainer:
        options = {"rtsp_transport": "tcp"} if self.live else {}
        options |= UNTRUSTED if self._untrusted else {}
        times = (self._timeout, self._timeout)
        opened = av.open(file, "r", options=options, metadata_errors="replace", timeout=times)
        assert isinstance(opened, InputContainer)
        return opened

    def _why_not(self, error: Exception, late: bool, head: bytes | None) -> str:
        if late or isinstance(error, av.error.ExitError):
            return f"no answer for {self._timeout:g} s"
        if head is not None and index_is_last(head):
            return "cannot be read: it looks truncated, its index (the moov box at the end) is missing"
        if isinstance(error, av.error.InvalidDataError):
            return "not a video that can be read"
        if self._address and error.args[0] == errno.EIO:
            return "cannot be reached"
        return _line(error)

    def _video_stream(self) -> VideoStream:
        streams = [s for s in self._container.streams.video if not s.disposition & Disposition.attached_pic]
        if self._container.format.name in TEXT_FORMATS:
            raise VideoError(f"{self.name}: a text file, not a video")
        if not streams:
            raise VideoError(f"{self.name}: no video in it")
        check_size(streams[0].width, streams[0].height, self.name)
        streams[0].thread_type = "AUTO"
        return streams[0]

    def _needs_seeking(self) -> bool:
        """Whether the server cannot give the part of an mp4 that comes before its index. Fetches a packet."""
        try:
            first = next(self._demux, None)
        except av.error.ExitError:
            raise VideoError(f"{self.name}: no data for {self._timeout:g} s") from None
        except READ_ERRORS:
            return True
        self._demux = chain([] if first is None else [first], self._demux)
        return False

    def _download(self, address: str) -> IO[bytes]:
        self._container.close()
        try:
            return downloaded(address, self._timeout)
        except (OSError, HTTPException) as error:
            raise VideoError(f"{self.name}: {_line(error)}") from None

    def _describe(self) -> None:
        """What the container says of its length; `_promised` seconds only where FFmpeg did not guess."""
        stream, box = self._stream, self._container
        self.frames = stream.frames or None
        self.duration = _duration(stream) or (box.duration / av.time_base if box.duration else None)
        self.tick = float(stream.time_base or 0)
        self._step = 1 / float(stream.average_rate or stream.guessed_rate or 25)
        own = "DURATION" in stream.metadata or len(box.streams) == 1
        written = "mov" in box.format.name or (own and box.format.name in ("matroska,webm", "flv"))
        self._promised = self.duration if written else (self.frames or 0) * self._step

    def _decoded(self) -> Iterator[av.VideoFrame]:
        """Every frame that decodes; then VideoError if anything was missing or damaged."""
        broke = None
        try:
            for packet in self._demux:
                yield from self._decode(packet)
        except READ_ERRORS as error:
            broke = self._why_broken(error)
        if broke:  # what the decoder still holds: the demuxer flushes it only at a good end
            yield from self._decode(None)
        missing = broke or self._cut_short()
        if problems := [*filter(None, [missing]), *self._damage()]:
            raise VideoError(f"{self.name}: {', '.join(problems)}")

    def _decode(self, packet: av.Packet | None) -> list[av.VideoFrame]:
        """The frames that come out for a packet, none for a damaged one; None drains the decoder."""
        if packet is None or not packet.is_corrupt:
            try:
                frames = self._stream.decode(packet)
                self._packets += packet is not None and packet.size > 0
                self._bad_in_a_row = 0
                return frames
            except av.FFmpegError:
                pass
        self._bad += 1
        self._bad_in_a_row += 1
        if self._bad_in_a_row > MAX_BAD_PACKETS:
            raise VideoError(f"{self.name}: {MAX_BAD_PACKETS} packets in a row are damaged")
        return []

    def _why_broken(self, error: Exception) -> str:
        if isinstance(error, av.error.ExitError):
            return f"no data for {self._timeout:g} s"
        what = "the connection broke" if self._address else "reading failed"
        return f"{what} ({_line(error)})"

    def _damage(self) -> Iterator[str]:
        if self._bad:
            yield f"{self._bad} damaged packet{'s' * (self._bad > 1)} left out"
        if self._blurred:
            yield f"{self._blurred} frame{'s' * (self._blurred > 1)} partly damaged"

    def _cut_short(self) -> str | None:
        """What is missing at the end, if clearly less came than every promise of the container."""
        few = self.frames is None or self._packets + self._bad < self.frames - max(1, self.frames // 100)
        if few and self._promised and self._end < self._promised - max(0.1, 3 * self._step):
            return f"cut short: {self._end:.2f} of {self._promised:.2f} s"
        return None

    def _rgb(self, frame: av.VideoFrame) -> np.ndarray:
        check_size(frame.width, frame.height, self.name)
        picture = self._reformatter.reformat(frame, format="rgb24").to_ndarray()
        turns = round(frame.rotation / 90) % 4  # counterclockwise, both in FFmpeg and in NumPy
        return np.ascontiguousarray(np.rot90(picture, turns))


def _duration(stream: VideoStream) -> float | None:
    """Seconds by the stream's own word, which Matroska writes as a tag."""
    if stream.duration and stream.time_base:
        return float(stream.duration * stream.time_base)
    hours, _, rest = stream.metadata.get("DURATION", "").partition(":")
    minutes, _, seconds = rest.partition(":")
    try:
        return int(hours) * 3600 + int(minutes) * 60 + float(seconds)
    except ValueError:
        return None


def _line(error: Exception) -> str:
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return text.splitlines()[0]
