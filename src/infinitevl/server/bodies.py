"""What is sent and answered, as OpenAPI describes it."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from infinitevl.engine.types import Asking, MemoryNorms
from infinitevl.video.pictures import MAX_PIXELS

NAME = r"^[A-Za-z0-9_-]{1,64}$"
SnapshotName = Annotated[str, Field(pattern=NAME)]
Seconds = Annotated[float, Field(allow_inf_nan=False)]


class Given(BaseModel):
    """What a client sends: nothing that is not known."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class SourceGiven(Given):
    url: str = Field(min_length=1, max_length=2000, examples=["rtsp://camera.example/1"])
    realtime: bool = True


class StreamGiven(Given):
    name: str | None = Field(None, max_length=100)
    fps: float | None = Field(2.0, gt=0, le=1000)
    max_pixels: int | None = Field(None, ge=784, le=MAX_PIXELS)
    source: SourceGiven | None = None
    snapshot: SnapshotName | None = None


class ForkGiven(Given):
    name: str | None = Field(None, max_length=100)


class SnapshotGiven(Given):
    name: SnapshotName


class WatchGiven(Given):
    question: str = Field(min_length=1, max_length=100_000, pattern=r"\S")
    every: float = Field(10.0, ge=0.1, le=1e9)
    max_tokens: int = Field(32, ge=1)


class QuestionGiven(Given):
    question: str = Field(min_length=1, max_length=100_000, pattern=r"\S")
    stream: bool = False
    remember: bool = False
    max_tokens: int = Field(128, ge=1)
    temperature: float = Field(0.0, ge=0, le=100)
    top_p: float = Field(1.0, gt=0, le=1)
    stop: list[Annotated[str, Field(min_length=1, max_length=1000)]] = Field(default_factory=list, max_length=16)
    seed: int | None = Field(None, ge=0, lt=2**63)

    def asking(self) -> Asking:
        return Asking(
            self.max_tokens, self.temperature, self.top_p, tuple(self.stop), self.seed, self.remember
        )  # fmt: skip


class FrameMessage(Given):
    """Before a binary message of a WebSocket: what it is."""

    type: Literal["frame"]
    time: float | None = None
    format: Literal["rgb24"] | None = None
    width: int | None = Field(None, ge=1)
    height: int | None = Field(None, ge=1)


class AskMessage(QuestionGiven):
    type: Literal["ask"]
    id: str = Field(max_length=100)


class CancelMessage(Given):
    type: Literal["cancel"]
    id: str = Field(max_length=100)


class SourceTold(BaseModel):
    url: str
    realtime: bool
    status: Literal["connecting", "playing", "retrying", "ended", "failed"]
    error: str | None


class StatsTold(BaseModel):
    frames: int
    tokens: int
    dropped: int
    waiting: int
    seconds: float
    fps: float
    lag_ms: float
    state_bytes: int


class SavedTold(BaseModel):
    frames: int
    at: float


class StreamTold(BaseModel):
    id: str
    object: Literal["stream"]
    name: str | None
    created: int
    fps: float | None
    max_pixels: int
    place: Literal["slot", "host", "disk"]
    source: SourceTold | None
    stats: StatsTold
    saved: SavedTold | None


class StreamList(BaseModel):
    object: Literal["list"] = "list"
    data: list[StreamTold]


class Acknowledgement(BaseModel):
    type: Literal["frame"] = "frame"
    number: int
    result: Literal["seen", "skipped", "dropped", "refused"]
    time: float | None
    lag_ms: float
    message: str | None = None


class Usage(BaseModel):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class AnswerTold(BaseModel):
    id: str
    object: Literal["answer"]
    stream: str
    question: str
    answer: str
    created: int
    time: float | None
    frames: int
    finish_reason: Literal["stop", "length", "cancelled", "error"]
    error: str | None
    usage: Usage
    first_token_ms: float | None
    ms: float


class AnswerList(BaseModel):
    object: Literal["list"] = "list"
    data: list[AnswerTold]


class WatchTold(BaseModel):
    id: str
    question: str
    every: float
    max_tokens: int
    answer: str | None
    time: float | None
    asked: int
    changed: int


class WatchList(BaseModel):
    object: Literal["list"] = "list"
    data: list[WatchTold]


class MemoryTold(BaseModel):
    layers: list[int]
    times: list[float]
    norms: list[list[float]]

    @classmethod
    def of(cls, norms: MemoryNorms) -> "MemoryTold":
        return cls(layers=norms.layers, times=norms.times, norms=norms.norms)


class SnapshotTold(BaseModel):
    object: Literal["snapshot"] = "snapshot"
    name: str
    stream: str | None
    frames: int
    bytes: int
    created: int


class SnapshotList(BaseModel):
    object: Literal["list"] = "list"
    data: list[SnapshotTold]


class Health(BaseModel):
    status: Literal["ok", "stopping"]
    model: str
    streams: int


class Info(BaseModel):
    protocol: int
    version: str
    model: str
    limits: dict[str, Any]
