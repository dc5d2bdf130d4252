"""`infinitevl chat`: one question about pictures and videos, given at once."""

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from infinitevl.commands.console import load_model, say, warn
from infinitevl.errors import InfiniteVLError
from infinitevl.model.modeling import InfiniteVLForConditionalGeneration
from infinitevl.streaming.speaking import Speaker
from infinitevl.streaming.text import Sampling, TextPieces, Writer, decode


@dataclass
class ChatOptions:
    question: str
    images: tuple[str, ...]
    videos: tuple[str, ...]
    model: str | None
    device: str | None
    dtype: str | None
    fps: float
    max_pixels: int | None
    max_tokens: int
    temperature: float
    top_p: float
    seed: int | None


def run(options: ChatOptions) -> int:
    if not options.question.strip():
        raise InfiniteVLError("the question is empty")
    sampling = Sampling(options.temperature, options.top_p, options.seed)
    model = load_model(options.model, options.device, options.dtype)
    say(answer(model, options, sampling))
    return 0


@torch.inference_mode()
def _prefill(model: InfiniteVLForConditionalGeneration, options: ChatOptions) -> Any:
    content: list[dict[str, Any]] = [{"type": "image", "image": path} for path in options.images]
    content += [{"type": "video", "video": path} for path in options.videos]
    content.append({"type": "text", "text": options.question})
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        inputs = model.processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=True, return_dict=True,
            fps=options.fps, max_pixels=options.max_pixels,
        )  # fmt: skip
    for warning in caught:
        warn(str(warning.message))
    return model(**inputs.to(model.device), use_cache=True, logits_to_keep=1)


def answer(model: InfiniteVLForConditionalGeneration, options: ChatOptions, sampling: Sampling) -> Iterator[str]:
    """The answer, piece by piece."""
    output = _prefill(model, options)
    pieces = TextPieces(model.processor.tokenizer)
    writer = Writer(sampling, pieces, options.max_tokens, model.end_tokens())
    speaker = Speaker(model, output.past_key_values, [sampling], writer.ends)
    return decode(speaker.first(output.logits[:, -1]), speaker.go_on, writer)
