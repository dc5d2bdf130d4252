"""Between the host and a GPU, without either waiting for the other."""

from collections.abc import Callable
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor


def to_device(x: Tensor, device: torch.device) -> Tensor:
    """x on `device`; from the host to a GPU without waiting for what that is doing."""
    if x.device == device or device.type != "cuda":
        return x.to(device)
    return pinned(x).to(device, non_blocking=True)


@lru_cache(maxsize=256)
def constant(numbers: tuple[int, ...], device: torch.device) -> Tensor:
    """int64 [n] on `device`, not to be changed: the same numbers are copied there once, since they come again."""
    with torch.inference_mode(False):
        return to_device(torch.tensor(numbers, dtype=torch.int64), device)


def pinned(x: Tensor) -> Tensor:
    """A copy of x, which is on the host, in memory that a GPU reads by itself."""
    there = torch.empty(x.shape, dtype=x.dtype, pin_memory=True)
    copy_bytes(there, x)
    return there


def copy_bytes(target: Tensor, source: Tensor) -> None:
    """Copy between tensors of the host, of one shape and dtype, the target contiguous, by this thread alone: to wake
    the others takes longer than the bytes of a frame, and much longer where the processors are busy."""
    target, source = (x.reshape(-1).view(torch.uint8) for x in (target, source))
    np.copyto(target.numpy(), source.numpy())


def done(device: torch.device) -> Callable[[], None]:
    """What waits until the device has done all that it was told until now."""
    if device.type != "cuda":
        return lambda: None
    event = torch.cuda.Event()
    event.record(torch.cuda.current_stream(device))
    return event.synchronize


def fetch(x: Tensor) -> Callable[[], list]:
    """Begin to copy x to the host; the function that is returned waits for that, not for what is launched later."""
    if not x.is_cuda:
        return x.tolist
    host, there = torch.empty(x.shape, dtype=x.dtype, pin_memory=True), torch.cuda.Event()
    host.copy_(x, non_blocking=True)
    there.record()

    def wait() -> list:
        there.synchronize()
        return host.tolist()

    return wait
