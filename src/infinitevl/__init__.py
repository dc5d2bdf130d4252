"""A vision-language model that watches without end: constant memory and constant time per frame.

model = infinitevl.load("path or hub id")
stream = model.stream(fps=2.0)
for time, frame in infinitevl.open_video("clip.mp4", fps=2.0):
    stream.see(frame, time)
print("".join(stream.ask("What is on the sign?")))
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from infinitevl.errors import InfiniteVLError
    from infinitevl.model.configuration import InfiniteVLConfig
    from infinitevl.model.loading import load, register
    from infinitevl.model.modeling import InfiniteVLForConditionalGeneration
    from infinitevl.model.processing import InfiniteVLProcessor
    from infinitevl.model.state import State
    from infinitevl.streaming.stream import Stream
    from infinitevl.video.sources import open_video

__version__ = "0.1.0"

__all__ = [
    "InfiniteVLConfig",
    "InfiniteVLError",
    "InfiniteVLForConditionalGeneration",
    "InfiniteVLProcessor",
    "State",
    "Stream",
    "load",
    "open_video",
    "register",
]

_HOME = {
    "InfiniteVLConfig": "model.configuration",
    "InfiniteVLError": "errors",
    "InfiniteVLForConditionalGeneration": "model.modeling",
    "InfiniteVLProcessor": "model.processing",
    "State": "model.state",
    "Stream": "streaming.stream",
    "load": "model.loading",
    "open_video": "video.sources",
    "register": "model.loading",
}


def __getattr__(name: str) -> Any:
    """Import what is asked for when it is asked for, so that importing the package stays light."""
    if name not in _HOME:
        raise AttributeError(f"module 'infinitevl' has no attribute {name!r}")
    return getattr(import_module(f"infinitevl.{_HOME[name]}"), name)
