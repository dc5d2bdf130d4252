"""A conversation about pictures and videos, whatever file it came from."""

from dataclasses import dataclass, field
from typing import Any

from infinitevl.errors import InfiniteVLError

IMAGE_MARK, VIDEO_MARK = "<image>", "<video>"


class BadSample(InfiniteVLError):
    """A sample that cannot be used; the line says which and why."""


@dataclass
class Sample:
    """messages: {"role": "system" | "user" | "assistant", "content": text with <image> and <video> marks}.

    images, videos: one per mark, in order: paths, addresses, PIL images or uint8 arrays ([H, W, 3], [N, H, W, 3]).
    fps: rate of videos given as arrays, and at which files are sampled. name: where it came from, for messages.
    """

    messages: list[dict[str, str]]
    images: list[Any] = field(default_factory=list)
    videos: list[Any] = field(default_factory=list)
    fps: float = 2.0
    name: str = ""

    def check(self) -> "Sample":
        """Itself. BadSample where there is nothing to learn, or marks and media do not match."""
        if not any(message["role"] == "assistant" and message["content"].strip() for message in self.messages):
            raise BadSample(f"{self.name}: no answer of the assistant to learn from")
        for mark, media in ((IMAGE_MARK, self.images), (VIDEO_MARK, self.videos)):
            marks = sum(message["content"].count(mark) for message in self.messages)
            if marks != len(media):
                raise BadSample(f"{self.name}: {marks} {mark} marks for {len(media)} files")
        return self
