"""Videos and a server made on the spot."""

from collections.abc import Iterator
from pathlib import Path

import av
import pytest
from video_kit import MakeVideo, Server, scene


@pytest.fixture
def make_video(tmp_path: Path) -> MakeVideo:
    def make(
        name: str = "made.mp4",
        codec: str = "libx264",
        frames: int = 40,
        size: tuple[int, int] = (96, 128),
        pixels: str = "yuv420p",
        rate: int = 20,
        **options: str,
    ) -> Path:
        path = tmp_path / name
        with av.open(str(path), "w", options=options) as box:
            stream = box.add_stream(codec, rate=rate)
            stream.bit_rate = 2_000_000
            stream.height, stream.width, stream.pix_fmt = *size, pixels
            for index in range(frames):
                box.mux(stream.encode(av.VideoFrame.from_ndarray(scene(index, *size), format="rgb24")))
            box.mux(stream.encode(None))
        return path

    return make


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    yield made
    made.close()
