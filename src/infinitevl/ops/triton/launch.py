"""Launches that begin while the one before them ends."""

from functools import cache
from typing import Any

import torch
from torch import Tensor


def launches(x: Tensor) -> tuple[bool, dict[str, Any]]:
    """Whether a kernel on x's device may begin early, and the options of its launch.

    Where it may, its programs start as soon as those of the kernel before it have all started, if that kernel says so
    (`gdc_launch_dependents`), else when they have ended. `gdc_wait` waits until that kernel has ended and its results
    are there: a kernel with these options must call it before it writes anything, and before it reads what a kernel
    made that may still be at work. Older results are those of kernels from before one that waited, and said afterwards
    that the next may begin; a kernel that has nothing to do may end without waiting behind such a one.
    """
    early = x.device.type == "cuda" and _hopper(x.device.index)
    return early, {"launch_pdl": True} if early else {}


@cache
def _hopper(device: int) -> bool:
    return torch.cuda.get_device_capability(device) >= (9, 0)
