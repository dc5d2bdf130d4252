"""Processes that make batches, beside one that holds a GPU."""

import gc
import os
from collections.abc import Iterator
from typing import Any

from torch.utils.data import DataLoader

MOST = 28  # of one process


def spare_processors() -> int:
    """How many such processes keep the processors busy that this one, of those of a launch, has but for itself."""
    affinity = getattr(os, "sched_getaffinity", None)  # Linux alone
    found = len(affinity(0)) if affinity else os.cpu_count() or 1
    return max(0, min(MOST, found // int(os.environ.get("LOCAL_WORLD_SIZE", "1")) - 1))


def started(loader: DataLoader) -> Iterator[Any]:
    """The loader's items. Its workers never collect what this process held when they were forked.

    What lies on a GPU, such as a CUDA graph that waits in a reference cycle, cannot be freed in a fork: it aborts.
    """
    gc.freeze()
    try:
        return iter(loader)
    finally:
        gc.unfreeze()
