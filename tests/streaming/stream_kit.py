"""What the tests of streams share: frames, and a conversation as one prompt, run whole."""

import numpy as np
import torch
from torch import Tensor

from infinitevl.model.modeling import InfiniteVLForConditionalGeneration as Model
from infinitevl.model.processing import IM_END, IM_START, SYSTEM, VIDEO, VISION_END, VISION_START
from infinitevl.streaming.session import MAX_PIXELS, MIN_PIXELS
from infinitevl.streaming.stream import Stream

USER, ASSISTANT = f"{IM_START}user\n", f"{IM_END}\n{IM_START}assistant\n"
WINDOW = 48


def picture(seed: int, height: int = 56, width: int = 84) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def pictures(count: int, height: int = 56, width: int = 84) -> list[np.ndarray]:
    return [picture(seed, height, width) for seed in range(count)]


def answer(stream: Stream, question: str = "What is it?", tokens: int = 12, **options) -> str:
    return "".join(stream.ask(question, max_new_tokens=tokens, **options))


def remembered(stream: Stream) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in stream.state.tensors().items()}


def same_memory(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def decoded(model: Model, tokens: list[int]) -> str:
    return model.processor.tokenizer.decode(tokens, skip_special_tokens=True)


def video_inputs(model: Model, frames: list[np.ndarray], fps: float) -> dict[str, Tensor]:
    """A video as `forward` takes it, every frame in a temporal patch of its own, as in a stream."""
    doubled = torch.from_numpy(np.stack(frames)).repeat_interleave(2, dim=0)
    patches, grid = model.processor.patches(doubled, min_pixels=MIN_PIXELS, max_pixels=MAX_PIXELS)
    grids, seconds = torch.tensor([grid]), torch.tensor([1 / fps])
    return {"pixel_values_videos": patches, "video_grid_thw": grids, "second_per_grid_ts": seconds}


def offline_ids(model: Model, frames: list[np.ndarray], question: str) -> Tensor:
    grid = video_inputs(model, frames[:1], 1.0)["video_grid_thw"][0]
    marks = VIDEO * (len(frames) * int(grid.prod()) // 4)
    return torch.tensor(
        [model.processor.encode(f"{SYSTEM}{USER}{VISION_START}{marks}{VISION_END}{question}{ASSISTANT}")]
    )


@torch.no_grad()
def greedy(model: Model, tokens: int, **inputs: Tensor) -> list[int]:
    """A plain loop with a state."""
    out, chosen = model(**inputs, use_cache=True), []
    while len(chosen) < tokens and (token := int(out.logits[0, -1].argmax())) not in model.end_tokens():
        chosen.append(token)
        out = model(torch.tensor([[token]]), past_key_values=out.past_key_values)
    return chosen


class Prompt:
    """A conversation as one sequence of embeddings and positions, by the architecture's rule, without a state."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self._embeds: list[Tensor] = []
        self._places: list[Tensor] = []
        self._kinds: list[int] = []
        self._next = self._run = self._base = 0

    def text(self, text: str | list[int]) -> None:
        ids = self.model.processor.encode(text) if isinstance(text, str) else text
        self._add(
            self.model.get_input_embeddings()(torch.tensor(ids)), torch.arange(len(ids)).expand(3, -1) + self._next, 0
        )
        self._next, self._run = self._next + len(ids), self._run + len(ids)

    def open_video(self) -> None:
        self._base = self._next + self._run

    def frame(self, picture: np.ndarray, seconds: float) -> None:
        """A frame `seconds` after the video's first."""
        bounds = {"min_pixels": MIN_PIXELS, "max_pixels": MAX_PIXELS}
        patches, grid = self.model.processor.patches(torch.from_numpy(picture)[None], **bounds)
        rows, columns = grid[1] // 2, grid[2] // 2
        t = torch.full((rows * columns,), int(round(seconds, 6) * self.model.config.vision_config.tokens_per_second))
        h, w = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
        places = torch.stack([t, h.flatten(), w.flatten()]) + self._base
        self._add(self.model.encode(patches, (grid,)), places, 2)
        self._next, self._run = max(self._next, int(places.max()) + 1), 0

    def logits(self) -> Tensor:
        """Of the token after all."""
        out = self.model(
            inputs_embeds=torch.cat(self._embeds)[None], position_ids=torch.cat(self._places, 1)[:, None],
            mm_token_type_ids=torch.tensor([self._kinds]), logits_to_keep=1,
        )  # fmt: skip
        return out.logits[0, -1]

    def _add(self, embeds: Tensor, places: Tensor, kind: int) -> None:
        self._embeds.append(embeds)
        self._places.append(places)
        self._kinds += [kind] * len(embeds)
