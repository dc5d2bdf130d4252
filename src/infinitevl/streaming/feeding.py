"""Putting tokens and frames into the rows of a state: what a stream, many in step and the engine do alike.

Nothing here waits for the device, so the host can be ahead of it; on a GPU all of it replays from CUDA graphs.
"""

from collections.abc import Callable, Sequence
from functools import cache, lru_cache, partial

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from infinitevl.model.graphs import beside, run
from infinitevl.model.modeling import InfiniteVLForConditionalGeneration
from infinitevl.model.pieces import in_pieces
from infinitevl.model.positions import grid_positions, tick
from infinitevl.model.state import State
from infinitevl.model.transfer import to_device
from infinitevl.model.vision import Plan
from infinitevl.video.resize import resize_to


def encode_frames(
    model: InfiniteVLForConditionalGeneration, pixels: Tensor, size: tuple[int, int] | None = None
) -> Tensor:
    """uint8 frames [N, H, W, 3] to features [N, tokens, hidden]; on a GPU beside what is under way there.

    Pictures of their own, each in a temporal patch of its own.
    size: height and width, which the model takes, to resize them to (None: they have such a size).
    """
    settings, count = model.processor.settings, len(pixels)
    height, width = (side // settings.patch_size for side in size or pixels.shape[1:3])

    @cache  # where a graph replays `encode` nobody asks for the plan; the graph that reads it holds it by this
    def plan() -> Plan:
        return model.model.visual.plan(((count, height, width),), model.device)

    def encode(_: None, pixels: Tensor) -> Tensor:
        return model.model.visual(model.processor.frame_patches(pixels, model.dtype), plan()).unflatten(0, (count, -1))

    def prepare(pixels: Tensor) -> Tensor:
        if size is not None and pixels.shape[1:3] != size:
            pixels = resize_to(to_device(pixels, model.device), size)
        return run(model, "frames", encode, pixels)

    return beside(model, prepare, pixels)


def take_frames(
    model: InfiniteVLForConditionalGeneration,
    state: State,
    features: Tensor,
    size: tuple[int, int],
    seconds: Sequence[Sequence[float]],
) -> None:
    """Put the next n frames of every row into the state, in place.

    features: [B, n * tokens, hidden], as `encode_frames` gives them; size: height and width of a frame in patches;
    seconds: [B][n], of each frame, since its open video's first one.
    """
    vision = model.config.vision_config
    height, width = (side // vision.spatial_merge_size for side in size)
    ticks = torch.tensor([[tick(time, vision.tokens_per_second) for time in row] for row in seconds])
    cells = _cells(height, width, model.device)

    def take(state: State, features: Tensor, ticks: Tensor) -> None:
        offsets = torch.stack([ticks[:, :, None].expand(-1, -1, height * width), *cells.expand(2, *ticks.shape, -1)])
        where = state.of("base")[None, :, None] + offsets.flatten(2)
        is_vision = torch.ones(where.shape[1:], dtype=torch.bool, device=where.device)
        model.model.language_model(features, where, is_vision, state=state)

    run(model, ("take frames", height, width), take, features, ticks, state=state)


@lru_cache(maxsize=64)
def _cells(height: int, width: int, device: torch.device) -> Tensor:
    """[2, 1, 1, height * width] int64: row and column of every merged patch."""
    with torch.inference_mode(False):
        return grid_positions([0], height, width)[1:, None, None].to(device)


def take_text(model: InfiniteVLForConditionalGeneration, state: State, rows: Sequence[Sequence[int]]) -> Tensor:
    """Put each row's tokens into the state, in place; a row may have none, and nothing of it changes.

    Returns logits [B, vocabulary] after each row's last token (of a row with none: anything).
    """
    lengths = [len(row) for row in rows]
    ids = pad_sequence([torch.tensor(row, dtype=torch.int64) for row in rows], batch_first=True)
    return _last_logits(model, state, put_text, (ids,), lengths)


def take_tokens(
    model: InfiniteVLForConditionalGeneration,
    state: State,
    embeds: Tensor,
    positions: Tensor,
    vision: Tensor,
    lengths: Sequence[int],
) -> Tensor:
    """As `take_text`, for embeddings [B, T, hidden] at positions [3, B, T]: lengths[b] of each row, then padding.

    vision: [B, T] bool, True at tokens of images and videos.
    """
    return _last_logits(model, state, _put_tokens, (embeds, positions.permute(1, 2, 0), vision), lengths)


def _last_logits(
    model: InfiniteVLForConditionalGeneration,
    state: State,
    put: Callable[..., Tensor],
    inputs: tuple[Tensor, ...],
    lengths: Sequence[int],
) -> Tensor:
    """[B, vocabulary] after each row's last token, from the piece that has it."""
    real, logits = torch.tensor(lengths), None
    for start, found in in_pieces(model, state, put.__name__, partial(put, model), inputs, real):
        if logits is not None:
            found = torch.where(to_device(real > start, model.device)[:, None], found, logits)
        logits = found
    assert logits is not None
    return logits


def put_text(model: InfiniteVLForConditionalGeneration, state: State, ids: Tensor, lengths: Tensor | None = None):
    """ids [B, T] of text, lengths [B] -> logits [B, vocabulary]."""
    where = state.of("position")[:, None] + torch.arange(ids.shape[1], device=ids.device)
    vision = torch.zeros(ids.shape, dtype=torch.bool, device=ids.device)
    embeds = model.get_input_embeddings()(ids)
    return _put_tokens(model, state, embeds, where[..., None].expand(-1, -1, 3), vision, lengths)


def _put_tokens(
    model: InfiniteVLForConditionalGeneration,
    state: State,
    embeds: Tensor,
    positions: Tensor,
    vision: Tensor,
    lengths: Tensor | None = None,
) -> Tensor:
    """embeds [B, T, hidden] at positions [B, T, 3], lengths [B] -> logits [B, vocabulary]."""
    x = model.model.language_model(embeds, positions.permute(2, 0, 1), vision, lengths, state=state)
    if lengths is None or x.shape[1] == 1:
        return model.lm_head(x[:, -1])
    last = (lengths - 1).clamp(min=0)[:, None, None].expand(-1, 1, x.shape[-1])
    return model.lm_head(x.gather(1, last)[:, 0])
