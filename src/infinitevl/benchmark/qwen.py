"""transformers' Qwen2.5-VL of the same sizes, with a cache that grows: what streaming costs without a fixed state."""

from collections.abc import Sequence
from itertools import cycle
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache, Qwen2_5_VLForConditionalGeneration

from infinitevl.benchmark.measure import Tell
from infinitevl.benchmark.work import Costs, as_full_attention
from infinitevl.errors import InfiniteVLError
from infinitevl.machine import free_bytes
from infinitevl.model.modeling import InfiniteVLForConditionalGeneration
from infinitevl.model.positions import grid_positions
from infinitevl.train.qwen import qwen_config

NAME = "qwen2.5-vl"
MIB, BLOCK = 2**20, 4096


class QwenSubject:
    """Random weights of the sizes of `model`. A context is a cache of random keys and values of that length."""

    def __init__(
        self, model: InfiniteVLForConditionalGeneration, frames: Sequence[np.ndarray], question_tokens: int
    ) -> None:
        self.name, self.device = NAME, model.device
        self.backend: str | None = None
        self.costs = Costs(as_full_attention(model.config), model.dtype)
        self.processor, self.question_tokens = model.processor, question_tokens
        _check_room(self.costs.weight_bytes, "Qwen2.5-VL's weights", self.device)
        config = _config(model)
        with torch.device(self.device):
            self.model = Qwen2_5_VLForConditionalGeneration._from_config(config, dtype=model.dtype).eval()
        self.side, self.frames = frames[0].shape[0], cycle(frames)
        self.grid = (self.side // model.config.vision_config.patch_size,) * 2
        self.merge = model.config.vision_config.spatial_merge_size
        self.cache, self.context = DynamicCache(), 0

    @property
    def streamed(self) -> int:
        return 0

    @property
    def nbytes(self) -> int:
        return self.costs.state_bytes(self.context)

    def go_to(self, context: int, tell: Tell) -> str | None:
        tokens = self.grid[0] * self.grid[1] // self.merge**2
        context = max(context, tokens)
        if missing := self._no_room(context + 2 * tokens):
            return missing
        text, weight = self.costs.config.text_config, self.model.lm_head.weight
        for layer in range(text.num_hidden_layers):
            shape = (2, 1, text.num_key_value_heads, min(context, BLOCK), text.head_dim)
            block = torch.randn(shape, dtype=weight.dtype, device=weight.device)
            keys, values = block.repeat(1, 1, 1, -(-context // BLOCK), 1)[..., :context, :]
            self.cache.update(keys, values, layer)
        self.context = context
        return None

    def _no_room(self, context: int) -> str | None:
        """Besides the cache, a layer makes its own anew when it grows, and repeats it for its query heads."""
        text, free = self.costs.config.text_config, free_bytes(self.device)
        cache = self.costs.state_bytes(context)
        repeated = text.num_attention_heads // text.num_key_value_heads
        needed = cache + cache // text.num_hidden_layers * (3 + 2 * repeated)
        if free is None or needed <= 0.9 * free:
            return None
        return f"its cache of {cache / MIB:,.0f} MiB does not fit"

    def rest(self) -> None:
        self.cache = DynamicCache()

    def back(self) -> None:
        if grown := self.cache.get_seq_length() - self.context:
            self.cache.crop(-grown)

    @torch.inference_mode()
    def see(self) -> None:
        pixels = torch.from_numpy(next(self.frames))[None].to(self.device)
        patches, grid = self.processor.patches(pixels, min_pixels=self.side**2, max_pixels=self.side**2)
        inner: Any = self.model.model
        features = inner.get_video_features(patches, torch.tensor([grid], device=self.device)).pooler_output
        self._run(torch.cat(features)[None], grid_positions([0], grid[1] // self.merge, grid[2] // self.merge))

    @torch.inference_mode()
    def answer(self, tokens: int) -> None:
        ids = torch.full((1, self.question_tokens), 7, device=self.device)
        for _ in range(1 + tokens):
            hidden = self._run(self.model.get_input_embeddings()(ids), torch.arange(ids.shape[1]).expand(3, -1))
            ids = self.model.lm_head(hidden[:, -1:]).argmax(-1)
            int(ids)  # a caller waits for every token
        self.back()

    def _run(self, embeds: Tensor, offsets: Tensor) -> Tensor:
        """embeds: [1, T, hidden]; offsets: [3, T] of their positions."""
        positions = (self.cache.get_seq_length() + offsets)[:, None].to(self.device)
        output = self.model.model(
            inputs_embeds=embeds, position_ids=positions, past_key_values=self.cache, use_cache=True
        )
        return output.last_hidden_state


def _config(model: InfiniteVLForConditionalGeneration):
    try:
        return qwen_config(as_full_attention(model.config))
    except ValueError as error:
        raise InfiniteVLError(f"there is no Qwen2.5-VL of these sizes: {error}") from None


def _check_room(nbytes: int, what: str, device: torch.device) -> None:
    free = free_bytes(device)
    if free is not None and nbytes > 0.9 * free:
        raise InfiniteVLError(f"{what} need {nbytes / MIB:,.0f} MiB, {free / MIB:,.0f} MiB are free on {device}")
