"""The least that a frame or a token can cost: operations, and bytes to read and write. Arithmetic, from the sizes.

Operations are two for a multiplication with its addition; of weights in float8 one, since tensor cores do twice as
many of those. Every weight is read once, every part of the state that is seen is read once, what changes is written
once; activations stay in caches, and nothing is computed twice.
"""

from dataclasses import dataclass
from functools import lru_cache
from math import prod

import torch

from infinitevl.model.configuration import InfiniteVLConfig
from infinitevl.model.fp8 import in_fp8
from infinitevl.model.info import expected_shapes
from infinitevl.model.modeling import InfiniteVLForConditionalGeneration
from infinitevl.model.state import State


@dataclass(frozen=True)
class Work:
    operations: float = 0.0
    nbytes: float = 0.0

    def __add__(self, other: "Work") -> "Work":
        return Work(self.operations + other.operations, self.nbytes + other.nbytes)


class Costs:
    """Of one stream through a model of these sizes. A model of full attention is a static engine's ideal."""

    def __init__(self, config: InfiniteVLConfig, dtype: torch.dtype, fp8: bool = False) -> None:
        self.config, self.dtype, self.fp8 = config, dtype, fp8
        self.sizes = {name: prod(shape) for name, shape in expected_shapes(config).items()}
        self._wide, self._operations = (1, 1.0) if fp8 else (dtype.itemsize, 2.0)  # of an element of a weight

    @classmethod
    def of(cls, model: InfiniteVLForConditionalGeneration) -> "Costs":
        return cls(model.config, model.dtype, in_fp8(model))

    @property
    def weight_bytes(self) -> int:
        """In float8 the embedding stays as it was, besides the head that was tied to it or has rows of its own."""
        embedding = self._count("model.language_model.embed_tokens.")
        tied = self._count("lm_head.") == 0
        products = sum(self.sizes.values()) - (0 if tied and self.fp8 else embedding)
        return products * self._wide + embedding * self.dtype.itemsize

    def frame(self, grid: tuple[int, int], context: int) -> Work:
        """A frame of grid = height x width patches after `context` tokens."""
        tokens = grid[0] * grid[1] // self.config.vision_config.spatial_merge_size**2
        return self._vision(grid) + self._layers(tokens, context)

    def question(self, tokens: int, context: int) -> Work:
        """From a question of so many tokens to the first token of its answer."""
        return self._layers(tokens, context) + self._head()

    def token(self, context: int) -> Work:
        """A token of an answer: read in, and the next one chosen."""
        return self.question(1, context)

    def together(self, work: Work, streams: int, *, vision: bool) -> Work:
        """`work` of one stream, a frame (vision) or a token, done for many at once: every weight is read once."""
        weights = self._count("model.language_model.layers.") * self._wide
        weights += self._count("model.visual.") * self._wide if vision else self._head().nbytes
        return Work(streams * work.operations, streams * work.nbytes - (streams - 1) * weights)

    def state_bytes(self, context: int) -> int:
        """What a stream holds after `context` tokens: fixed, and of full attention layers their cache."""
        state = State(self.config.text_config, 1, torch.device("meta"), self.dtype)
        kinds = self.config.text_config.layer_types
        fixed = sum(
            tensor.nbytes
            for name, tensor in state.tensors().items()
            if not (name.startswith("layers.") and kinds[int(name.split(".")[1])] == "full_attention")
        )
        return fixed + kinds.count("full_attention") * context * self._token_bytes()

    def _vision(self, grid: tuple[int, int]) -> Work:
        vision = self.config.vision_config
        (height, width), merged = grid, vision.spatial_merge_size**2
        merger = self._count("model.visual.merger.")
        tower = self._count("model.visual.") - merger
        patches, side = height * width, vision.window_size // vision.patch_size
        full = sum(layer < vision.depth for layer in vision.fullatt_block_indexes)
        pairs = full * patches**2 + (vision.depth - full) * _squares(height, side) * _squares(width, side)
        operations = self._operations * patches * (tower + merger / merged) + 4 * vision.hidden_size * pairs
        return Work(operations, (tower + merger) * self._wide)

    def _layers(self, tokens: int, context: int) -> Work:
        """All layers of the language model: products with weights, attention, memory."""
        text, weights = self.config.text_config, self._count("model.language_model.layers.")
        done = Work(self._operations * tokens * weights, weights * self._wide)
        for kind in text.layer_types:
            if kind == "linear_attention":
                done += self._memory(tokens)
            else:
                seen = text.sliding_window + text.attention_sinks if kind == "sliding_attention" else None
                done += self._attention(tokens, context, seen)
        return done

    def _memory(self, tokens: int) -> Work:
        """Recurrent: S^T k, k v^T added, S^T q for every token; memory and tail read and written once."""
        text = self.config.text_config
        heads, key, value = text.num_linear_heads, text.linear_head_dim, text.linear_value_dim
        wide = 8 if self.dtype == torch.float64 else 4
        tail = (text.conv_size - 1) * heads * (2 * key + value) * self.dtype.itemsize
        return Work(6.0 * tokens * heads * key * value, 2.0 * (heads * key * value * wide + tail))

    def _attention(self, tokens: int, context: int, seen: int | None) -> Work:
        """`seen`: keys that a query sees at most, itself included. Reads those cached, writes the new ones."""
        text = self.config.text_config
        reach = context + tokens if seen is None else seen
        operations = 4.0 * text.num_attention_heads * text.head_dim * _pairs(tokens, context, reach)
        return Work(operations, (min(context, reach - 1) + tokens) * self._token_bytes())

    def _head(self) -> Work:
        rows = self.config.text_config.vocab_size * self.config.text_config.hidden_size
        return Work(self._operations * rows, rows * self._wide)

    def _token_bytes(self) -> int:
        """A token's key and value in one attention layer."""
        text = self.config.text_config
        return 2 * text.num_key_value_heads * text.head_dim * self.dtype.itemsize

    def _count(self, prefix: str) -> int:
        return sum(size for name, size in self.sizes.items() if name.startswith(prefix))


def as_full_attention(config: InfiniteVLConfig) -> InfiniteVLConfig:
    """A Qwen2.5-VL of the same sizes: every layer attends to everything."""
    values = config.to_dict()
    layers = config.text_config.num_hidden_layers
    values["text_config"] = {**values["text_config"], "layer_types": ["full_attention"] * layers}
    return InfiniteVLConfig.from_dict(values)


@lru_cache(maxsize=256)
def _pairs(tokens: int, context: int, reach: int) -> int:
    """Keys that the queries of `tokens` new tokens see, in all."""
    return sum(min(context + t + 1, reach) for t in range(tokens))


def _squares(length: int, side: int) -> int:
    """The sum of squares of the pieces of `length` cut every `side`."""
    return length // side * side**2 + (length % side) ** 2
