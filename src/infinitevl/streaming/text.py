"""Choosing tokens, and turning them into pieces of text."""

from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from infinitevl.errors import InfiniteVLError
from infinitevl.model.transfer import fetch, to_device


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
        return int(choose(logits[None], [self]))

    def noise(self, width: int, device: torch.device) -> Tensor:
        """[width] float32, exponentially distributed: what the next choice among so many tokens depends on."""
        noise = torch.empty(width, device=device)
        return noise.exponential_(generator=self._random(device)) if self.temperature else noise.fill_(1)

    def _random(self, device: torch.device) -> torch.Generator:
        if self._generator is None:
            self._generator = torch.Generator(device)
            self._generator.seed() if self.seed is None else self._generator.manual_seed(self.seed)
        return self._generator


def choose(logits: Tensor, samplings: Sequence[Sampling]) -> Tensor:
    """The next token of every row, on the device: logits [B, vocabulary] -> [B] int64."""
    return pick(logits, *draws(samplings, logits.shape[-1], logits.device))


def draws(samplings: Sequence[Sampling], width: int, device: torch.device) -> tuple[Tensor, ...]:
    """What `pick` needs besides logits [B, width] to choose for rows: nothing where all are greedy."""
    if all(sampling.temperature == 0 for sampling in samplings):
        return ()
    noise = torch.stack([sampling.noise(width, device) for sampling in samplings])
    values = [[sampling.temperature, sampling.top_p] for sampling in samplings]
    temperature, top_p = to_device(torch.tensor(values), device).T
    return (noise, temperature) if all(sampling.top_p == 1 for sampling in samplings) else (noise, temperature, top_p)


def pick(
    logits: Tensor, noise: Tensor | None = None, temperature: Tensor | None = None, top_p: Tensor | None = None
) -> Tensor:
    """logits, noise: [B, vocabulary]; temperature, top_p: [B] -> tokens [B]; a row of temperature 0 is greedy.

    The largest of p / noise is token i with probability p_i, as torch.multinomial has it.
    """
    greedy = logits.argmax(-1)
    if noise is None or temperature is None:
        return greedy
    logits = logits.float() - logits.amax(-1, keepdim=True)  # at most 0, so that no temperature makes them overflow
    probability = torch.softmax(logits / torch.where(temperature > 0, temperature, 1)[:, None], dim=-1)
    if top_p is not None:
        ordered, order = probability.sort(dim=-1, descending=True)
        within = ordered.cumsum(-1) - ordered < top_p[:, None]
        probability = torch.zeros_like(probability).scatter(1, order, ordered * within)
    return torch.where(temperature > 0, (probability / noise).argmax(-1), greedy)


class Writer:
    """Writes one answer: turns tokens into text, knows when it ends.

    It ends at a token of `ends`, at a stop string, or after `limit` tokens. tokens: chosen so far; reason: why it
    ended, "stop" or "length", None before.
    """

    def __init__(self, sampling: Sampling, pieces: "TextPieces", limit: int, ends: Collection[int]) -> None:
        if limit < 1:
            raise InfiniteVLError(f"max_new_tokens must be at least 1, not {limit}")
        self.sampling, self.pieces, self.limit, self.ends = sampling, pieces, limit, ends
        self.tokens = 0
        self.reason: Literal["stop", "length"] | None = None

    def write(self, token: int) -> tuple[int | None, str]:
        """The token that was chosen -> the token to be fed to the model, None at the end's own; text it completes."""
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


def decode(token: Tensor, go_on: Callable[[Tensor], Tensor], writer: Writer) -> Iterator[str]:
    """The text as it comes. token: [1], the first one, on the model's device; `go_on` feeds one and gives the next.

    Every token that was chosen has been fed when this ends, even when it is closed early. On a GPU a token is fed
    before the host has read it, so that the device need not wait; `go_on` leaves the state alone at one of the ends.
    """
    while writer.reason is None:
        read, following = fetch(token), go_on(token) if token.is_cuda else None
        fed, text = writer.write(read()[0])
        try:
            if text:
                yield text
        finally:
            if following is None and fed is not None:
                following = go_on(token)
        if following is not None:
            token = following


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
