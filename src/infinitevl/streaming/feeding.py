"""Putting tokens and frames into the rows of a state: what a stream, many in step and the engine do alike."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from infinitevl.model.modeling import InfiniteVLForConditionalGeneration
from infinitevl.model.positions import grid_positions, tick
from infinitevl.model.state import State


def take_frames(
    model: InfiniteVLForConditionalGeneration,
    state: State,
    features: Tensor,
    size: tuple[int, int],
    seconds: Sequence[Sequence[float]],
) -> None:
    """Put the next n frames of every row into the state, in place.

    features: [B, n * tokens, hidden], as `encode` gives them; size: height and width of a frame in patches;
    seconds: [B][n], of each frame, since its open video's first one.
    """
    vision = model.config.vision_config
    merge, rate = vision.spatial_merge_size, vision.tokens_per_second
    height, width = size[0] // merge, size[1] // merge
    offsets = [grid_positions([tick(time, rate) for time in row], height, width) for row in seconds]
    positions = state.base[None, :, None] + torch.stack(offsets, dim=1).to(model.device)
    is_vision = torch.ones(positions.shape[1:], dtype=torch.bool, device=model.device)
    model.model.language_model(features, positions, is_vision, state=state)


def take_text(model: InfiniteVLForConditionalGeneration, state: State, rows: Sequence[Sequence[int]]) -> Tensor:
    """Put each row's tokens into the state, in place; a row may have none, and nothing of it changes.

    Returns logits [B, vocabulary] after each row's last token (of a row with none: anything).
    """
    ids = pad_sequence([torch.tensor(row, dtype=torch.int64) for row in rows], batch_first=True).to(model.device)
    positions = state.position[:, None] + torch.arange(ids.shape[1], device=model.device)
    vision = torch.zeros(ids.shape, dtype=torch.bool, device=model.device)
    embeds = model.get_input_embeddings()(ids)
    return take_tokens(model, state, embeds, positions.expand(3, -1, -1), vision, [len(row) for row in rows])


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
    real = torch.tensor(lengths, device=model.device)
    ragged = min(lengths) < embeds.shape[1]
    x = model.model.language_model(embeds, positions, vision, real if ragged else None, state=state)
    last = x[torch.arange(len(x), device=x.device), (real - 1).clamp(min=0)]
    return model.lm_head(last)
