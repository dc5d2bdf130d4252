"""Many streams in step with each other, as rows of one state: what a `Stream` does, for a batch.

Every row sees a frame of the same size at the same time. Batched equals alone, and some frames at once equal the
same frames one by one, so the answers are those of separate streams; tests hold this.
"""

import copy
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from infinitevl.model.modeling import InfiniteVLForConditionalGeneration
from infinitevl.model.state import AttentionState, DeltaState, State
from infinitevl.streaming.feeding import encode_frames, take_frames, take_text
from infinitevl.streaming.session import Session
from infinitevl.streaming.speaking import Speaker
from infinitevl.streaming.text import Sampling


class Lockstep:
    """B streams of a model, with `fps` frames a second."""

    def __init__(self, model: InfiniteVLForConditionalGeneration, streams: int, fps: float) -> None:
        self.model, self.fps, self.frames = model, fps, 0
        self.session = Session(fps)  # of all of them; never changed in place, since copies share it
        self.state = model.allocate_state(streams)

    @torch.inference_mode()
    def see(self, frames: Tensor, rows: Sequence[int] | None = None) -> None:
        """The next n frames, in one pass: uint8 [S, n, H, W, 3] of a size that the model takes.

        rows: [B] which of the S each stream sees (None: stream i sees i).
        """
        model, settings = self.model, self.model.processor.settings
        size = tuple(side // settings.patch_size for side in frames.shape[2:4])
        features = encode_frames(model, frames.flatten(0, 1)).unflatten(0, frames.shape[:2])
        features = features if rows is None else features[torch.tensor(rows, device=model.device)]
        while features.shape[1]:
            self._open_video()
            video, features = features.tensor_split([self._left(features.shape[1])], dim=1)
            seconds = [self._seconds(i) for i in range(video.shape[1])]
            take_frames(model, self.state, video.flatten(1, 2), size, [seconds] * self.state.batch_size)
            self.frames += video.shape[1]

    def _seconds(self, ahead: int) -> float:
        """From the first frame of the open video to the one after `ahead` more."""
        return (self.frames + ahead) / self.fps - self.session.start

    def _left(self, most: int) -> int:
        """How many of the next frames, `most` at most, belong to the open video."""
        ends = self.model.processor.settings.ends_video
        return next((i for i in range(most) if ends(self._seconds(i))), most)

    def _open_video(self) -> None:
        """Unless one is open that goes on."""
        processor, at = self.model.processor, self.frames / self.fps
        if before := self.session.before_frame(processor.settings, at):
            take_text(self.model, self.state, [processor.encode(before)] * self.state.batch_size)
            self.state.open_video()
            self.session = replace(self.session, phase="video", start=at)

    def ask(self, questions: Sequence[str], max_new_tokens: int = 24) -> list[str]:
        """A greedy answer to every stream's own question. The streams are not changed."""
        fork = copy.copy(self)
        fork.state = self.state.fork()
        return fork.answer(questions, max_new_tokens)

    @torch.inference_mode()
    def answer(self, questions: Sequence[str], max_new_tokens: int = 24) -> list[str]:
        """As `ask`, but questions and answers become part of these streams, which can see no more."""
        processor = self.model.processor
        asked = [processor.encode(question.strip(), special=False) for question in questions]
        rows = [self.session.asked(processor, tokens) for tokens in asked]
        speaker = Speaker(self.model, self.state, [Sampling()] * len(rows), self.model.end_tokens())
        first = speaker.first(take_text(self.model, self.state, rows))
        return processor.tokenizer.batch_decode(
            self._written(first, speaker, max_new_tokens), skip_special_tokens=True
        )

    @torch.inference_mode()
    def take(self, rows: Sequence[int]) -> "Lockstep":
        """Copies of some of the streams."""
        part = copy.copy(self)
        part.state = self.state.take(rows)
        return part

    @staticmethod
    @torch.inference_mode()
    def join(parts: Sequence["Lockstep"]) -> "Lockstep":
        """The streams of all parts, one part after the other."""
        whole = copy.copy(parts[0])
        whole.state = _joined([part.state for part in parts])
        return whole

    @torch.inference_mode()
    def fade(self, factor: float, rows: Sequence[int] | None = None) -> None:
        """Multiply the memory of the Gated DeltaNet layers, in place; the attention windows stay. rows: which (all).

        With factor 0 they forget everything: the inputs that their convolutions hold, too.
        """
        chosen = slice(None) if rows is None else torch.tensor(rows, device=self.model.device)
        for layer in self.state.layers:
            if not isinstance(layer, DeltaState):
                continue
            layer.memory[chosen] *= factor
            if factor == 0:
                layer.tail[chosen] = 0

    def memory_norm(self) -> Tensor:
        """See `State.memory_norm`."""
        return self.state.memory_norm()

    def _written(self, tokens: Tensor, speaker: Speaker, limit: int) -> list[list[int]]:
        """The tokens of every row, without the one that ended it. tokens: [B], the first ones."""
        ends = self.model.end_tokens()
        rows: list[list[int]] = [[] for _ in range(len(tokens))]
        for _ in range(limit):
            chosen = tokens.tolist()
            going = [token not in ends for token in chosen]
            if not any(going):
                break
            for row, token, more in zip(rows, chosen, going, strict=True):
                row += [token] if more else []
            tokens = speaker.go_on(tokens)
        return rows


def _joined(states: Sequence[State]) -> State:
    whole = copy.copy(states[0])
    whole.bound = max(state.bound for state in states)
    whole.layers = [_joined_layers(layers) for layers in zip(*(state.layers for state in states), strict=True)]
    for name in State.COUNTERS:
        setattr(whole, name, torch.cat([getattr(state, name) for state in states]))
    return whole


def _joined_layers(layers: Sequence[AttentionState | DeltaState]) -> AttentionState | DeltaState:
    if isinstance(layers[0], DeltaState):
        memories, tails = zip(
            *((layer.memory, layer.tail) for layer in layers if isinstance(layer, DeltaState)), strict=True
        )
        return DeltaState(torch.cat(memories), torch.cat(tails))
    rings = [layer for layer in layers if isinstance(layer, AttentionState)]
    slots = max(ring.keys.shape[2] for ring in rings)  # those of full attention grow
    keys, values = (
        [F.pad(x, (0, 0, 0, slots - x.shape[2])) for x in side]
        for side in zip(*((ring.keys, ring.values) for ring in rings), strict=True)
    )
    return AttentionState(torch.cat(keys), torch.cat(values), rings[0].grows)
