"""What the tests of training share: small models with a processor, and data that is quickly made."""

from collections.abc import Iterator
from typing import Any

import torch

from helpers import randomise
from infinitevl.data.encode import Encoder
from infinitevl.data.packing import Batch, pack
from infinitevl.data.sample import Sample
from infinitevl.model.modeling import InfiniteVLForConditionalGeneration as Model
from infinitevl.model.random_model import random_model
from infinitevl.train.stages import Objective, Stage

HYBRID = ["sliding_attention", "linear_attention", "linear_attention", "sliding_attention", "linear_attention"]
TINY = {"hidden_size": 128, "intermediate_size": 64, "num_attention_heads": 2, "num_key_value_heads": 1,
        "head_dim": 32, "num_linear_heads": 2, "linear_head_dim": 16, "sliding_window": 16}  # fmt: skip


def small_model(kinds: list[str] = HYBRID, dtype: torch.dtype = torch.float32, **text: Any) -> Model:
    """The same weights every time."""
    model = random_model(0, **{**TINY, "layer_types": kinds, "num_hidden_layers": len(kinds), **text})
    with torch.random.fork_rng():
        torch.manual_seed(0)
        randomise(model)
    return model.to(dtype)


def small_teacher(dtype: torch.dtype = torch.float32, layers: int = len(HYBRID)) -> Model:
    return small_model(["full_attention"] * layers, dtype)


def clip(frames: int, height: int = 56, width: int = 28) -> torch.Tensor:
    return torch.randint(256, (frames, height, width, 3), dtype=torch.uint8)


def talk(question: str = "What?", answer: str = "That.", *videos: torch.Tensor) -> Sample:
    asked = {"role": "user", "content": "<video>" * len(videos) + question}
    return Sample([asked, {"role": "assistant", "content": answer}], videos=list(videos), fps=1.0, name="a talk")


def encoder(model: Model, max_tokens: int = 1000, max_frames: int | None = None) -> Encoder:
    bounds = {"max_tokens": max_tokens, "max_frames": max_frames, "min_pixels": 784, "max_pixels": 56 * 56}
    return Encoder(model.processor, model.config, **bounds)


def mixed_batch(model: Model, tokens: int = 260) -> Batch:
    """Two rows of samples of different lengths, with videos of different sizes, and padding behind."""
    encode = encoder(model)
    rows = [
        [talk("Which colour?", "red", clip(3)), talk("?", "a much longer answer"), talk("a", "b", clip(1, 28, 56))],
        [talk("Two clips", "yes", clip(2), clip(2, 28, 28))],
    ]
    return pack([[encode(sample) for sample in row] for row in rows], tokens)


class Listed:
    """The protocol of training data for what has __getitem__; the state is the number of the next batch."""

    steps: int
    rank, ranks = 0, 1

    def shard(self, rank: int, world_size: int):
        self.rank, self.ranks = rank, world_size
        return self

    def batches(self, start: int, state: Any, workers: int) -> Iterator[tuple[Batch, Any]]:
        assert state == (start or None)
        return ((self[step], step + 1) for step in range(start, self.steps))

    def __getitem__(self, step: int) -> Batch:
        raise NotImplementedError


class Copies(Listed):
    """Batches of text to be repeated: `digits` random digits, different in every sample."""

    def __init__(self, model: Model, steps: int, rows: int = 2, digits: int = 3, tokens: int = 110) -> None:
        self.encode, self.steps, self.rows, self.digits, self.tokens = encoder(model), steps, rows, digits, tokens

    def __getitem__(self, step: int) -> Batch:
        generator = torch.Generator().manual_seed(step)
        texts = torch.randint(10, (self.rows, self.digits), generator=generator).tolist()
        words = ["".join(map(str, text)) for text in texts[self.rank :: self.ranks]]
        return pack([[self.encode(talk(word, word))] for word in words], self.tokens)


def stage(**options: Any) -> Stage:
    values = {"name": "test", "loss": "cross_entropy", "trains": "all", "data": (), "steps": 6, "rows": 2}
    return Stage(**{**values, "tokens": 110, "learning_rate": 1e-3, **options})


def backward_step(kind: Stage, student: Model, teacher: Model | None, batch: Batch) -> torch.Tensor:
    """Forward and backward pass of one batch; returns the loss."""
    loss = Objective(kind, student, teacher)(batch)
    loss.backward()
    return loss.detach()
