"""CUDA graphs of the decoder's layers in training: small layers are bound by their launches, not by their work."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import accumulate
from operator import or_
from typing import Any

import torch
from torch import Tensor, nn

from infinitevl.data.packing import Batch
from infinitevl.model.layers import Chunk, DecoderLayer
from infinitevl.model.modeling import InfiniteVLForConditionalGeneration
from infinitevl.train.stages import embed


class _Flat(nn.Module):
    """A layer whose inputs are all tensors."""

    def __init__(self, layer: DecoderLayer) -> None:
        super().__init__()
        self.layer, self.run = layer, layer.forward

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, lengths: Tensor, seq_idx: Tensor) -> Tensor:
        return self.run(x, Chunk(cos, sin, lengths, seq_idx, None))


@contextmanager
def graphed_layers(model: InfiniteVLForConditionalGeneration, batch: Batch) -> Iterator[None]:
    """Inside, the layers of a training model replay CUDA graphs, forward and backward, for batches of this shape.

    Everything must stay where it is in memory, and each layer run once before its backward pass. At the end all of
    the graphs is freed: this frame holds nothing of them, and what PyTorch leaves in reference cycles is collected,
    lest a process forked later does it, which cannot.
    """
    layers: Any = list(model.model.language_model.layers)
    try:
        _replay(layers, model, batch)
        yield
    finally:
        for layer in layers:
            vars(layer).pop("forward", None)
        gc.collect()
        torch.cuda.empty_cache()


def _replay(layers: list[Any], model: InfiniteVLForConditionalGeneration, batch: Batch) -> None:
    """Put graphs in the place of the layers' `forward`."""
    with torch.autocast("cuda", torch.bfloat16, cache_enabled=False):
        samples = _samples(model, batch, layers)
        flats = torch.cuda.make_graphed_callables(tuple(map(_Flat, layers)), samples, allow_unused_input=True)
    for layer, flat in zip(layers, flats, strict=True):
        layer.forward = lambda x, chunk, state=None, flat=flat: flat(
            x, chunk.cos, chunk.sin, chunk.lengths, chunk.seq_idx
        )


def _samples(model: InfiniteVLForConditionalGeneration, batch: Batch, layers: list[nn.Module]) -> tuple[Any, ...]:
    """Inputs for every layer, which become the graphs' own: none is a tensor of the batch."""
    inputs = embed(model, batch)
    chunk = model.model.language_model.chunk(inputs.embeds, inputs.positions, inputs.lengths, inputs.seq_idx, None)
    shared = [x.clone() for x in (chunk.cos, chunk.sin, inputs.lengths, inputs.seq_idx)]
    trains = [inputs.embeds.requires_grad, *(any(p.requires_grad for p in layer.parameters()) for layer in layers)]
    inputs_train = list(accumulate(trains, or_))[:-1]  # whether a gradient goes on below a layer
    return tuple((inputs.embeds.detach().clone().requires_grad_(grad), *shared) for grad in inputs_train)
