"""Compiled blocks in training: small blocks are bound by their launches and by memory, which fusing spares."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from infinitevl.model.modeling import InfiniteVLForConditionalGeneration

MOST_FORMS = 32  # of one block: by kind, by what trains, by shape


@contextmanager
def compiled_blocks(*models: InfiniteVLForConditionalGeneration, backend: str = "inductor") -> Iterator[None]:
    """Inside, the blocks of the decoders and of the vision towers are compiled, for any shape. backend: of
    torch.compile."""
    from torch._dynamo import config

    blocks: list[Any] = [b for m in models for b in (*m.model.language_model.layers, *m.model.visual.blocks)]
    try:
        with config.patch(recompile_limit=MOST_FORMS):
            for block in blocks:
                block.forward = torch.compile(block.forward, backend=backend)
            yield
    finally:
        for block in blocks:
            vars(block).pop("forward", None)
