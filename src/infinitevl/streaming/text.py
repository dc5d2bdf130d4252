"""Choosing tokens, and turning them into pieces of text."""

from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from infinitevl.errors import InfiniteVLError


class Sampling:
    """How the next token is chosen. temperature 0 is greedy; top_p keeps the likeliest tokens of that total."""

    def __init__(self, temperature: float = 0.0, top_p: float = 1.0, seed: int | None = None) -> None:
        if not temperature >= 0:
            raise InfiniteVLError(f"temperature must be 0 or more, not {temperature}")
        if not 0 < top_p <= 1:
            raise InfiniteVLError(f"top_p must be above 0 and at most 1, not {top_p}")
        self.temperature, self.top_p, self.seed = temperature, top_p, seed
        self._generator: torch.Generator | None = None

    def choose(self, logits: Tensor) -> int:
        """logits: [vocabulary] -> a token id."""
        if self.temperature == 0:
            return int(logits.argmax())
        logits = logits.float() - logits.max()  # at most 0, so that no temperature makes them overflow
        probability = torch.softmax(logits / self.temperature, dim=-1)
        if self.top_p < 1:
            ordered, order = probability.sort(descending=True)
            beyond = ordered.cumsum(-1) - ordered >= self.top_p
            probability = probability.index_fill(0, order[beyond], 0)
        return int(torch.multinomial(probability, 1, generator=self._random(logits.device)))

    def _random(self, device: torch.device) -> torch.Generator:
        if self._generator is None:
            self._generator = torch.Generator(device)
            self._generator.seed() if self.seed is None else self._generator.manual_seed(self.seed)
        return self._generator


class Writer:
    """Writes one answer: chooses tokens, turns them into text, knows when it ends.

    It ends at a token of `ends`, at a stop string, or after `limit` tokens. tokens: chosen so far; reason: why it
    ended, "stop" or "length", None before.
    """

    def __init__(self, sampling: Sampling, pieces: "TextPieces", limit: int, ends: Collection[int]) -> None:
        if limit < 1:
            raise InfiniteVLError(f"max_new_tokens must be at least 1, not {limit}")
        self.sampling, self.pieces, self.limit, self.ends = sampling, pieces, limit, ends
        self.tokens = 0
        self.reason: Literal["stop", "length"] | None = None

    def write(self, logits: Tensor) -> tuple[int | None, str]:
        """logits: [vocabulary] -> the next token, to be fed to the model, None at the end's own; text it completes."""
        token = self.sampling.choose(logits)
        if token in self.ends:
            self.reason = "stop"
            return None, self.pieces.flush()
        self.tokens += 1
        text = self.pieces.push(token)
        if self.pieces.stopped:
            self.reason = "stop"
        elif self.tokens == self.limit:
            self.reason = "length"
            text += self.pieces.flush()
        return token, text


def decode(logits: Tensor, feed: Callable[[list[int]], Tensor], writer: Writer) -> Iterator[str]:
    """The text as it comes. logits: [vocabulary] after the question; `feed` gives them after more tokens.

    Every token that was chosen has been fed when this ends, even when it is closed early.
    """
    while writer.reason is None:
        token, text = writer.write(logits)
        try:
            if text:
                yield text
        finally:
            if token is not None:
                logits = feed([token])


class TextPieces:
    """Token ids, one by one, to pieces of text that never split a character nor show a part of a stop string."""

    def __init__(self, tokenizer: Any, stop: Sequence[str] = ()) -> None:
        self.tokenizer, self.stop = tokenizer, tuple(s for s in stop if s)
        self.stopped = False  # a stop string has come
        self._ids: list[int] = []
        self._shown = ""  # text of the tokens before `_start`, plus what was shown after it
        self._pending = ""  # decoded, but may be the beginning of a stop string
        self._start = 0

    def push(self, token: int) -> str:
        """The text that `token` completes."""
        self._ids.append(token)
        text = self._decode(self._ids)
        if text.endswith("\ufffd"):  # a character that later tokens complete
            return ""
        new = text[len(self._shown) :]
        self._restart(text)
        return self._release(new)

    def flush(self) -> str:
        """What was held back, when no more tokens come."""
        if self.stopped:
            return ""
        rest = self._pending + self._decode(self._ids)[len(self._shown) :]
        self._pending, self._ids, self._shown = "", [], ""
        return self._cut(rest)

    def _restart(self, text: str) -> None:
        """Keep only the last token as context, so that each push decodes a few tokens, not all."""
        self._ids = self._ids[-1:]
        self._shown = self._decode(self._ids)

    def _release(self, new: str) -> str:
        text = self._cut(self._pending + new)
        held = 0 if self.stopped else max((_overlap(text, s) for s in self.stop), default=0)
        self._pending = text[len(text) - held :]
        return text[: len(text) - held]

    def _cut(self, text: str) -> str:
        places = [place for s in self.stop if (place := text.find(s)) >= 0]
        self.stopped = self.stopped or bool(places)
        return text[: min(places)] if places else text

    def _decode(self, ids: list[int]) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that begins `stop`."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)
