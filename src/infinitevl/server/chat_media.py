"""The pictures and videos of a conversation, decoded before the engine sees them. Takes a thread's time."""

import base64
import binascii
import io
from collections.abc import Sequence
from typing import Any
from urllib.parse import unquote_to_bytes

import numpy as np

from infinitevl.errors import InfiniteVLError, TooLarge, VideoError
from infinitevl.server.allowed import Allowed
from infinitevl.server.chat_bodies import ImagePart, MessageGiven, TextPart, VideoPart
from infinitevl.server.frames import picture
from infinitevl.video.live import Video
from infinitevl.video.sources import open_video

FPS = 2.0
MOST_BYTES = 2**30  # of all pictures and frames of a conversation, decoded


def conversation(messages: Sequence[MessageGiven], allowed: Allowed, timeout: float) -> list[dict[str, Any]]:
    """Messages as `apply_chat_template` takes them. Raises InfiniteVLError for what cannot be read."""
    media = Media(allowed, timeout)
    return [{"role": _role(message), "content": media.content(message)} for message in messages]


def _role(message: MessageGiven) -> str:
    return "system" if message.role == "developer" else message.role


class Media:
    """Decodes the parts of one conversation, and counts what they take."""

    def __init__(self, allowed: Allowed, timeout: float) -> None:
        self._allowed, self._timeout, self._left = allowed, timeout, MOST_BYTES

    def content(self, message: MessageGiven) -> str | list[dict[str, Any]]:
        if isinstance(message.content, str):
            return message.content
        return [self._part(part) for part in message.content]

    def _part(self, part: TextPart | ImagePart | VideoPart) -> dict[str, Any]:
        if isinstance(part, TextPart):
            return {"type": "text", "text": part.text}
        if isinstance(part, ImagePart):
            return {"type": "image", "image": self._image(part.image_url.url)}
        return {"type": "video", "video": self._video(part.video_url.url), "fps": FPS}

    def _image(self, url: str) -> np.ndarray:
        if url.startswith("data:"):
            return self._counted(picture(_data(url)))
        with self._allowed.opened(url, fps=None, timeout=self._timeout) as opened:
            return self._counted(next(iter(opened.video))[1])

    def _video(self, url: str) -> np.ndarray:
        if not url.startswith("data:"):
            with self._allowed.opened(url, fps=FPS, timeout=self._timeout) as opened:
                if opened.live:
                    raise InfiniteVLError("a video that never ends: make it the source of a stream")
                return self._frames(opened.video)
        with open_video(io.BytesIO(_data(url)), fps=FPS, untrusted=True) as video:
            return self._frames(video)

    def _frames(self, video: Video) -> np.ndarray:
        frames = [self._counted(frame) for _, frame in video]
        if video.warning:
            raise VideoError(video.warning)
        if len({frame.shape for frame in frames}) > 1:
            raise InfiniteVLError("the frames of a video are of one size")
        return np.stack(frames)

    def _counted(self, frame: np.ndarray) -> np.ndarray:
        self._left -= frame.nbytes
        if self._left < 0:
            raise TooLarge(f"the pictures and videos have more than {MOST_BYTES // 2**20} MiB when they are decoded")
        return frame


def _data(url: str) -> bytes:
    """What a data: address holds."""
    head, _, data = url.partition(",")
    try:
        return base64.b64decode(data, validate=True) if head.endswith(";base64") else unquote_to_bytes(data)
    except (binascii.Error, ValueError):
        raise InfiniteVLError("a data: address whose base64 cannot be read") from None
