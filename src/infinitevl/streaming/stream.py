"""One endless stream: frames go in, questions are answered, memory stays the same."""

import inspect
import os
import weakref
from collections.abc import Generator, Iterator, Sequence
from dataclasses import replace
from time import perf_counter

import numpy as np
import torch
from torch import Tensor

from infinitevl.errors import InfiniteVLError
from infinitevl.model.graphs import branch
from infinitevl.model.modeling import InfiniteVLForConditionalGeneration
from infinitevl.model.state import State
from infinitevl.model.transfer import done
from infinitevl.streaming.feeding import encode_frames, take_frames, take_text
from infinitevl.streaming.session import MIN_PIXELS, Session, Stats
from infinitevl.streaming.speaking import Speaker
from infinitevl.streaming.text import Sampling, TextPieces, Writer, decode
from infinitevl.video.resize import smart_resize


class Stream:
    """A model that watches: `see` frames, `ask` questions, `fork`, `save` and `load`.

    fps: at most so many frames a second of stream time are taken, the others are ignored (None: all are taken).
    min_pixels, max_pixels: bounds of a frame's size after the resize; 784 pixels make a token. By default a frame
    has at most 256 tokens, and no more than the model's processor allows: small models know small frames alone.
    Not thread-safe: use it from one thread, or hold a lock around `see` and around the call of `ask`.
    """

    def __init__(
        self,
        model: InfiniteVLForConditionalGeneration,
        *,
        fps: float | None = 2.0,
        min_pixels: int = MIN_PIXELS,
        max_pixels: int | None = None,
    ) -> None:
        if model.processor is None:
            raise InfiniteVLError("the model has no processor: use infinitevl.load, or set model.processor")
        self.model = model
        self.state: State = model.allocate_state()
        self.session = Session.begin(model.processor, fps, min_pixels, max_pixels)
        self._sampler = self.session.sampler()
        self._writer: weakref.ref[Generator[str]] | None = None  # the answer being written into this stream
        self._seen = done(self.model.device)

    @property
    def stats(self) -> Stats:
        return replace(self.session.stats, state_bytes=self.state.nbytes)

    @torch.inference_mode()
    def see(self, frame: np.ndarray | Tensor, time: float | None = None) -> bool:
        """Take in a frame, uint8 RGB [H, W, 3], seen at `time` seconds (by default one step after the last).

        Returns False for a frame that comes sooner than `fps` allows, which changes nothing.
        """
        self._check_free()
        pixels = self.session.frame(frame)
        at = self.session.time(time)
        if self._sampler is not None and not self._sampler.take(at):
            return False
        began = perf_counter()
        self._open_video(at)
        self._take(pixels, at)
        self._seen()  # the frame before: the host is ahead by one at most, so that who is late knows it
        self._seen = done(self.model.device)
        session = self.session
        session.last = at
        session.stats.frames += 1
        session.stats.seconds += perf_counter() - began
        return True

    def ask(
        self,
        question: str,
        *,
        remember: bool = False,
        max_new_tokens: int = 128,
        temperature: float = 0.0,
        top_p: float = 1.0,
        stop: Sequence[str] = (),
        seed: int | None = None,
    ) -> Iterator[str]:
        """Answer about all that was seen until now, piece by piece; "".join(...) is the whole answer.

        The answer is written on a fork taken by this call, so frames may be seen while it is read. With
        `remember` question and answer become part of the stream: read the answer to its end, or close it, before
        the next frame. The answer ends at the model's end mark, before a stop string, or after max_new_tokens.
        """
        self._check_free()
        asked = self.session.question(self.model.processor, question)
        pieces = TextPieces(self.model.processor.tokenizer, stop)
        writer = Writer(Sampling(temperature, top_p, seed), pieces, max_new_tokens, self.model.end_tokens())
        speaker = self if remember else self._with(branch(self.model, self.state))
        answer = speaker._answer(asked, writer)
        speaker._writer = weakref.ref(answer)
        return answer

    def fork(self) -> "Stream":
        """An independent stream with the same memory."""
        self._check_free()
        return self._with(self.state.fork())

    def save(self, path: str | os.PathLike) -> None:
        """Write everything to a file of constant size, atomically."""
        self._check_free()
        self.state.save(path, {"stream": self.session.dumps()})

    @classmethod
    def load(cls, model: InfiniteVLForConditionalGeneration, path: str | os.PathLike) -> "Stream":
        """Go on from a saved stream. InfiniteVLError for a file that is damaged or of another model."""
        stream = cls(model)
        extra = stream.state.load(path)
        if "stream" not in extra:
            raise InfiniteVLError(f"{path} is the state of a model, not a saved stream")
        try:
            stream.session = Session.loads(extra["stream"])
        except (ValueError, TypeError, KeyError) as error:
            raise InfiniteVLError(f"{path} is damaged: what it says of the stream cannot be read") from error
        stream._sampler = stream.session.sampler()
        return stream

    def _with(self, state: State) -> "Stream":
        """The same with another state."""
        other = object.__new__(Stream)
        other.model, other.state = self.model, state
        other.session = replace(self.session, stats=replace(self.session.stats))
        other._sampler = other.session.sampler()
        other._writer, other._seen = None, self._seen
        return other

    def _check_free(self) -> None:
        answer = self._writer() if self._writer else None
        if answer is not None and inspect.getgeneratorstate(answer) != inspect.GEN_CLOSED:
            raise InfiniteVLError(
                "an answer is still being written into this stream: read it to its end, or close it, first"
            )

    def _open_video(self, at: float) -> None:
        """Say what comes before a video, unless one is open that goes on."""
        processor = self.model.processor
        if before := self.session.before_frame(processor.settings, at):
            self._feed(processor.encode(before))
            self.state.open_video()
            self.session.phase, self.session.start = "video", at

    def _take(self, pixels: Tensor, at: float) -> None:
        model, session, settings = self.model, self.session, self.model.processor.settings
        size = smart_resize(
            *pixels.shape[:2],
            factor=settings.patch_size * settings.merge_size,
            min_pixels=session.min_pixels,
            max_pixels=session.max_pixels,
        )
        features = encode_frames(model, pixels[None], size)
        height, width = (side // settings.patch_size for side in size)
        take_frames(model, self.state, features, (height, width), [[at - session.start]])
        session.stats.tokens += features.shape[1]

    def _answer(self, asked: list[int], writer: Writer) -> Generator[str]:
        """Write the question, then the answer, into this stream's own state."""
        logits = self._feed(asked)
        self.session.phase = "answered"
        speaker = Speaker(self.model, self.state, [writer.sampling], writer.ends)
        try:
            yield from decode(speaker.first(logits), speaker.go_on, writer)
        finally:
            self.session.stats.tokens += writer.tokens

    @torch.inference_mode()
    def _feed(self, tokens: list[int]) -> Tensor:
        """Put text into the state; logits [1, vocabulary] after it."""
        self.session.stats.tokens += len(tokens)
        return take_text(self.model, self.state, [tokens])
