"""Many streams in step with each other, as rows of one state: what a `Stream` does, for a batch.

Every row sees a frame of the same size at the same time and is asked at the same time. Batched equals alone, so
the answers are those of separate streams; tests hold this.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from infinitevl.model.modeling import InfiniteVLForConditionalGeneration
from infinitevl.model.processing import IM_END, IM_START, SYSTEM, VISION_END, VISION_START
from infinitevl.model.state import DeltaState, State
from infinitevl.streaming.stream import take_frames
from infinitevl.video.preprocess import to_patches


class Lockstep:
    """B streams of a model. `fps` is the rate of their frames."""

    def __init__(self, model: InfiniteVLForConditionalGeneration, streams: int, fps: float) -> None:
        self.model, self.fps, self.frames = model, fps, 0
        self.state = model.allocate_state(streams)

    @torch.inference_mode()
    def see(self, frames: Tensor) -> None:
        """One frame of every stream: uint8 [B, H, W, 3] of a size that the model takes."""
        model = self.model
        if self.frames == 0:
            opening = model.processor.encode(f"{SYSTEM}{IM_START}user\n{VISION_START}")
            self._feed(self.state, torch.tensor([opening] * len(frames), device=model.device))
            self.state.open_video()
        patches, grid = to_patches(frames.to(model.device).repeat_interleave(2, dim=0))
        take_frames(model, self.state, patches, grid, self.frames / self.fps)
        self.frames += 1

    def forget(self) -> None:
        """Empty the memory of the Gated DeltaNet layers; the attention windows stay."""
        for layer in self._delta():
            layer.memory.zero_()

    def memory_norm(self) -> Tensor:
        """[layers] mean norm of a head's memory in each Gated DeltaNet layer."""
        return torch.stack([layer.memory.flatten(2).norm(dim=-1).mean() for layer in self._delta()])

    @torch.inference_mode()
    def ask(self, questions: Sequence[str], max_new_tokens: int = 24) -> list[str]:
        """A greedy answer from a fork of every stream, to its own question."""
        processor = self.model.processor
        opening = processor.encode(VISION_END if self.frames else f"{SYSTEM}{IM_START}user\n")
        closing = processor.encode(f"{IM_END}\n{IM_START}assistant\n")
        rows = [[*opening, *processor.encode(question.strip(), special=False), *closing] for question in questions]
        state = self.state.fork()
        logits = self._feed(state, *_padded(rows, self.model.device))
        return processor.tokenizer.batch_decode(self._decode(state, logits, max_new_tokens), skip_special_tokens=True)

    def _delta(self) -> list[DeltaState]:
        return [layer for layer in self.state.layers if isinstance(layer, DeltaState)]

    def _decode(self, state: State, logits: Tensor, limit: int) -> list[list[int]]:
        """The tokens of every row, without the one that ended it. A row that has ended is fed no more."""
        ends = torch.tensor(sorted(self.model.end_tokens()), device=logits.device)
        going = torch.ones(len(logits), dtype=torch.bool, device=logits.device)
        rows: list[list[int]] = [[] for _ in range(len(logits))]
        for _ in range(limit):
            token = logits.argmax(-1)
            going = going & ~torch.isin(token, ends)
            if not going.any():
                break
            for row, chosen, more in zip(rows, token.tolist(), going.tolist(), strict=True):
                row += [chosen] if more else []
            logits = self._feed(state, token[:, None], going[:, None].long())
        return rows

    def _feed(self, state: State, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        """Put tokens into the state; logits [B, vocabulary] after the last real token of each row."""
        logits = self.model(ids, attention_mask=mask, past_key_values=state).logits
        last = -1 if mask is None else (mask.sum(1) - 1).clamp(min=0)
        return logits[torch.arange(len(ids), device=ids.device), last]


def _padded(rows: list[list[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """ids and mask [B, T], padding behind."""
    longest = max(map(len, rows))
    ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows], device=device)
    return ids, torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows], device=device)
