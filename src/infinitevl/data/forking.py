"""Processes that make batches, beside one that holds a GPU."""

import gc
from collections.abc import Iterator
from typing import Any

from torch.utils.data import DataLoader


def started(loader: DataLoader) -> Iterator[Any]:
    """The loader's items. Its workers never collect what this process held when they were forked.

    What lies on a GPU, such as a CUDA graph that waits in a reference cycle, cannot be freed in a fork: it aborts.
    """
    gc.freeze()
    try:
        return iter(loader)
    finally:
        gc.unfreeze()
