"""Pictures and arrays as videos, and what every picture must be."""

import math
import re
import time
import warnings
from collections.abc import Iterable, Iterator, Sized
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from infinitevl.errors import FrameError, VideoError
from infinitevl.video.live import Keep, Source, Timed
from infinitevl.video.sampling import Clock

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm"})
MAX_SIDE = 16_384
MAX_PIXELS = 100_000_000


def check_size(width: int, height: int, name: str) -> None:
    """VideoError for a picture larger than any camera's."""
    if max(width, height) > MAX_SIDE or width * height > MAX_PIXELS:
        limit = f"{MAX_SIDE} pixels a side and {MAX_PIXELS // 10**6} megapixels"
        raise VideoError(f"{name}: a frame of {width}x{height} is larger than the limit of {limit}")


def load_picture(path: Path) -> np.ndarray:
    """The picture as uint8 RGB [H, W, 3], upright by its EXIF orientation. VideoError if unreadable."""
    with _readable(str(path)), Image.open(path) as image:
        return _decoded(image, str(path))


def to_array(image: Image.Image) -> np.ndarray:
    """The same for a picture that Pillow has opened, but maybe not decoded."""
    name = getattr(image, "filename", "") or "the picture given"
    with _readable(name):
        return _decoded(image, name)


@contextmanager
def _readable(name: str) -> Iterator[None]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # check_size is the limit
            yield
    except VideoError:
        raise
    except Exception as error:  # a damaged picture makes Pillow raise nearly anything
        raise VideoError(f"{name}: not a picture that can be read ({_line(error)})") from None


def _line(error: Exception) -> str:
    if isinstance(error, Image.UnidentifiedImageError):
        return "unknown format"
    return (str(error).splitlines() or [type(error).__name__])[0]


def _decoded(image: Image.Image, name: str) -> np.ndarray:
    check_size(image.width, image.height, name)
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16"):  # Pillow would clip 16 bits to 8, not scale them
        return as_rgb((np.asarray(image) >> 8).astype(np.uint8), "")
    return np.array(image.convert("RGB"))


def as_rgb(picture: Any, name: str) -> np.ndarray:
    """A uint8 array [H, W], [H, W, 1], [H, W, 3] or [H, W, 4] as RGB [H, W, 3]; FrameError for others.

    Grey is repeated, alpha is dropped, and contiguous RGB is returned as it is, not copied.
    """
    array = np.asarray(picture)
    if array.ndim == 2:
        array = array[..., None]
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] not in (1, 3, 4) or 0 in array.shape:
        raise FrameError(f"{name} is {array.dtype} {list(np.shape(picture))}, not uint8 [H, W, 3]")
    return np.repeat(array, 3, axis=2) if array.shape[2] == 1 else np.ascontiguousarray(array[..., :3])


def natural(path: Path) -> list[Any]:
    """Sort key by which `frame2` comes before `frame10`."""
    return [int(part) if part.isdigit() else part for part in re.split(r"([0-9]+)", path.name.lower())]


class Pictures(Source):
    """Picture files as a video: picture i happens at i / fps seconds; unreadable ones are left out."""

    paced = True

    def __init__(self, paths: list[Path], name: str, fps: float) -> None:
        self.name, self._paths, self._fps = name, paths, fps
        self.frames = len(paths)
        self.duration = len(paths) / fps

    @classmethod
    def folder(cls, path: Path, fps: float) -> "Pictures":
        """The pictures right in a folder in natural order; VideoError if it has none."""
        found = [p for p in path.iterdir() if p.suffix.lower() in SUFFIXES and not p.name.startswith(".")]
        if not found:
            raise VideoError(f"{path}: a folder without pictures")
        return cls(sorted(found, key=natural), str(path), fps)

    def read(self, keep: Keep) -> Iterator[Timed]:
        bad: list[VideoError] = []
        for index, path in enumerate(self._paths):
            at = index / self._fps
            if keep(at):
                try:
                    yield at, load_picture(path)
                except VideoError as error:
                    bad.append(error)
        if len(bad) > 1:
            raise VideoError(f"{bad[0]}, and {len(bad) - 1} more")
        if bad:
            raise bad[0]


class Arrays(Source):
    """Arrays, or (seconds, array) pairs, as a video; the arrays are not copied.

    Without times, array i happens at i / fps seconds, or, if live, when it comes.
    """

    name = "the frames given"

    def __init__(self, items: Iterable[Any], fps: float, live: bool) -> None:
        self._items, self._fps, self.live = items, fps, live
        self.frames = len(items) if isinstance(items, Sized) else None

    def read(self, keep: Keep) -> Iterator[Timed]:
        clock = Clock(1 / self._fps)
        for index, item in enumerate(self._items):
            stamp, array = self._split(item, index)
            at = clock.at(stamp)
            if keep(at):
                yield at, self._checked(array, index)

    def _split(self, item: Any, index: int) -> tuple[float, Any]:
        if not isinstance(item, tuple):
            return time.monotonic() if self.live else index / self._fps, item
        if len(item) != 2 or not isinstance(item[0], (int, float, np.number)) or not math.isfinite(item[0]):
            raise FrameError(f"frame {index} of {self.name} is a tuple, but not (seconds, array)")
        return float(item[0]), item[1]

    def _checked(self, array: Any, index: int) -> np.ndarray:
        picture = as_rgb(array, f"frame {index} of {self.name}")
        check_size(picture.shape[1], picture.shape[0], f"frame {index} of {self.name}")
        return picture
