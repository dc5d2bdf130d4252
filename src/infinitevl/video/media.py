"""One picture or video, however it is given, as frames in memory."""

import io
import warnings
from collections.abc import Iterator
from typing import Any
from urllib.request import urlopen

import numpy as np
import torch
from torch import Tensor

from infinitevl.errors import InfiniteVLError, VideoError
from infinitevl.video.pictures import to_array


def load_image(image: Any) -> Tensor:
    """A path, an http(s) or data address, a PIL image or an array to uint8 [H, W, 3]. InfiniteVLError if none."""
    return load_video(image, 1.0)[0][0]


def load_video(video: Any, fps: float) -> tuple[Tensor, float]:
    """Anything `open_video` opens, or uint8 [N, H, W, 3], to frames and their rate."""
    if isinstance(video, dict):
        fps = float(video.get("fps") or fps)
        video = next(
            (video[key] for key in ("video", "image", "image_url", "path", "url") if video.get(key) is not None),
            None,
        )
        video = video.get("url") if isinstance(video, dict) else video
    if video is None:
        raise InfiniteVLError("an image or video part of a message names no image or video")
    if isinstance(video, (Tensor, np.ndarray)):
        return _clip(video), fps
    frames = [frame for _, frame in timed_frames(video, fps)]
    if len({frame.shape for frame in frames}) > 1:
        raise InfiniteVLError(f"the frames of {str(video)[:200]} differ in size: a video here is of one size")
    return torch.stack(frames), fps


def timed_frames(video: Any, fps: float, whole: bool = False) -> Iterator[tuple[float, Tensor]]:
    """Frames uint8 [H, W, 3] and their seconds, one by one, so that a long video need not be held in memory.

    video: what `open_video` opens, a data: address, a PIL image, or uint8 [H, W, 3] or [N, H, W, 3] at rate fps.
    A video that is damaged or cut short gives what it has, then a Python warning; a VideoError where it must be whole.
    """
    if hasattr(video, "convert"):
        video = to_array(video)
    if isinstance(video, (Tensor, np.ndarray)):
        yield from ((i / fps, frame) for i, frame in enumerate(_clip(video)))
        return
    from infinitevl.video.sources import open_video  # needs PyAV, which frames in memory do not

    if isinstance(video, str) and video.startswith("data:"):
        video = _data(video)
    with open_video(video, fps=fps) as opened:
        for time, frame in opened:
            yield time, torch.from_numpy(frame)
        if opened.warning and whole:
            raise VideoError(opened.warning)
        if opened.warning:
            warnings.warn(opened.warning, stacklevel=2)


def _clip(frames: Tensor | np.ndarray) -> Tensor:
    """One picture [H, W, 3] as a video of one frame; views that torch cannot take are copied."""
    array = frames if isinstance(frames, Tensor) else np.require(frames, requirements=["C", "W"])
    clip = torch.as_tensor(array)
    return clip[None] if clip.ndim == 3 else clip


def _data(address: str) -> io.BytesIO:
    """What a data: address holds."""
    try:
        with urlopen(address) as body:
            return io.BytesIO(body.read())
    except (OSError, ValueError) as error:
        raise InfiniteVLError(f"{address[:40]}...: not a data: address that can be read ({error})") from None
