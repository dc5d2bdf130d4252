"""A prompt, put into a state piece by piece, so that no prompt keeps the streams waiting."""

from collections import deque
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import BatchFeature

from infinitevl.errors import InfiniteVLError, TooLarge
from infinitevl.model.modeling import InfiniteVLForConditionalGeneration
from infinitevl.model.positions import as_grid
from infinitevl.model.processing import InfiniteVLProcessor
from infinitevl.streaming.session import MAX_PIXELS
from infinitevl.video.media import timed_frames
from infinitevl.video.resize import resize

FPS = 2.0  # at which videos of a conversation are sampled


@dataclass
class Piece:
    """Some tokens of a prompt: embeddings [T, hidden], positions [3, T] counted from where the state is (of text) or
    from the beginning (of a conversation), and which are of pictures [T]."""

    embeds: Tensor
    positions: Tensor
    vision: Tensor


class TextPrompt:
    """A question about a stream: text that goes on where the state is."""

    def __init__(self, ids: list[int], most: int) -> None:
        """Raises TooLarge for more than `most` tokens."""
        self.length = _checked(len(ids), most)
        self._ids = torch.tensor(ids, dtype=torch.int64)

    def piece(self, model: InfiniteVLForConditionalGeneration, start: int, stop: int, position: Tensor) -> Piece:
        """The tokens start..stop. position: [] of the state's next text token."""
        ids = self._ids[start:stop].to(model.device)
        places = (position + torch.arange(len(ids), device=model.device)).expand(3, -1)
        return Piece(model.get_input_embeddings()(ids), places, torch.zeros_like(ids, dtype=torch.bool))


class MediaPrompt:
    """A conversation with pictures and videos, for an empty state. Pictures are encoded when their turn comes."""

    def __init__(self, model: InfiniteVLForConditionalGeneration, inputs: BatchFeature) -> None:
        """inputs: of one conversation, as the processor makes them."""
        grids = inputs.get("image_grid_thw"), inputs.get("video_grid_thw")
        self._ids = inputs["input_ids"]
        self.length = self._ids.shape[1]
        self._positions = model.get_rope_index(self._ids, *grids, inputs.get("second_per_grid_ts"))[0][:, 0]
        self._frames = {
            model.config.image_token_id: _frames(inputs.get("pixel_values"), grids[0]),
            model.config.video_token_id: _frames(inputs.get("pixel_values_videos"), grids[1]),
        }
        self._features = {token: torch.empty(0, model.config.text_config.hidden_size) for token in self._frames}

    def piece(self, model: InfiniteVLForConditionalGeneration, start: int, stop: int, position: Tensor) -> Piece:
        """The tokens start..stop, in order and each once."""
        ids = self._ids[0, start:stop].to(model.device)
        embeds, vision = model.get_input_embeddings()(ids), torch.zeros_like(ids, dtype=torch.bool)
        for token in self._frames:
            if needed := int((where := ids == token).sum()):
                features = self._encoded(model, token, needed)
                embeds = embeds.masked_scatter(where[:, None], features.to(embeds.dtype))
                vision |= where
        return Piece(embeds, self._positions[:, start:stop].to(model.device), vision)

    def _encoded(self, model: InfiniteVLForConditionalGeneration, token: int, needed: int) -> Tensor:
        """The next `needed` tokens of pictures of a kind."""
        ready = [self._features[token].to(model.device, model.dtype)]
        while sum(map(len, ready)) < needed:
            patches, size = self._frames[token].popleft()
            ready.append(model.encode(patches, ((1, *size),)))
        features = torch.cat(ready)
        self._features[token] = features[needed:]
        return features[:needed]


def decoded(processor: InfiniteVLProcessor, messages: list[dict[str, Any]], most: int) -> list[dict[str, Any]]:
    """Messages as `apply_chat_template` takes them, with their videos decoded. Raises TooLarge above `most` tokens,
    before all of a video is decoded, and InfiniteVLError. Needs no tokenizer."""
    return [{**message, "content": _sized(processor, message.get("content"), most)} for message in messages]


def conversation(processor: InfiniteVLProcessor, messages: list[dict[str, Any]], most: int) -> BatchFeature:
    """The model's inputs for messages of `decoded`. Raises TooLarge above `most` tokens, and InfiniteVLError."""
    inputs = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=True, return_dict=True)
    _checked(inputs["input_ids"].shape[1], most)
    return inputs


def _sized(processor: InfiniteVLProcessor, content: Any, most: int) -> Any:
    """A message's content with its videos decoded, each to the size that the model takes."""
    if not isinstance(content, list):
        return content
    return [_watched(processor, part, most) if part.get("type") == "video" else part for part in content]


def _watched(processor: InfiniteVLProcessor, part: dict[str, Any], most: int) -> dict[str, Any]:
    fps, settings, frames, tokens = float(part.get("fps") or FPS), processor.settings, [], 0.0
    for _, frame in timed_frames(part["video"], fps):
        bounds = {"min_pixels": settings.min_pixels, "max_pixels": min(settings.max_pixels, MAX_PIXELS)}
        frames.append(resize(frame[None], **bounds)[0])
        tokens += frames[-1].numel() / (3 * 28 * 28 * settings.temporal_patch_size)
        _checked(int(tokens), most)
    if len({frame.shape for frame in frames}) > 1:
        raise InfiniteVLError("the frames of a video differ in size")
    return {"type": "video", "video": torch.stack(frames), "fps": fps}


def _checked(tokens: int, most: int) -> int:
    if tokens > most:
        raise TooLarge(f"the prompt has {tokens} tokens or more; at most {most} are taken")
    return tokens


def _frames(patches: Tensor | None, grid: Tensor | None) -> deque[tuple[Tensor, tuple[int, int]]]:
    """Patches and size (height, width) of each temporal step, which the vision tower encodes independently."""
    if patches is None:
        return deque()
    sizes = [(h, w) for t, h, w in as_grid(grid) for _ in range(t)]
    return deque(zip(patches.split([h * w for h, w in sizes]), sizes, strict=True))
