"""Pictures that clients send, and the one they get back. Everything here takes a thread's time."""

import io

import numpy as np
from PIL import Image

from infinitevl.errors import FrameError
from infinitevl.video.pictures import check_size, to_array

FORMATS = ("JPEG", "PNG", "WEBP")
QUALITY = 85


def picture(data: bytes) -> np.ndarray:
    """A JPEG, PNG or WebP as uint8 RGB [H, W, 3]. VideoError where it cannot be read, or is larger than a camera's."""
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError:
        raise FrameError("the picture given: larger than the limit") from None
    except Exception:  # a damaged header makes Pillow raise nearly anything
        raise FrameError("not a JPEG, PNG or WebP picture") from None
    return to_array(image)


def raw(data: bytes, width: int, height: int) -> np.ndarray:
    """Rows of RGB pixels as uint8 [H, W, 3]. VideoError where the size is another."""
    check_size(width, height, "the frame")
    if len(data) != width * height * 3:
        raise FrameError(f"a frame of {width}x{height} rgb24 has {width * height * 3} bytes, not {len(data)}")
    return np.frombuffer(data, np.uint8).reshape(height, width, 3)


def jpeg(frame: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(frame).save(file, "JPEG", quality=QUALITY)
    return file.getvalue()
