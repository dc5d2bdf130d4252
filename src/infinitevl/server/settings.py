"""What a server allows: plain values, fixed when it starts."""

import re
from dataclasses import dataclass
from pathlib import Path

from infinitevl.errors import InfiniteVLError

PROTOCOL = 1
KEY = re.compile(r"[A-Za-z0-9_-]{8,128}")


@dataclass(frozen=True)
class Settings:
    """model: its name to clients; folder: where streams, snapshots and uploads lie; keys: who may use it, without any
    everybody on this machine; sources: what may be opened, as `--allow-source` gives it; max_body: bytes of a request
    or of a frame; max_upload: bytes of a video; watches: standing questions of a stream. Times are in seconds."""

    model: str
    folder: Path
    keys: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()
    streams_per_key: int = 64
    questions_per_key: int = 16
    requests_per_key: int = 256  # and connections, at once
    snapshots_per_key: int = 256
    max_body: int = 32 * 2**20
    max_upload: int = 2**30
    max_tokens: int = 4096
    watches: int = 16
    head_timeout: float = 20.0  # of a request
    body_timeout: float = 60.0
    source_timeout: float = 10.0
    source_retry: tuple[float, float] = (1.0, 30.0)  # between two tries: at first, and at most
    heartbeat: float = 15.0

    def __post_init__(self) -> None:
        if any(not KEY.fullmatch(key) for key in self.keys):
            raise InfiniteVLError("an API key has 8 to 128 characters out of A-Z, a-z, 0-9, _ and -")

    @property
    def uploads(self) -> Path:
        return self.folder / "uploads"

    def limits(self) -> dict[str, int]:
        """What `GET /v1/info` tells."""
        names = (
            "streams_per_key", "questions_per_key", "requests_per_key", "snapshots_per_key", "max_body", "max_upload",
            "max_tokens", "watches",
        )  # fmt: skip
        return {name: getattr(self, name) for name in names}
