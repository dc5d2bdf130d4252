"""The one owner of tensors: puts frames into streams, prompts and tokens into answers, many at once."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from infinitevl.engine.pool import Pool, Seat
from infinitevl.engine.prompt import MediaPrompt, Piece, TextPrompt
from infinitevl.model.modeling import InfiniteVLForConditionalGeneration
from infinitevl.model.transfer import done
from infinitevl.streaming.feeding import encode_frames, take_frames, take_text, take_tokens
from infinitevl.streaming.session import Session
from infinitevl.streaming.speaking import Speaker
from infinitevl.streaming.text import Sampling, choose

CHUNK = 256  # tokens of a prompt that are put in at once: about a frame's
MOST = 16  # frames at once on a GPU


def with_rows(x: Tensor, rows: int) -> Tensor:
    """x [B, ...] -> [rows, ...], zeros behind."""
    return x if len(x) == rows else torch.cat([x, x.new_zeros(rows - len(x), *x.shape[1:])])


@dataclass
class Prefill:
    """A prompt on its way into a seat."""

    seat: Seat
    prompt: TextPrompt | MediaPrompt
    done: int = 0  # tokens that are in


class Runner:
    """Runs the model on rows of the pool."""

    def __init__(self, model: InfiniteVLForConditionalGeneration, slots: int) -> None:
        self.model, self.pool = model, Pool(model, slots)

    @torch.inference_mode()
    def watch(
        self, seats: Sequence[Seat], sessions: Sequence[Session], pixels: Tensor, times: Sequence[float]
    ) -> None:
        """A frame for each of some streams. pixels: uint8 [B, h, w, 3] of a size that the model takes; times: on the
        streams' clocks. Opens a video where none is open that goes on. Returns when all of it is in memory."""
        for part in self._parts(len(seats)):
            self._watch(seats[part], sessions[part], pixels[part], times[part])
        done(self.model.device)()

    def _watch(
        self, seats: Sequence[Seat], sessions: Sequence[Session], pixels: Tensor, times: Sequence[float]
    ) -> None:
        model, settings = self.model, self.model.processor.settings
        height, width = (side // settings.patch_size for side in pixels.shape[1:3])
        features = encode_frames(model, pixels)
        said = [session.before_frame(settings, time) for session, time in zip(sessions, times, strict=True)]
        before = [model.processor.encode(text) for text in said]
        starts = [time if text else session.start for time, text, session in zip(times, before, sessions, strict=True)]
        seconds = [[time - start] for time, start in zip(times, starts, strict=True)]
        with self.pool.working(seats) as state:
            if any(before):
                take_text(model, state, before)
                state.open_video(torch.tensor([bool(text) for text in before], device=model.device))
            take_frames(model, state, features, (height, width), seconds)
        for session, text, start, time in zip(sessions, before, starts, times, strict=True):
            session.phase, session.start, session.last = "video", start, max(time, session.last or time)
            session.stats.tokens += len(text) + features.shape[1]
            session.stats.frames += 1

    @torch.inference_mode()
    def prefill(self, prompts: Sequence[Prefill], samplings: Sequence[Sampling]) -> list[int | None]:
        """The next tokens of some prompts; the token chosen after those that are whole now."""
        with self.pool.working([prompt.seat for prompt in prompts], self._rows(len(prompts))) as state:
            pieces = [self._piece(prompt, state.of("position")[i]) for i, prompt in enumerate(prompts)]
            lengths = [len(piece.embeds) for piece in pieces] + [0] * (state.batch_size - len(pieces))
            embeds, vision = (
                pad_sequence([getattr(piece, name) for piece in pieces], batch_first=True)
                for name in ("embeds", "vision")
            )
            places = pad_sequence([piece.positions.T for piece in pieces], batch_first=True)
            embeds, vision, places = (with_rows(x, state.batch_size) for x in (embeds, vision, places))
            logits = take_tokens(self.model, state, embeds, places.permute(2, 0, 1), vision, lengths)
        for prompt, piece in zip(prompts, pieces, strict=True):
            prompt.done += len(piece.embeds)
        whole = [prompt.done == prompt.prompt.length for prompt in prompts]
        if not any(whole):
            return [None] * len(prompts)
        chosen = choose(
            logits[: len(prompts)][whole], [sampling for sampling, ends in zip(samplings, whole, strict=True) if ends]
        )
        following = iter(chosen.tolist())
        return [next(following) if ends else None for ends in whole]

    @torch.inference_mode()
    def write(self, seats: Sequence[Seat], tokens: Sequence[int] | Tensor, samplings: Sequence[Sampling]) -> Tensor:
        """A token for each of some answers; the ones chosen after them, [rows] on the device, those of rows that rest
        last. An answer whose token is an end mark stays as it is.

        tokens: of each answer, or what this gave for the same answers.
        """
        with self.pool.working(seats, self._rows(len(seats))) as state:
            resting = state.batch_size - len(seats)
            speaker = Speaker(self.model, state, [*samplings, *[Sampling()] * resting], self.model.end_tokens())
            given = tokens if isinstance(tokens, Tensor) else torch.tensor([*tokens, *[0] * resting])
            return speaker.go_on(given)

    @torch.inference_mode()
    def norms(self, seat: Seat) -> list[float]:
        """Norm of the memory of every Gated DeltaNet layer."""
        return self.pool.read(seat).memory_norm()[:, 0].tolist()

    def _rows(self, count: int) -> int:
        """Rows that text is computed with: in slots the next power of two, lest every number has graphs of its own."""
        return 1 << (count - 1).bit_length() if self.pool.in_slots else count

    def _parts(self, count: int) -> Iterator[slice]:
        """Frames that are computed together: in slots powers of two, since a frame of a row that rests costs as much
        as another; no more than MOST."""
        start = 0
        while start < count:
            left = count - start
            size = min(MOST, 1 << (left.bit_length() - 1)) if self.pool.in_slots else left
            yield slice(start, start + size)
            start += size

    def _piece(self, prefill: Prefill, position: Tensor) -> Piece:
        start = prefill.done
        return prefill.prompt.piece(self.model, start, min(start + CHUNK, prefill.prompt.length), position)
