"""OpenAI's bodies, as far as the model can do what they ask. What it cannot do is refused, not ignored."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from infinitevl.engine.types import Asking
from infinitevl.server.bodies import Given, Usage

# Values that ask for nothing; all others are refused. None is always one.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "n": (1,), "tools": ([],), "tool_choice": ("none", "auto"), "functions": ([],), "function_call": ("none", "auto"),
    "parallel_tool_calls": (True, False), "logprobs": (False,), "top_logprobs": (0,), "logit_bias": ({},),
    "response_format": ({"type": "text"},), "frequency_penalty": (0,), "presence_penalty": (0,),
    "repetition_penalty": (1,), "modalities": (["text"],), "service_tier": ("auto", "default"), "store": (False,),
    "best_of": (1,), "echo": (False,), "top_k": (-1, 0), "min_p": (0,),
}  # fmt: skip
LABELS = ("user", "metadata", "safety_identifier", "prompt_cache_key")  # about the client, not the answer
ANSWER = 1024  # tokens, where nothing is said


class Address(Given):
    url: str = Field(min_length=1)
    detail: Literal["auto", "low", "high"] | None = None


class VideoAddress(Given):
    url: str = Field(min_length=1)


class TextPart(Given):
    type: Literal["text"]
    text: str


class ImagePart(Given):
    type: Literal["image_url"]
    image_url: Address


class VideoPart(Given):
    type: Literal["video_url"]
    video_url: VideoAddress


Part = Annotated[TextPart | ImagePart | VideoPart, Field(discriminator="type")]


class MessageGiven(BaseModel):
    model_config = ConfigDict(extra="forbid")

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[Part]
    name: str | None = None


class StreamOptions(BaseModel):
    include_usage: bool = False


class ChatGiven(BaseModel):
    model_config = ConfigDict(extra="allow", allow_inf_nan=False)

    model: str
    messages: list[MessageGiven] = Field(min_length=1, max_length=1000)
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=100)
    top_p: float | None = Field(None, gt=0, le=1)
    stop: str | list[str] | None = None
    seed: int | None = Field(None, ge=0, lt=2**63)
    stream: bool | None = False
    stream_options: StreamOptions | None = None

    @model_validator(mode="after")
    def _nothing_is_ignored(self) -> "ChatGiven":
        for name, value in (self.model_extra or {}).items():
            neutral = name in LABELS or value is None or any(_same(value, each) for each in NEUTRAL.get(name, ()))
            if not neutral:
                raise ValueError(f"{name[:40]} is not something that this server can do")
        return self

    @property
    def limit(self) -> int:
        return self.max_completion_tokens or self.max_tokens or ANSWER

    def asking(self) -> Asking:
        stop = [self.stop] if isinstance(self.stop, str) else self.stop or []
        top_p = 1.0 if self.top_p is None else self.top_p
        return Asking(self.limit, self.temperature or 0.0, top_p, tuple(stop), self.seed)


def _same(value: Any, neutral: Any) -> bool:
    return value == neutral and isinstance(value, bool) == isinstance(neutral, bool)


class ChatMessage(BaseModel):
    role: Literal["assistant"]
    content: str


class Choice(BaseModel):
    index: int
    message: ChatMessage
    finish_reason: Literal["stop", "length"]
    logprobs: None = None


class ChatTold(BaseModel):
    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[Choice]
    usage: Usage


class Model(BaseModel):
    id: str
    object: Literal["model"]
    created: int
    owned_by: str


class ModelList(BaseModel):
    object: Literal["list"]
    data: list[Model]
