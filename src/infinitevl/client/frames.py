"""Frames on their way to a server."""

import io
import json
from typing import Any

import numpy as np
from PIL import Image

from infinitevl.video.pictures import as_rgb

Frame = np.ndarray | bytes
"""uint8 RGB [H, W, 3] (grey and RGBA too), or a JPEG, PNG or WebP file."""

QUALITY = 90


def picture(frame: Frame) -> bytes:
    """The bytes of a file of it. FrameError for what is no frame."""
    if isinstance(frame, bytes):
        return frame
    file = io.BytesIO()
    Image.fromarray(as_rgb(frame, "the frame")).save(file, "JPEG", quality=QUALITY)
    return file.getvalue()


def messages(frame: Frame, time: float | None, raw: bool) -> list[str | bytes]:
    """What is sent for a frame on a live connection. raw: arrays go as they are, not as JPEG. FrameError."""
    about: dict[str, Any] = {} if time is None else {"time": float(time)}
    if raw and not isinstance(frame, bytes):
        pixels = as_rgb(frame, "the frame")
        about |= {"format": "rgb24", "width": pixels.shape[1], "height": pixels.shape[0]}
        data = pixels.tobytes()
    else:
        data = picture(frame)
    return [json.dumps({"type": "frame"} | about), data] if about else [data]
