"""Writing answers, token by token, into the rows of a state."""

from collections.abc import Collection, Sequence
from functools import partial

import torch
from torch import Tensor

from infinitevl.model.graphs import run
from infinitevl.model.modeling import InfiniteVLForConditionalGeneration
from infinitevl.model.state import State
from infinitevl.model.transfer import constant
from infinitevl.streaming.feeding import put_text
from infinitevl.streaming.text import Sampling, choose, draws, pick


class Speaker:
    """Chooses tokens for the rows of a state, on its device, and feeds them.

    samplings: of each row; ends: tokens that end a row: it rests then.
    """

    def __init__(
        self,
        model: InfiniteVLForConditionalGeneration,
        state: State,
        samplings: Sequence[Sampling],
        ends: Collection[int],
    ) -> None:
        self.model, self.state, self.samplings = model, state, samplings
        self._ends = constant(tuple(sorted(ends)), model.device)

    def first(self, logits: Tensor) -> Tensor:
        """Tokens [B] after logits [B, vocabulary]."""
        return choose(logits, self.samplings)

    @torch.inference_mode()
    def go_on(self, tokens: Tensor) -> Tensor:
        """Feed tokens [B], which may be on the host, and choose the next ones. A row whose token is an end stays as it
        is, token and all."""
        model = self.model
        drawn = draws(self.samplings, model.config.text_config.vocab_size, model.device)
        inputs = tokens, self._ends, *drawn
        return run(model, ("step", len(drawn)), partial(_step, model), *inputs, state=self.state)


def _step(
    model: InfiniteVLForConditionalGeneration, state: State, tokens: Tensor, ends: Tensor, *drawn: Tensor
) -> Tensor:
    over = (tokens[:, None] == ends).any(1)
    resting = tokens.is_cuda or bool(over.any())  # reading it costs nothing on a CPU
    logits = put_text(model, state, tokens[:, None], (~over).long() if resting else None)
    return torch.where(over, tokens, pick(logits, *drawn))
