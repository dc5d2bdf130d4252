"""What a model loses when its weights are rounded to float8: the same stream and answer, before and after."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from infinitevl.benchmark.measure import QUESTION
from infinitevl.model.fp8 import quantise
from infinitevl.model.modeling import InfiniteVLForConditionalGeneration
from infinitevl.streaming.stream import Stream

FRAMES, TOKENS = 4, 32


@dataclass(frozen=True)
class Lost:
    """hidden, logits: distances from what they were, relative (Frobenius), of the last layer at every token of an
    answer after so many frames; same: of how many of its tokens the likeliest next one is the one that it was.
    """

    frames: int
    tokens: int
    hidden: float
    logits: float
    same: int

    def __str__(self) -> str:
        return (
            f"float8 against what it was rounded from, after {self.frames} random frames: hidden states are off by "
            f"{self.hidden:.1%}, logits by {self.logits:.1%} (relative, Frobenius); in an answer of {self.tokens} "
            f"tokens, read one by one, the likeliest next one is the same {self.same} times."
        )


@dataclass(frozen=True)
class Answer:
    """tokens: [1, n]; hidden: [n, hidden], logits: [n, vocabulary], where each of them is chosen."""

    tokens: Tensor
    hidden: Tensor
    logits: Tensor


def quantised(model: InfiniteVLForConditionalGeneration, frames: Sequence[np.ndarray]) -> Lost:
    """Round the model's weights, in place. frames: uint8 RGB, of a size that the model takes."""
    before = answer(model, frames[:FRAMES])
    quantise(model)
    after = answer(model, frames[:FRAMES], before.tokens)
    same = (before.logits.argmax(-1) == after.logits.argmax(-1)).sum()
    return Lost(
        min(FRAMES, len(frames)), TOKENS, _distance(after.hidden, before.hidden),
        _distance(after.logits, before.logits), int(same),
    )  # fmt: skip


@torch.inference_mode()
def answer(
    model: InfiniteVLForConditionalGeneration, frames: Sequence[np.ndarray], tokens: Tensor | None = None
) -> Answer:
    """The model's own answer of TOKENS tokens to a question about a stream of these frames, or a given one."""
    stream = Stream(model, fps=None, max_pixels=frames[0].shape[0] * frames[0].shape[1])
    for frame in frames:
        stream.see(frame)
    ids = torch.tensor([model.processor.tokenizer(QUESTION)["input_ids"]], device=model.device)
    written, hidden, logits = [], [], []
    for n in range(TOKENS):
        output = model(ids, past_key_values=stream.state, output_hidden_states=True)
        hidden.append(output.hidden_states[-1][0, -1])
        logits.append(output.logits[0, -1])
        ids = output.logits[:, -1:].argmax(-1) if tokens is None else tokens[:, n : n + 1]
        written.append(ids)
    return Answer(torch.cat(written, 1), torch.stack(hidden), torch.stack(logits))


def _distance(found: Tensor, exact: Tensor) -> float:
    found, exact = found.double(), exact.double()
    return float((found - exact).norm() / exact.norm())
